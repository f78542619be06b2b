"""ONNX Runtime on the CPU at its defaults: every optimisation it has by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from exchange import Predict, serve_engine, versions


def open_engine(request: dict[str, Any]) -> tuple[Predict, dict[str, Any]]:
    """``optimised``: where to write the graph that is really run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.log_severity_level = 3
    if request.get("optimised"):
        options.optimized_model_filepath = request["optimised"]
    session = onnxruntime.InferenceSession(request["graph"], options, providers=["CPUExecutionProvider"])

    def predict(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(None, inputs)[0])

    return predict, {"precision": "", "versions": versions("onnxruntime", "numpy")}


if __name__ == "__main__":
    serve_engine(open_engine)

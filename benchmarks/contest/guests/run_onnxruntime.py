"""Runs a graph in ONNX Runtime on the CPU at its defaults, with all of its optimisations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from exchange import Inputs, Opened, in_threads, serve_engine, versions


def open_engine(request: dict[str, Any]) -> Opened:
    """Opens a graph. ``optimised``: where to write the optimised graph; ``streams``: threads sharing the session."""
    streams = request.get("streams", 1)
    options = onnxruntime.SessionOptions()
    # Calling threads compute, too: with one per core, the session needs no own threads.
    options.intra_op_num_threads = max(1, request["threads"] // streams)
    options.log_severity_level = 3
    if request.get("optimised"):
        options.optimized_model_filepath = request["optimised"]
    session = onnxruntime.InferenceSession(request["graph"], options, providers=["CPUExecutionProvider"])

    def predict(inputs: Inputs) -> np.ndarray:
        return np.asarray(session.run(None, inputs)[0])

    description = {"precision": "", "versions": versions("onnxruntime", "numpy")}
    return Opened(predict, description, in_threads(predict, streams) if streams > 1 else None)


if __name__ == "__main__":
    serve_engine(open_engine)

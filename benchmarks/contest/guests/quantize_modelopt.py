"""Quantizes a graph to INT8 with NVIDIA Model-Optimizer, at its defaults except for the given settings."""

from __future__ import annotations

import time
from typing import Any

from exchange import load_tiles, serve, versions
from modelopt.onnx.quantization import quantize as quantize_onnx


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    quantize_onnx(
        request["graph"],
        calibration_data=load_tiles(request["tiles"]),  # Model-Optimizer splits them into batches of one
        output_path=request["out"],
        **request["settings"],
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "versions": versions("nvidia-modelopt", "onnxruntime-gpu", "onnx", "torch", "numpy")}


if __name__ == "__main__":
    serve({"quantize": quantize})

"""Quantizes a graph to INT8 with onnxruntime's quantize_static, at its defaults except for the given settings."""

from __future__ import annotations

import time
from typing import Any

from exchange import load_tiles, one_by_one, serve, versions
from onnxruntime.quantization import CalibrationDataReader, quantize_static


class Tiles(CalibrationDataReader):
    """Reads the calibration tiles from disk, one pair at a time."""

    def __init__(self, folder: str) -> None:
        self._tiles = one_by_one(load_tiles(folder))

    def get_next(self) -> Any:
        return next(self._tiles, None)


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    quantize_static(request["graph"], request["out"], Tiles(request["tiles"]), **request["settings"])
    return {"seconds": time.perf_counter() - start, "versions": versions("onnxruntime", "onnx", "numpy")}


if __name__ == "__main__":
    serve({"quantize": quantize})

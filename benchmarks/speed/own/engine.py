"""Runs an engine of the bundle as the runtime does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.contest.guests.exchange import Inputs, Opened, in_threads, serve_engine
from misgnet_runtime.bundle import EngineEntry
from misgnet_runtime.engines import ExecutionOptions, open_engine_file
from misgnet_runtime.machine import installed_versions


def open_engine(request: dict[str, Any]) -> Opened:
    """Opens ``entry`` of the manifest, whose paths are relative to ``root``; ``max_batch``: the largest batch size."""
    entry = msgspec.convert(request["entry"], EngineEntry)
    streams = request["streams"]
    execution = ExecutionOptions(threads=request["threads"], streams=streams)
    engine = open_engine_file(entry, Path(request["root"]), request["max_batch"], execution)

    def predict(inputs: Inputs) -> np.ndarray:
        (found,) = engine.infer(inputs).values()
        return found

    libraries = installed_versions(("onnxruntime" if entry.kind == "onnxruntime" else "openvino", "numpy"))
    description = {"precision": entry.precision, "versions": libraries}
    return Opened(predict, description, in_threads(predict, streams) if streams > 1 else None)


if __name__ == "__main__":
    serve_engine(open_engine)

"""Shared code of all guests: requests are JSON lines on stdin, replies are JSON lines on stdout.

The guests in this folder run in a contender's own environment. They import nothing from this project, only NumPy and
the contender's packages; tiles and predictions are ``.npy`` files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

# Inputs of a graph by name, all with the same batch size; and a function that returns the output for them.
Inputs = dict[str, np.ndarray]
Predict = Callable[[Inputs], np.ndarray]
Handlers = dict[str, Callable[[dict[str, Any]], dict[str, Any]]]


@dataclass(frozen=True)
class Opened:
    """An open engine."""

    predict: Predict
    # Precision and versions, for the reply.
    description: dict[str, Any]
    # Runs many batches, several at a time (default: one after the other with ``predict``).
    run_all: Callable[[list[Inputs]], None] | None = None


def serve(handlers: Handlers) -> None:
    """Serves requests until stdin ends; ``do`` names the handler. An error ends the process with its traceback.

    Libraries may print to stdout, so replies go to a copy of it, and stdout is redirected to stderr.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply = handlers[request["do"]](request)
        replies.write(json.dumps({**reply, "peak_mib": peak_mib()}) + "\n")
        replies.flush()


def load_tiles(folder: str) -> Inputs:
    """Returns the tiles of every input, (N, ...), memory-mapped, so that only tiles in use are read."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("*.npy"))}


def one_by_one(tiles: Inputs) -> Iterator[Inputs]:
    """Yields the tiles in order, each as a batch of one."""
    count = len(next(iter(tiles.values())))
    for index in range(count):
        yield {name: np.array(array[index : index + 1]) for name, array in tiles.items()}


def count_of(tiles: Inputs) -> int:
    return len(next(iter(tiles.values())))


def write_predictions(predict: Predict, tiles: Inputs, path: str) -> int:
    """Runs every tile, writes the outputs as one array, (N, ...), and returns their number."""
    written = None
    for index, inputs in enumerate(one_by_one(tiles)):
        output = predict(inputs)
        if written is None:
            shape = (count_of(tiles), *output.shape[1:])
            written = np.lib.format.open_memmap(path, "w+", output.dtype, shape)
        written[index] = output[0]
    assert written is not None
    written.flush()
    return len(written)


def timed(predict: Predict, tiles: Inputs, calls: int) -> list[float]:
    """Returns the milliseconds of each of ``calls`` calls with one pair, cycling through the first tiles."""
    few = [inputs for inputs, _ in zip(one_by_one(tiles), range(4), strict=False)]
    found = []
    for index in range(calls):
        inputs = few[index % len(few)]
        start = time.perf_counter()
        predict(inputs)
        found.append(1000 * (time.perf_counter() - start))
    return found


def seconds_for(opened: Opened, tiles: Inputs, batch: int, calls: int) -> float:
    """Returns the seconds for ``calls`` batches of ``batch`` pairs, cycling through the first tiles."""
    few = [batch_of(tiles, index * batch, batch) for index in range(4)]
    work = [few[index % len(few)] for index in range(calls)]
    start = time.perf_counter()
    if opened.run_all:
        opened.run_all(work)
    else:
        for inputs in work:
            opened.predict(inputs)
    return time.perf_counter() - start


def batch_of(tiles: Inputs, first: int, batch: int) -> Inputs:
    """Returns ``batch`` tiles starting at ``first``; wraps around after the last one."""
    picked = np.arange(first, first + batch) % count_of(tiles)
    return {name: np.ascontiguousarray(array[picked]) for name, array in tiles.items()}


def in_threads(predict: Predict, streams: int) -> Callable[[list[Inputs]], None]:
    """Returns a ``run_all`` that calls ``predict`` from ``streams`` threads, for a thread-safe engine."""
    pool = ThreadPoolExecutor(streams)

    def run_all(work: list[Inputs]) -> None:
        for _ in pool.map(predict, work):
            pass

    return run_all


def serve_engine(open_engine: Callable[[dict[str, Any]], Opened]) -> None:
    """Serves one engine at a time: "open" comes first and may be repeated, then "predict", "time" and "rate"."""
    engine: list[Opened] = []

    def start(request: dict[str, Any]) -> dict[str, Any]:
        engine.clear()  # free its memory before the next one is opened
        engine.append(open_engine(request))
        return engine[0].description

    def predict(request: dict[str, Any]) -> dict[str, Any]:
        return {"tiles": write_predictions(engine[0].predict, load_tiles(request["tiles"]), request["out"])}

    def clock(request: dict[str, Any]) -> dict[str, Any]:
        return {"ms": timed(engine[0].predict, load_tiles(request["tiles"]), request["calls"])}

    def rate(request: dict[str, Any]) -> dict[str, Any]:
        tiles = load_tiles(request["tiles"])
        return {"seconds": seconds_for(engine[0], tiles, request["batch"], request["calls"])}

    serve({"open": start, "predict": predict, "time": clock, "rate": rate})


def versions(*names: str) -> dict[str, str]:
    """Returns the versions of installed packages."""
    return {name: metadata.version(name) for name in names}


def peak_mib() -> float | None:
    """Returns the peak memory of this process in MiB; None if the system does not report it."""
    # Not getrusage: its value includes the parent's memory at the time of the fork.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)

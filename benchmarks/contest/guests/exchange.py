"""What every guest shares: requests as lines of JSON on stdin, answers as lines of JSON on stdout.

Those that lie here run in a contender's own environment. They import nothing of this project, and of others only
NumPy and what the contender is made of; tiles and answers are plain ``.npy`` files.
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

# A graph's inputs by name, each with the same batch, and what makes its output of them.
Inputs = dict[str, np.ndarray]
Predict = Callable[[Inputs], np.ndarray]
Handlers = dict[str, Callable[[dict[str, Any]], dict[str, Any]]]


@dataclass(frozen=True)
class Opened:
    """An engine that is ready, and how it describes itself.

    ``run_all`` answers many batches, as many at once as the engine was opened for; without it one after the other.
    """

    predict: Predict
    description: dict[str, Any]
    run_all: Callable[[list[Inputs]], None] | None = None


def serve(handlers: Handlers) -> None:
    """Answer requests until stdin ends; ``do`` names the handler. An error ends the process with its traceback.

    Libraries print to stdout as they like, so the answers go to a copy of it, and what is printed to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = handlers[request["do"]](request)
        answers.write(json.dumps({**answer, "peak_mib": peak_mib()}) + "\n")
        answers.flush()


def load_tiles(folder: str) -> Inputs:
    """Every input's tiles, (N, ...), mapped from disk: only what is used is read."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("*.npy"))}


def one_by_one(tiles: Inputs) -> Iterator[Inputs]:
    """The tiles in their order, each as a batch of one."""
    count = len(next(iter(tiles.values())))
    for index in range(count):
        yield {name: np.array(array[index : index + 1]) for name, array in tiles.items()}


def count_of(tiles: Inputs) -> int:
    return len(next(iter(tiles.values())))


def write_answers(predict: Predict, tiles: Inputs, path: str) -> int:
    """Run every tile and write the outputs as one array, (N, ...); how many there are."""
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
    """Milliseconds of each of ``calls`` calls with one pair, on the first tiles in turn."""
    few = [inputs for inputs, _ in zip(one_by_one(tiles), range(4), strict=False)]
    found = []
    for index in range(calls):
        inputs = few[index % len(few)]
        start = time.perf_counter()
        predict(inputs)
        found.append(1000 * (time.perf_counter() - start))
    return found


def seconds_for(opened: Opened, tiles: Inputs, batch: int, calls: int) -> float:
    """How long ``calls`` batches of ``batch`` pairs take, on the first tiles in turn."""
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
    """``batch`` tiles from ``first`` on; after the last one comes the first one."""
    picked = np.arange(first, first + batch) % count_of(tiles)
    return {name: np.ascontiguousarray(array[picked]) for name, array in tiles.items()}


def in_threads(predict: Predict, streams: int) -> Callable[[list[Inputs]], None]:
    """``run_all`` of an engine that threads may share: each of ``streams`` calls again as soon as it is answered."""
    pool = ThreadPoolExecutor(streams)

    def run_all(work: list[Inputs]) -> None:
        for _ in pool.map(predict, work):
            pass

    return run_all


def serve_engine(open_engine: Callable[[dict[str, Any]], Opened]) -> None:
    """Serve one engine at a time: "open" comes first and may come again, then "answer", "time" and "rate"."""
    engine: list[Opened] = []

    def start(request: dict[str, Any]) -> dict[str, Any]:
        engine.clear()  # before the next one takes its memory
        engine.append(open_engine(request))
        return engine[0].description

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"tiles": write_answers(engine[0].predict, load_tiles(request["tiles"]), request["out"])}

    def clock(request: dict[str, Any]) -> dict[str, Any]:
        return {"ms": timed(engine[0].predict, load_tiles(request["tiles"]), request["calls"])}

    def rate(request: dict[str, Any]) -> dict[str, Any]:
        tiles = load_tiles(request["tiles"])
        return {"seconds": seconds_for(engine[0], tiles, request["batch"], request["calls"])}

    serve({"open": start, "answer": answer, "time": clock, "rate": rate})


def versions(*names: str) -> dict[str, str]:
    """Versions of installed packages."""
    return {name: metadata.version(name) for name in names}


def peak_mib() -> float | None:
    """The most memory this process has held, in MiB; None where the system does not tell."""
    # Not getrusage: its figure starts from what the parent held when it started this process.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)

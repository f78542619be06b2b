"""What every guest shares: requests as lines of JSON on stdin, answers as lines of JSON on stdout.

Guests run in a contender's own environment. They import nothing of this project, and of others only NumPy and
what the contender is made of; tiles and answers are plain ``.npy`` files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

# One tile's inputs by name, each with a batch of one, to the graph's output.
Predict = Callable[[dict[str, np.ndarray]], np.ndarray]
Handlers = dict[str, Callable[[dict[str, Any]], dict[str, Any]]]


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


def load_tiles(folder: str) -> dict[str, np.ndarray]:
    """Every input's tiles, (N, ...), mapped from disk: only what is used is read."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("*.npy"))}


def one_by_one(tiles: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The tiles in their order, each as a batch of one."""
    count = len(next(iter(tiles.values())))
    for index in range(count):
        yield {name: np.ascontiguousarray(array[index : index + 1]) for name, array in tiles.items()}


def count_of(tiles: dict[str, np.ndarray]) -> int:
    return len(next(iter(tiles.values())))


def write_answers(predict: Predict, tiles: dict[str, np.ndarray], path: str) -> int:
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


def timed(predict: Predict, tiles: dict[str, np.ndarray], calls: int) -> list[float]:
    """Milliseconds of each of ``calls`` calls with one pair, on the first tiles in turn."""
    few = [inputs for inputs, _ in zip(one_by_one(tiles), range(4), strict=False)]
    found = []
    for index in range(calls):
        inputs = few[index % len(few)]
        start = time.perf_counter()
        predict(inputs)
        found.append(1000 * (time.perf_counter() - start))
    return found


def serve_engine(open_engine: Callable[[dict[str, Any]], tuple[Predict, dict[str, Any]]]) -> None:
    """Serve one engine: "open" comes first, then "answer" and "time"."""
    opened: dict[str, Any] = {}

    def start(request: dict[str, Any]) -> dict[str, Any]:
        opened["predict"], description = open_engine(request)
        return description

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"tiles": write_answers(opened["predict"], load_tiles(request["tiles"]), request["out"])}

    def clock(request: dict[str, Any]) -> dict[str, Any]:
        return {"ms": timed(opened["predict"], load_tiles(request["tiles"]), request["calls"])}

    serve({"open": start, "answer": answer, "time": clock})


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

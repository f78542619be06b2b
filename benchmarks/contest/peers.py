"""What each peer makes of the straight export: quantized in its own environment and process, and kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import kept
from benchmarks.contest.contenders import Contender
from benchmarks.contest.guest import Answer, ContenderFailed, Guest, foreign
from misgnet_runtime.raster.dataset import TileSet


@dataclass(frozen=True, kw_only=True)
class Source:
    """The float graph that all peers start from, the tiles that calibrate them, and where they work.

    ``handed``: the folder of the handed-over tiles; ``python_of``: the interpreter of an environment by name;
    ``limit_s``: the longest that one step may take.
    """

    graph: Path
    calibration: TileSet
    handed: Path
    work: Path
    python_of: Callable[[str], Path]
    limit_s: float


def quantized(source: Source, peer: Contender) -> tuple[Path, Answer]:
    """The peer's INT8 graph and what it said; an earlier run's where nothing changed. Raises ContenderFailed."""
    folder, python = source.work / peer.key, source.python_of(peer.environment)
    out, key = folder / f"int8{peer.suffix}", kept.key_of(source.graph, source.calibration, peer)
    answer = kept.read(folder, key)
    if answer is None:
        answer = _ask(source, peer, python, kept.emptied(folder), out)
        kept.write(folder, key, answer)
    return out, answer


def _ask(source: Source, peer: Contender, python: Path, folder: Path, out: Path) -> Answer:
    """The peer's answer to its one request, in a process of ``python``; its graph lies at ``out`` then."""
    # A copy of its own: some write beside the graph that they read.
    copy = folder / "float.onnx"
    copy.write_bytes(source.graph.read_bytes())
    with Guest(foreign(python, peer.script), folder / "log.txt", source.limit_s) as guest:
        answer = guest.ask("quantize", graph=copy, tiles=source.handed, out=out, settings=peer.settings)
    if not out.is_file():
        raise ContenderFailed(f"{peer.script} ended without a graph")
    return answer


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on stderr what is being done."""
    print(what, file=sys.stderr, flush=True)
    yield

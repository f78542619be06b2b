"""Lets each peer quantize the straight export in its own environment and process, and stores the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import kept
from benchmarks.contest.contenders import Contender
from benchmarks.contest.guest import ContenderFailed, Guest, Reply, foreign
from misgnet_runtime.raster.dataset import TileSet


@dataclass(frozen=True, kw_only=True)
class Source:
    """Inputs of all peers."""

    # Float graph.
    graph: Path
    calibration: TileSet
    # Folder with the calibration tiles as ``.npy`` files.
    handed: Path
    work: Path
    # Returns the interpreter of an environment.
    python_of: Callable[[str], Path]
    # Time limit of one step in seconds.
    limit_s: float


def quantized(source: Source, peer: Contender) -> tuple[Path, Reply]:
    """Returns the peer's INT8 graph and its reply, from an earlier run if nothing changed; raises ContenderFailed."""
    folder, python = source.work / peer.key, source.python_of(peer.environment)
    out, key = folder / f"int8{peer.suffix}", kept.key_of(source.graph, source.calibration, peer)
    reply = kept.read(folder, key)
    if reply is None:
        reply = _quantize_in_guest(source, peer, python, kept.emptied(folder), out)
        kept.write(folder, key, reply)
    return out, reply


def _quantize_in_guest(source: Source, peer: Contender, python: Path, folder: Path, out: Path) -> Reply:
    """Quantizes the graph in a guest process, which writes ``out``; returns its reply."""
    # The guest gets a copy, because some tools write files beside their input graph.
    copy = folder / "float.onnx"
    copy.write_bytes(source.graph.read_bytes())
    with Guest(foreign(python, peer.script), folder / "log.txt", source.limit_s) as guest:
        reply = guest.call("quantize", graph=copy, tiles=source.handed, out=out, settings=peer.settings)
    if not out.is_file():
        raise ContenderFailed(f"{peer.script} exited without writing a graph")
    return reply


@contextmanager
def step(name: str) -> Iterator[None]:
    """Prints the name of the current step on stderr."""
    print(name, file=sys.stderr, flush=True)
    yield

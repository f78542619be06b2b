"""Prepares the graphs that are compared: the straight export, this project's, and each peer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from benchmarks.contest.contenders import FLOAT, GIVEN_ENGINES, OURS, PEERS, Contender, Engine
from benchmarks.contest.guest import ContenderFailed
from benchmarks.contest.handover import hand_over
from benchmarks.contest.peers import Source, quantized, step
from benchmarks.contest.share import Product, Share, costs_of, products_of, share_of
from benchmarks.int8_peers.report import Made
from misgnet_runtime.bundle import Interface
from misgnet_runtime.raster.dataset import TileSet


@dataclass(frozen=True, kw_only=True)
class Task:
    """The graphs and settings of a comparison."""

    # The straight export, which the peers start from.
    float_graph: Path
    own_graph: Path
    # How this project's graph was made.
    own: Made
    own_notes: tuple[str, ...]
    interface: Interface
    threshold: float
    calibration: TileSet
    evaluation: TileSet
    work: Path
    # Returns the interpreter of an environment.
    python_of: Callable[[str], Path]
    threads: int
    rounds: int
    # Measuring time of one engine in one round.
    seconds: float
    # Time limit of one step of a contender.
    limit_s: float
    peers: tuple[Contender, ...] = PEERS
    given_engines: tuple[Engine, ...] = GIVEN_ENGINES


@dataclass(frozen=True)
class Context:
    """A task whose tiles have been written for the guests."""

    task: Task
    # MACs of the float graph by product.
    costs: dict[str, int]
    # Folders of tiles.
    calibration: Path
    evaluation: Path


@dataclass(frozen=True)
class Graph:
    """A graph to evaluate, and its INT8 share."""

    path: Path
    made: Made
    share: Share


@dataclass(frozen=True)
class Candidate:
    """A contender's graph, and the engines that run it."""

    key: str
    title: str
    engines: tuple[Engine, ...]
    notes: tuple[str, ...]
    # The graph, or why it could not be made.
    graph: Graph | ContenderFailed


def prepare(task: Task) -> Context:
    """Writes the tiles for the guests, and counts the MACs of the float graph."""
    with step("writing the tiles"):
        calibration = hand_over(task.calibration, task.interface, task.work / "calibration")
        evaluation = hand_over(task.evaluation, task.interface, task.work / "evaluation")
        return Context(task, costs_of(onnx.load(task.float_graph)), calibration, evaluation)


def candidates(context: Context) -> list[Candidate]:
    """Returns the float graph, the peers' graphs and this project's, in this order."""
    task = context.task
    start = _onnx_graph(context, task.float_graph, Made(task.float_graph.stat().st_size / 1e6))
    own = _onnx_graph(context, task.own_graph, task.own)
    return [
        Candidate(FLOAT, FLOAT, task.given_engines, (), start),
        *(make(context, peer) for peer in task.peers),
        Candidate(OURS, OURS, task.given_engines, task.own_notes, own),
    ]


def make(context: Context, peer: Contender) -> Candidate:
    """Lets ``peer`` quantize the float graph in its own environment and process."""
    notes = (peer.note,) if peer.note else ()
    graph: Graph | ContenderFailed
    with step(f"{peer.title}: quantizing"):
        try:
            graph = _quantize(context, peer)
        except ContenderFailed as error:
            graph = error
    return Candidate(peer.key, peer.title, peer.engines, notes, graph)


def _quantize(context: Context, peer: Contender) -> Graph:
    task = context.task
    source = Source(
        graph=task.float_graph, calibration=task.calibration, handed=context.calibration, work=task.work,
        python_of=task.python_of, limit_s=task.limit_s,
    )  # fmt: skip
    out, reply = quantized(source, peer)
    size = sum(path.stat().st_size for path in out.parent.glob("int8.*"))  # OpenVINO's weights are a separate file
    made = Made(size / 1e6, reply["seconds"], reply["peak_mib"], reply["versions"])
    if "products" not in reply:
        return _onnx_graph(context, out, made)
    return Graph(out, made, share_of([Product(**product) for product in reply["products"]], context.costs))


def _onnx_graph(context: Context, path: Path, made: Made) -> Graph:
    return Graph(path, made, share_of(products_of(onnx.load(path)), context.costs))

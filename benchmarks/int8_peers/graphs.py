"""The graphs that are compared: the straight export, this project's, and what each peer makes of the former."""

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
    """What is compared, on what, and how long it may take.

    ``float_graph``: the straight export, which the peers start from; ``own``: how this project's graph was made;
    ``python_of``: the interpreter of an environment by name; ``seconds``: of one engine in one round; ``limit_s``: of
    one step of a contender.
    """

    float_graph: Path
    own_graph: Path
    own: Made
    own_notes: tuple[str, ...]
    interface: Interface
    threshold: float
    calibration: TileSet
    evaluation: TileSet
    work: Path
    python_of: Callable[[str], Path]
    threads: int
    rounds: int
    seconds: float
    limit_s: float
    peers: tuple[Contender, ...] = PEERS
    given_engines: tuple[Engine, ...] = GIVEN_ENGINES


@dataclass(frozen=True)
class Context:
    """The task with its tiles handed over, and the float graph's multiply-adds by product."""

    task: Task
    costs: dict[str, int]
    calibration: Path
    evaluation: Path


@dataclass(frozen=True)
class Graph:
    """A graph to judge, and what of it is INT8."""

    path: Path
    made: Made
    share: Share


@dataclass(frozen=True)
class Candidate:
    """Whose graph it is, what runs it, and the graph or the reason why there is none."""

    key: str
    title: str
    engines: tuple[Engine, ...]
    notes: tuple[str, ...]
    graph: Graph | ContenderFailed


def prepare(task: Task) -> Context:
    """Write the tiles where guests read them, and count the float graph."""
    with step("handing over the tiles"):
        calibration = hand_over(task.calibration, task.interface, task.work / "calibration")
        evaluation = hand_over(task.evaluation, task.interface, task.work / "evaluation")
        return Context(task, costs_of(onnx.load(task.float_graph)), calibration, evaluation)


def candidates(context: Context) -> list[Candidate]:
    """The float graph, the peers' and this project's, in this order."""
    task = context.task
    start = _onnx_graph(context, task.float_graph, Made(task.float_graph.stat().st_size / 1e6))
    own = _onnx_graph(context, task.own_graph, task.own)
    return [
        Candidate(FLOAT, FLOAT, task.given_engines, (), start),
        *(make(context, peer) for peer in task.peers),
        Candidate(OURS, OURS, task.given_engines, task.own_notes, own),
    ]


def make(context: Context, peer: Contender) -> Candidate:
    """Let ``peer`` quantize the float graph in its own environment and process."""
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
    out, answer = quantized(source, peer)
    size = sum(path.stat().st_size for path in out.parent.glob("int8.*"))  # OpenVINO's weights are a file of their own
    made = Made(size / 1e6, answer["seconds"], answer["peak_mib"], answer["versions"])
    if "products" not in answer:
        return _onnx_graph(context, out, made)
    return Graph(out, made, share_of([Product(**product) for product in answer["products"]], context.costs))


def _onnx_graph(context: Context, path: Path, made: Made) -> Graph:
    return Graph(path, made, share_of(products_of(onnx.load(path)), context.costs))

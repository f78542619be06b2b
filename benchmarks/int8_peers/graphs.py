"""The graphs that are compared: the float one, this project's, and what each peer makes of the float one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from benchmarks.int8_peers import kept
from benchmarks.int8_peers.contenders import FLOAT, GIVEN_ENGINES, OURS, PEERS, Contender, Engine
from benchmarks.int8_peers.guest import Answer, ContenderFailed, Guest
from benchmarks.int8_peers.handover import hand_over
from benchmarks.int8_peers.report import Made
from benchmarks.int8_peers.share import Product, Share, costs_of, products_of, share_of
from misgnet_runtime.manifest import Interface
from misgnet_runtime.tiles import TileSet


@dataclass(frozen=True)
class Task:
    """What is compared, on what, and how long it may take.

    ``own``: how this project's graph was made; ``python_of``: the interpreter of an environment by name;
    ``seconds``: of one engine in one round; ``limit_s``: of one step of a contender.
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
    folder, python = task.work / peer.key, task.python_of(peer.environment)
    out, key = folder / f"int8{peer.suffix}", kept.key_of(task.float_graph, task.calibration, peer)
    answer = kept.read(folder, key)
    if answer is None:
        answer = _ask(context, peer, python, kept.emptied(folder), out)
        kept.write(folder, key, answer)
    size = sum(path.stat().st_size for path in folder.glob("int8.*"))  # OpenVINO's weights are a file of their own
    made = Made(size / 1e6, answer["seconds"], answer["peak_mib"], answer["versions"])
    if "products" not in answer:
        return _onnx_graph(context, out, made)
    return Graph(out, made, share_of([Product(**product) for product in answer["products"]], context.costs))


def _ask(context: Context, peer: Contender, python: Path, folder: Path, out: Path) -> Answer:
    """The peer's answer to its one request, in a process of ``python``; its graph lies at ``out`` then."""
    # A copy of its own: some write beside the graph that they read.
    source = folder / "float.onnx"
    source.write_bytes(context.task.float_graph.read_bytes())
    with Guest(python, peer.script, folder / "log.txt", context.task.limit_s) as guest:
        answer = guest.ask("quantize", graph=source, tiles=context.calibration, out=out, settings=peer.settings)
    if not out.is_file():
        raise ContenderFailed(f"{peer.script} ended without a graph")
    return answer


def _onnx_graph(context: Context, path: Path, made: Made) -> Graph:
    return Graph(path, made, share_of(products_of(onnx.load(path)), context.costs))


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on stderr what is being done."""
    print(what, file=sys.stderr, flush=True)
    yield

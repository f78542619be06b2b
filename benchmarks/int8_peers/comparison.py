"""Runs, scores and times every graph; a contender that fails becomes a row with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import onnx

from benchmarks.contest.contenders import Engine
from benchmarks.contest.guest import ContenderFailed, Guest, foreign
from benchmarks.contest.handover import replay
from benchmarks.contest.peers import step
from benchmarks.contest.scoring import scores_of
from benchmarks.contest.share import Product, Share, run_products, share_of
from benchmarks.int8_peers.graphs import Candidate, Context, Graph, Task, candidates, prepare
from benchmarks.int8_peers.report import Row
from benchmarks.int8_peers.timing import Speed, measure
from misgnet_runtime.accuracy.parity import EvaluatedTile, evaluate_tiles
from misgnet_runtime.errors import GateFailed

Description = dict[str, Any]


def compare(task: Task) -> list[Row]:
    """Returns all rows, the float graph in ONNX Runtime first; raises ContenderFailed if that one fails."""
    context = prepare(task)
    pairs = [(candidate, engine) for candidate in candidates(context) for engine in candidate.engines]
    first, reference = _evaluate(context, *pairs[0])
    rows, runnable = [_scored(first, reference, reference)], {0: pairs[0]}
    for candidate, engine in pairs[1:]:
        row = _row(context, candidate, engine, reference)
        if not engine.precision and _is_duplicate(row, rows[-1]):
            continue
        if not row.failed:
            runnable[len(rows)] = (candidate, engine)
        rows.append(row)
    speeds = _time(context, runnable)
    return [_with_speed(row, speeds.get(index)) for index, row in enumerate(rows)]


def _row(context: Context, candidate: Candidate, engine: Engine, reference: list[EvaluatedTile]) -> Row:
    try:
        row, found = _evaluate(context, candidate, engine)
    except (ContenderFailed, GateFailed) as error:
        reason = str(error).replace(f"{context.task.work}/", "")
        made = candidate.graph.made if isinstance(candidate.graph, Graph) else None
        return Row(
            candidate.key, candidate.title, engine.name, engine.precision, reason, list(candidate.notes), made=made
        )  # fmt: skip
    return _scored(row, reference, found)


def _evaluate(context: Context, candidate: Candidate, engine: Engine) -> tuple[Row, list[EvaluatedTile]]:
    """Runs the candidate's graph on all evaluation tiles; returns a row without scores, and the masks."""
    task = context.task
    predictions, optimised = task.work / "answers.npy", task.work / "optimised.onnx"
    name = f"{candidate.title} in {engine.name}"
    with step(f"{name}: running"), _opened(context, candidate, engine, optimised) as (guest, graph, description):
        peak = guest.call("predict", tiles=context.evaluation, out=predictions)["peak_mib"]
    predict = replay(predictions, task.interface, len(task.evaluation))
    found = evaluate_tiles(name, predict, task.evaluation, task.threshold)
    row = Row(
        candidate.key, candidate.title, engine.name, description["precision"], notes=list(candidate.notes),
        int8_in_graph=graph.share, int8_as_run=_share_as_run(context, description, optimised), made=graph.made,
        run_peak_mib=peak, versions=description["versions"],
    )  # fmt: skip
    return row, found


def _scored(row: Row, reference: list[EvaluatedTile], found: list[EvaluatedTile]) -> Row:
    """Returns ``row`` with the scores of its masks against the reference and the labels."""
    scores = scores_of(reference, found)
    return msgspec.structs.replace(
        row, f1=scores.f1, drop_points=scores.drop_points, agreement=scores.agreement, interval=scores.interval,
        notes=[*row.notes, *scores.notes],
    )  # fmt: skip


@contextmanager
def _opened(
    context: Context, candidate: Candidate, engine: Engine, optimised: Path | None = None
) -> Iterator[tuple[Guest, Graph, Description]]:
    """Yields a guest that has opened the graph, the graph, and the engine's description."""
    if isinstance(candidate.graph, ContenderFailed):
        raise candidate.graph
    task, graph = context.task, candidate.graph
    program = foreign(task.python_of(engine.environment), engine.script)
    with Guest(program, task.work / "engines.txt", task.limit_s) as guest:
        settings = {"threads": task.threads, "precision": engine.precision, "optimised": optimised}
        yield guest, graph, guest.call("open", graph=graph.path, **settings)


def _share_as_run(context: Context, description: Description, optimised: Path) -> Share:
    """Returns the INT8 share as run, from OpenVINO's description or from ONNX Runtime's optimised graph."""
    if "products" in description:
        return share_of(msgspec.convert(description["products"], list[Product]), context.costs)
    return share_of(run_products(onnx.load(optimised)), context.costs)


def _is_duplicate(row: Row, before: Row) -> bool:
    """Returns whether an engine chose the precision that was requested in the previous row."""
    return (row.contender, row.engine, row.precision) == (before.contender, before.engine, before.precision)


def _time(context: Context, runnable: dict[int, tuple[Candidate, Engine]]) -> dict[int, Speed | str]:
    """Returns the speed of each row without a failure, or why it could not be measured."""
    task = context.task
    with ExitStack() as running:
        guests = {
            index: running.enter_context(_opened(context, *pair))[0] for index, pair in runnable.items()
        }  # fmt: skip
        return measure(guests, context.evaluation, task.rounds, task.seconds)


def _with_speed(row: Row, found: Speed | str | None) -> Row:
    if isinstance(found, str):
        return msgspec.structs.replace(row, notes=[*row.notes, f"its speed could not be measured: {found}"])
    return msgspec.structs.replace(row, speed=found)

"""Every entrant's answers on all evaluation tiles, and what they are worth; kept where nothing has changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.contest import kept
from benchmarks.contest.guest import Answer, ContenderFailed, Guest
from benchmarks.contest.handover import replay
from benchmarks.contest.peers import step
from benchmarks.contest.scoring import scores_of
from benchmarks.speed.entrants import ALONE, Entrant, chooses_itself
from benchmarks.speed.report import Absent, Row
from misgnet_runtime.accuracy.parity import EvaluatedTile, evaluate_tiles
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.machine import describe_machine
from misgnet_runtime.raster.dataset import TileSet

_OUR_ERROR = re.compile(r"misgnet_runtime\.errors\.\w+: ")  # as a traceback begins it


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The tiles that judge, as a set and handed over in ``handed``, and where answers are kept.

    ``limit_s``: the longest that a step of an entrant may take.
    """

    tiles: TileSet
    handed: Path
    interface: Interface
    threshold: float
    threads: int
    work: Path
    limit_s: float

    @property
    def log(self) -> Path:
        return self.work / "engines.txt"


def examine(exam: Exam, entrants: Sequence[Entrant]) -> tuple[list[tuple[Row, Entrant]], list[Absent]]:
    """A row for each entrant, scored against the first one; and those whose own choice is a row already.

    Raises ContenderFailed where the first one cannot answer.
    """
    first, reference = _answered(exam, entrants[0])
    rows, absent = [(_scored(first, reference, reference), entrants[0])], list[Absent]()
    for entrant in entrants[1:]:
        before = rows[-1][0]
        try:
            if _is_again(exam, entrant, before):
                absent.append(Absent(f"{entrant.title} in {entrant.engine}'s own precision", _same(before)))
                continue
            row, found = _answered(exam, entrant)
        except (ContenderFailed, GateFailed) as error:
            rows.append((_failed(exam, entrant, error), entrant))
            continue
        rows.append((_scored(row, reference, found), entrant))
    return rows, absent


def _is_again(exam: Exam, entrant: Entrant, before: Row) -> bool:
    """Whether an engine that is left to itself would only give ``before`` once more."""
    if not chooses_itself(entrant) or (before.title, before.engine) != (entrant.title, entrant.engine):
        return False
    if before.failed:
        return True
    with start(entrant, exam.log, exam.limit_s) as guest:
        return bool(open_for(guest, entrant, exam.threads)["precision"] == before.precision)


def open_for(guest: Guest, entrant: Entrant, threads: int, setting: Any = ALONE) -> Answer:
    """Ask the guest to open its entrant's engine for ``setting``; how it describes itself."""
    return guest.ask("open", threads=threads, streams=setting.streams, batch=setting.batch, **entrant.opening)


def start(entrant: Entrant, log: Path, limit_s: float) -> Guest:
    """The entrant's process. Raises ContenderFailed where it has none."""
    if isinstance(entrant.program, ContenderFailed):
        raise entrant.program
    return Guest(entrant.program, log, limit_s)


def _answered(exam: Exam, entrant: Entrant) -> tuple[Row, list[EvaluatedTile]]:
    """A row without scores, and the masks."""
    folder = exam.work / "answers" / entrant.key.replace(" ", "-")
    answers, key = folder / "answers.npy", _key(exam, entrant)
    said = kept.read(folder, key)
    if said is None:
        with step(f"{entrant.title} in {entrant.engine}: answering"):
            kept.emptied(folder)
            with start(entrant, exam.log, exam.limit_s) as guest:
                said = open_for(guest, entrant, exam.threads)
                said |= guest.ask("answer", tiles=exam.handed, out=answers)
        kept.write(folder, key, said)
    predict = replay(answers, exam.interface, len(exam.tiles))
    found = evaluate_tiles(entrant.title, predict, exam.tiles, exam.threshold)
    row = Row(
        entrant.key, entrant.title, entrant.engine, entrant.side, said["precision"] or entrant.precision,
        notes=list(entrant.notes), peak_mib=said["peak_mib"],
        versions={**entrant.made_with, **said["versions"]},
    )  # fmt: skip
    return row, found


def _key(exam: Exam, entrant: Entrant) -> str:
    """SHA-256 of all that the answers depend on: the entrant, the tiles, this environment and this processor."""
    versions = {name: _version(name) for name in ("torch", "onnxruntime", "openvino", "numpy")}
    here = describe_machine()["processor"]
    told = json.dumps([entrant.identity, exam.tiles.digest(), repr(exam.interface), versions, here, exam.threads])
    return hashlib.sha256(told.encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _failed(exam: Exam, entrant: Entrant, error: Exception) -> Row:
    reason = _OUR_ERROR.sub("", str(error).replace(f"{exam.work}/", ""))
    return Row(
        entrant.key, entrant.title, entrant.engine, entrant.side, entrant.precision, reason, list(entrant.notes)
    )  # fmt: skip


def _scored(row: Row, reference: list[EvaluatedTile], found: list[EvaluatedTile]) -> Row:
    scores = scores_of(reference, found)
    return Row(
        row.key, row.title, row.engine, row.side, row.precision, "", [*row.notes, *scores.notes], scores.f1,
        scores.drop_points, scores.interval, scores.agreement, peak_mib=row.peak_mib, versions=row.versions,
    )  # fmt: skip


def _same(before: Row) -> str:
    """Why there is no second row."""
    if before.failed:
        return f"it failed in {before.precision} already"
    return f"left to itself it computes in {before.precision} on this processor, and that row is there"

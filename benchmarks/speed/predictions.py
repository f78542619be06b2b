"""Runs every entrant on all evaluation tiles and scores it; predictions are reused if nothing has changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from msgspec.structs import replace as changed

from benchmarks.contest import kept
from benchmarks.contest.guest import ContenderFailed, Guest, Reply
from benchmarks.contest.handover import replay
from benchmarks.contest.peers import step
from benchmarks.contest.scoring import scores_of
from benchmarks.speed.entrants import ALONE, Entrant, chooses_precision
from benchmarks.speed.report import Absent, Row
from misgnet_runtime.accuracy.parity import EvaluatedTile, evaluate_tiles
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.machine import describe_machine
from misgnet_runtime.raster.dataset import TileSet

_OUR_ERROR = re.compile(r"misgnet_runtime\.errors\.\w+: ")  # prefix of the last line of a traceback


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Settings of the evaluation."""

    # Evaluation tiles.
    tiles: TileSet
    # Folder with the tiles as ``.npy`` files.
    handed: Path
    interface: Interface
    threshold: float
    threads: int
    # Folder where predictions are kept.
    work: Path
    # Time limit of one step in seconds.
    limit_s: float

    @property
    def log(self) -> Path:
        return self.work / "engines.txt"


def examine(exam: Exam, entrants: Sequence[Entrant]) -> tuple[list[tuple[Row, Entrant]], list[Absent]]:
    """Returns a row for each entrant, scored against the first one, and the entrants that would duplicate a row.

    Raises:
        ContenderFailed: The first entrant fails.
    """
    first, reference = _evaluated(exam, entrants[0])
    rows, absent = [(_scored(first, reference, reference), entrants[0])], list[Absent]()
    for entrant in entrants[1:]:
        before = rows[-1][0]
        try:
            if _is_duplicate(exam, entrant, before):
                absent.append(Absent(f"{entrant.title} in {entrant.engine}'s own precision", _same(before)))
                continue
            row, found = _evaluated(exam, entrant)
        except (ContenderFailed, GateFailed) as error:
            rows.append((_failed(exam, entrant, error), entrant))
            continue
        rows.append((_scored(row, reference, found), entrant))
    return rows, absent


def _is_duplicate(exam: Exam, entrant: Entrant, before: Row) -> bool:
    """Returns whether an engine that chooses its own precision would only repeat the row ``before``."""
    if not chooses_precision(entrant) or (before.title, before.engine) != (entrant.title, entrant.engine):
        return False
    if before.failed:
        return True
    with start(entrant, exam.log, exam.limit_s) as guest:
        return bool(open_for(guest, entrant, exam.threads)["precision"] == before.precision)


def open_for(guest: Guest, entrant: Entrant, threads: int, setting: Any = ALONE) -> Reply:
    """Opens the entrant's engine in the guest for ``setting``; returns the engine's description."""
    return guest.call("open", threads=threads, streams=setting.streams, batch=setting.batch, **entrant.opening)


def start(entrant: Entrant, log: Path, limit_s: float) -> Guest:
    """Starts the entrant's process; raises ContenderFailed if it cannot be started."""
    if isinstance(entrant.program, ContenderFailed):
        raise entrant.program
    return Guest(entrant.program, log, limit_s)


def _evaluated(exam: Exam, entrant: Entrant) -> tuple[Row, list[EvaluatedTile]]:
    """Returns a row without scores, and the masks."""
    folder = exam.work / "answers" / entrant.key.replace(" ", "-")
    predictions, key = folder / "answers.npy", _key(exam, entrant)
    reply = kept.read(folder, key)
    if reply is None:
        with step(f"{entrant.title} in {entrant.engine}: running"):
            kept.emptied(folder)
            with start(entrant, exam.log, exam.limit_s) as guest:
                reply = open_for(guest, entrant, exam.threads)
                reply |= guest.call("predict", tiles=exam.handed, out=predictions)
        kept.write(folder, key, reply)
    predict = replay(predictions, exam.interface, len(exam.tiles))
    found = evaluate_tiles(entrant.title, predict, exam.tiles, exam.threshold)
    row = Row(
        entrant.key, entrant.title, entrant.engine, entrant.side, reply["precision"] or entrant.precision,
        notes=list(entrant.notes), peak_mib=reply["peak_mib"],
        versions={**entrant.made_with, **reply["versions"]},
    )  # fmt: skip
    return row, found


def _key(exam: Exam, entrant: Entrant) -> str:
    """Returns the SHA-256 of everything that predictions depend on: entrant, tiles, environment and processor."""
    versions = {name: _version(name) for name in ("torch", "onnxruntime", "openvino", "numpy")}
    here = describe_machine()["processor"]
    text = json.dumps([entrant.identity, exam.tiles.digest(), repr(exam.interface), versions, here, exam.threads])
    return hashlib.sha256(text.encode()).hexdigest()


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
    return changed(
        row, notes=[*row.notes, *scores.notes], f1=scores.f1, drop_points=scores.drop_points,
        interval=scores.interval, agreement=scores.agreement,
    )  # fmt: skip


def _same(before: Row) -> str:
    """Returns why there is no second row."""
    if before.failed:
        return f"it failed in {before.precision} already"
    return f"by default it computes in {before.precision} on this processor, which already has a row"

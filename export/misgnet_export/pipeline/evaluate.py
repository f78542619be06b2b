"""Evaluates every engine on every evaluation tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misgnet_export.evidence import TilePicture
from misgnet_export.pipeline.progress import Stage, StageLog
from misgnet_export.pipeline.request import AccuracyPolicy
from misgnet_export.report import pick_tiles
from misgnet_runtime.accuracy.gate import Verdict
from misgnet_runtime.accuracy.parity import (
    EngineParity,
    EvaluatedTile,
    ParityReport,
    Status,
    compare,
    evaluate_tiles,
    report,
)
from misgnet_runtime.bundle import EngineEntry, Interface
from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.callables import Predict
from misgnet_runtime.engines import Engine, ExecutionOptions, is_on_cpu, open_engine_file, streams_on_cpu
from misgnet_runtime.errors import GateFailed, UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.detector import ChangeDetector, tile_per_stream
from misgnet_runtime.raster.dataset import TileSet, read_tile
from misgnet_runtime.raster.display import displayed

WORST_SHOWN = 6
TYPICAL_SHOWN = 3


@dataclass(frozen=True)
class Running:
    """An open engine or its proxy."""

    entry: EngineEntry
    detector: ChangeDetector
    status: Status
    reason: str  # why a proxy runs instead of the engine; may be empty


@dataclass(frozen=True)
class Reference:
    """The float model's masks of the evaluation tiles."""

    name: str
    evaluated: list[EvaluatedTile]


def evaluate_reference(name: str, predict: Predict, tiles: TileSet, policy: AccuracyPolicy, log: StageLog) -> Reference:
    """Runs the float model ``name`` on all ``tiles``. Raises GateFailed if it outputs NaN."""
    with log.stage(f"evaluate {name}") as stage:
        found = evaluate_tiles(name, predict, tiles, policy.threshold, progress=stage.progress)
        stage.finding = f"{plural(len(tiles), 'tile')} of {plural(len(tiles.sources), 'image')}"
    return Reference(name, found)


def evaluate_engines(
    entries: Sequence[EngineEntry], tiles: TileSet, reference: Reference,
    *, files: Path | CheckedFiles, interface: Interface, policy: AccuracyPolicy, log: StageLog,
) -> tuple[ParityReport, dict[str, list[TilePicture]]]:  # fmt: skip
    """Runs every engine on all ``tiles`` and compares it with the reference.

    An engine that this machine cannot run is evaluated by proxy: its graph runs in ONNX Runtime, and the result is
    marked "proxy" with the reason. A BF16 engine has no proxy, since its graph is the float graph. An engine that
    outputs NaN fails the gate.

    Args:
        entries: The engines.
        tiles: The evaluation set.
        reference: The float model's masks of these tiles.
        files: The folder that the engines' files are relative to.
        interface: Inputs and outputs of the network.
        policy: Threshold, limit and gate rule.
        log: Runs and records the stages.

    Returns:
        The report, and pictures of tiles by engine.
    """
    name, expected = reference.name, reference.evaluated
    results, pictures = [], {}
    for entry in entries:
        with log.stage(f"evaluate {entry.name}") as stage:
            try:
                with _runnable(entry, files, interface) as running:
                    result, found = _evaluated(running, tiles, expected, policy, stage)
            except UnavailableError as error:
                why, found = str(error), None
                result = EngineParity(engine=entry.name, precision=entry.precision, status="not run", reason=why)
            if found is not None:
                pictures[entry.name] = _pictures(tiles, expected, found, result)
            results.append(result)
            reason = result.verdict.reason if result.verdict else result.reason
            stage.finding = reason if result.status == "run" else f"{result.status}: {reason}"
    parity = report(name, expected, tiles, results, threshold=policy.threshold, limit=policy.limit, gate=policy.gate)
    return parity, pictures


def _evaluated(
    running: Running, tiles: TileSet, expected: list[EvaluatedTile], policy: AccuracyPolicy, stage: Stage
) -> tuple[EngineParity, list[EvaluatedTile] | None]:
    """Returns the verdict on one engine, and its masks; None instead of masks if its output is not finite."""
    entry, device = running.entry, running.detector.engine.device
    try:
        with tile_per_stream(running.detector) as predict:
            found = evaluate_tiles(entry.name, predict, tiles, policy.threshold, progress=stage.progress)
    except GateFailed as error:
        verdict = Verdict(False, "finite output", 0.0, 0.0, str(error))
        failed = EngineParity(
            engine=entry.name, precision=entry.precision, status=running.status, reason=running.reason,
            device=device, verdict=verdict,
        )  # fmt: skip
        return failed, None
    result = compare(
        entry.name, entry.precision, expected, found, policy.limit,
        device=device, status=running.status, reason=running.reason, gate=policy.gate, labelled=tiles.labelled,
    )  # fmt: skip
    return result, found


@contextmanager
def _runnable(entry: EngineEntry, files: Path | CheckedFiles, interface: Interface) -> Iterator[Running]:
    """Opens the engine, or its graph in ONNX Runtime as a proxy if this machine cannot run the engine.

    Raises UnavailableError if a proxy would show nothing: a float graph does not reproduce BF16 rounding.
    """
    status: Status = "run"
    reason = ""
    try:
        engine = open_for_evaluation(entry, files, interface)
    except UnavailableError as error:
        if entry.precision == "bf16":
            raise
        stand_in = EngineEntry(entry.name, "onnxruntime", entry.graph, entry.graph, entry.precision, "")
        engine = open_for_evaluation(stand_in, files, interface)
        status = "proxy"
        reason = entry.compiled if entry.on_device else f"does not run here: {error.short}"
    with ChangeDetector(engine, interface) as detector:
        yield Running(entry, detector, status, reason)


def open_for_evaluation(entry: EngineEntry, files: Path | CheckedFiles, interface: Interface) -> Engine:
    """Opens an engine with one stream per core; a GPU engine gets one stream and whole batches."""
    streams = streams_on_cpu() if is_on_cpu(entry) else 1
    return open_engine_file(entry, files, interface.max_batch, ExecutionOptions(streams=streams))


def _pictures(
    tiles: TileSet, reference: list[EvaluatedTile], found: list[EvaluatedTile], result: EngineParity
) -> list[TilePicture]:
    """Returns pictures of the worst tiles and of some typical ones; reads these tiles again."""
    index = {ref.name: i for i, ref in enumerate(tiles)}
    shown = []
    for name, kind in pick_tiles(result, WORST_SHOWN, TYPICAL_SHOWN):
        i = index[name]
        tile = read_tile(tiles[i])
        rows, columns = tile.owned
        before, after = displayed(tile.before, tile.after)
        differing = int(np.count_nonzero(reference[i].mask != found[i].mask))
        shown.append(
            TilePicture(
                name=name, caption=f"{kind}: {plural(differing, 'differing pixel')}",
                before=before[rows, columns], after=after[rows, columns], label=tile.label[rows, columns],
                reference=reference[i].mask, engine=found[i].mask,
            )
        )  # fmt: skip
    return shown

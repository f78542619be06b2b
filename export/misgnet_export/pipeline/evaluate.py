"""The judging stages: every engine on every evaluation tile, and side by side against the clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from misgnet_export.pipeline.progress import Stage, StageLog
from misgnet_export.report import TilePicture, pick_tiles
from misgnet_runtime.accuracy.gate import Verdict
from misgnet_runtime.accuracy.parity import EngineParity, Judged, ParityReport, Status, compare, judge, report
from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.golden import GoldenTiles
from misgnet_runtime.bundle.manifest import EngineEntry, GateRule, Interface
from misgnet_runtime.callables import Predict
from misgnet_runtime.engines import Engine, ExecutionOptions, is_on_cpu, open_engine_file, streams_on_cpu
from misgnet_runtime.errors import GateFailed, UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.detector import ChangeDetector, tile_per_stream
from misgnet_runtime.inference.throughput import Task, Timing, measure
from misgnet_runtime.raster.dataset import Tile, TileSet, read_tile, stack

WORST_SHOWN = 6
TYPICAL_SHOWN = 3
GOLDEN_TILES = 4
BATCHES = (1, 4)


def judge_engines(
    entries: Sequence[EngineEntry], root: Path | CheckedFiles, interface: Interface, tiles: TileSet,
    reference: tuple[str, Predict], threshold: float, max_f1_drop: float, gate: GateRule, log: StageLog,
) -> tuple[ParityReport, dict[str, list[TilePicture]]]:  # fmt: skip
    """Run ``reference`` (name, function) and every engine on all ``tiles``.

    An engine that this machine cannot run is judged by its graph in ONNX Runtime, marked "proxy" with the
    reason; one in BF16 is not judged, since its graph is the float graph. An engine that answers NaN fails the
    gate; the reference doing so raises GateFailed.
    """
    name, predict = reference
    with log.stage(f"judge {name}") as stage:
        expected = judge(name, predict, tiles, threshold, progress=stage.progress)
        stage.finding = f"{len(tiles)} tiles of {plural(len(tiles.sources), 'image')}"
    results, pictures = [], {}
    for entry in entries:
        with log.stage(f"judge {entry.name}") as stage:
            try:
                with _runnable(entry, root, interface) as running:
                    result, found = _judged(entry, running, tiles, expected, threshold, max_f1_drop, gate, stage)
            except UnavailableError as error:
                result, found = (
                    EngineParity(engine=entry.name, precision=entry.precision, status="not run", reason=str(error)),
                    None,
                )
            if found is not None:
                pictures[entry.name] = _pictures(tiles, expected, found, result)
            results.append(result)
            said = result.verdict.reason if result.verdict else result.reason
            stage.finding = said if result.status == "run" else f"{result.status}: {said}"
    return report(name, expected, tiles, results, threshold=threshold, max_f1_drop=max_f1_drop, gate=gate), pictures


def _judged(
    entry: EngineEntry, running: tuple[ChangeDetector, Status, str], tiles: TileSet, expected: list[Judged],
    threshold: float, max_f1_drop: float, gate: GateRule, stage: Stage,
) -> tuple[EngineParity, list[Judged] | None]:  # fmt: skip
    """The verdict on one engine and its masks; without masks where its answers are no numbers."""
    detector, status, reason = running
    device = detector.engine.device
    try:
        with tile_per_stream(detector) as predict:
            found = judge(entry.name, predict, tiles, threshold, progress=stage.progress)
    except GateFailed as error:
        return _without_answer(entry, status, reason, device, error), None
    result = compare(entry.name, entry.precision, expected, found, max_f1_drop,
                     device=device, status=status, reason=reason, gate=gate)  # fmt: skip
    return result, found


def _without_answer(entry: EngineEntry, status: Status, reason: str, device: str, error: GateFailed) -> EngineParity:
    """A failed verdict for an engine whose answers are no numbers."""
    verdict = Verdict(False, "finite answers", 0.0, 0.0, str(error))
    return EngineParity(
        engine=entry.name, precision=entry.precision, status=status, reason=reason, device=device, verdict=verdict
    )


@contextmanager
def _runnable(
    entry: EngineEntry, root: Path | CheckedFiles, interface: Interface
) -> Iterator[tuple[ChangeDetector, Status, str]]:
    """The engine, or its graph in ONNX Runtime as a stated proxy where this machine cannot run it.

    Raises UnavailableError where that would prove nothing: a float graph says nothing of BF16.
    """
    status: Status = "run"
    reason = ""
    try:
        engine = open_to_judge(entry, root, interface)
    except UnavailableError as error:
        if entry.precision == "bf16":
            raise
        stand_in = EngineEntry(entry.name, "onnxruntime", entry.graph, entry.graph, entry.precision, "")
        engine = open_to_judge(stand_in, root, interface)
        status = "proxy"
        reason = entry.compiled if entry.on_device else f"not run: {error}"
    with ChangeDetector(engine, interface) as detector:
        yield detector, status, reason


def open_to_judge(entry: EngineEntry, root: Path | CheckedFiles, interface: Interface) -> Engine:
    """With a stream for each core; a GPU is given whole batches, one after the other."""
    streams = streams_on_cpu() if is_on_cpu(entry) else 1
    return open_engine_file(entry, root, interface.max_batch, ExecutionOptions(streams=streams))


def _pictures(tiles: TileSet, reference: list[Judged], found: list[Judged], result: EngineParity) -> list[TilePicture]:
    """The worst and some typical tiles, read again."""
    index = {ref.name: i for i, ref in enumerate(tiles)}
    shown = []
    for name, kind in pick_tiles(result, WORST_SHOWN, TYPICAL_SHOWN):
        i = index[name]
        tile = read_tile(tiles[i])
        rows, columns = tile.owned
        differing = int(np.count_nonzero(reference[i].mask != found[i].mask))
        shown.append(
            TilePicture(
                name,
                f"{kind}: {differing} pixels differ",
                tile.before[rows, columns],
                tile.after[rows, columns],
                tile.label[rows, columns],
                reference[i].mask,
                found[i].mask,
            )
        )
    return shown


def choose_golden(tiles: TileSet, parity: ParityReport, predict: Predict) -> GoldenTiles:
    """A few evaluation tiles with the float model's answer: those with most change first, of several images."""
    entries = parity.engines[0].tiles
    order = sorted(range(len(tiles)), key=lambda i: (-(entries[i].reference[0] + entries[i].reference[2]), i))
    picked = _first_of_each_source(tiles, order)[:GOLDEN_TILES]
    chosen: list[Tile] = [read_tile(tiles[i]) for i in picked]
    before, after = stack(chosen)
    return GoldenTiles(before, after, predict(before, after))


def _first_of_each_source(tiles: TileSet, order: list[int]) -> list[int]:
    """``order`` with the first tile of each image in front."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for i in order:
        name = tiles[i].source.name
        (rest if name in seen else first).append(i)
        seen.add(name)
    return first + rest


def time_engines(
    entries: Sequence[EngineEntry], root: Path, interface: Interface, golden: Path, log: StageLog
) -> list[Timing]:
    """Latency and throughput of engines that run here, float and INT8 side by side, each in its own process."""
    batches = [b for b in BATCHES if b <= interface.max_batch]
    with log.stage("measure throughput") as stage:
        timings: list[Timing] = []
        for batch in batches:
            tasks = [Task(entry, str(root), interface, str(golden), batch=batch) for entry in entries]
            timings += measure(tasks, progress=stage.progress)
        best = {e.name: max(t.pairs_per_second for t in timings if t.engine == e.name) for e in entries}
        stage.finding = ", ".join(f"{name} {value:.1f} pairs/s" for name, value in best.items())
    return timings

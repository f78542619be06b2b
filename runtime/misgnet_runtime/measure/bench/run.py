"""Runs a benchmark of a bundle and returns its report."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.signing.policy import required_elsewhere
from misgnet_runtime.callables import Progress
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.inference.throughput import RailEnergy, Task, Timing, Workload, measure
from misgnet_runtime.machine import describe_machine, installed_versions, usable_cores
from misgnet_runtime.measure.bench.matrix import BenchMatrix, make_matrix, tasks_of
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.measure.bench.report import (
    BenchReport,
    Conditions,
    Power,
    SceneFigure,
    Settings,
    choose_reference,
    fastest,
    ratios_to,
)
from misgnet_runtime.measure.bench.scene import SceneTask, check_scene, run_scene
from misgnet_runtime.measure.matrix_baseline import MatrixProduct
from misgnet_runtime.measure.sensors.clocks import DeviceState, read_state, summary, throttling, watch_state
from misgnet_runtime.measure.sensors.nvpmodel import power_mode
from misgnet_runtime.measure.sensors.power import Energy, PowerMeter, count_energy, find_meters

_VERSIONS = ("misgnet-export", "numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def run_bench(
    path: Path,
    options: BenchOptions,
    progress: Progress | None = None,
    *,
    meters_here: Callable[[], tuple[list[PowerMeter], list[str]]] = find_meters,
) -> BenchReport:
    """Benchmarks the engines of a bundle.

    Args:
        path: Bundle folder.
        options: What is measured, and for how long.
        progress: Called with the number of finished rounds and the total.
        meters_here: Returns the power meters, and the reasons why others are unavailable.

    Raises:
        InputError: The bundle does not match its manifest.
        UsageError: An option is invalid; see :func:`make_matrix`.
        UnavailableError: A requested engine does not run here, or none does.
        MisgnetError: A worker process fails, or ``misgnet-run predict`` fails on the scene.
    """
    bundle = read_bundle(path)
    if options.scene:
        check_scene(*options.scene, bundle.manifest.interface.pixels)
    matrix = make_matrix(bundle, options)
    meters, missing = meters_here()
    mode, before, watched = power_mode(), read_state(), list[DeviceState]()
    with watch_state(watched):
        timings, product = _measure_all(bundle, matrix, options, meters, progress)
    scene = _scene(bundle, options.scene, options.threads, fastest(timings)) if options.scene else None
    conditions = Conditions(
        machine=describe_machine(), versions=installed_versions(_VERSIONS), power_modes=(mode, power_mode()),
        before=before, during=summary(watched), after=read_state(),
    )  # fmt: skip
    reference = choose_reference(timings)
    return BenchReport(
        created=timestamp(), bundle=str(bundle.name), bundle_version=bundle.manifest.bundle_version,
        bundle_sha256=bundle.digest(),
        settings=Settings(options.seconds, options.rounds, options.warm_up, options.threads or usable_cores()),
        engines=matrix.runs, not_run=matrix.not_run, timings=timings, reference=reference,
        ratios=ratios_to(reference, timings), power=Power([meter.source for meter in meters], missing),
        conditions=conditions, scene=scene, matrix_product=product,
        warnings=[*throttling([conditions.before, conditions.during, conditions.after]), *_unsteady(timings)],
    )  # fmt: skip


def _measure_all(
    bundle: Bundle, matrix: BenchMatrix, options: BenchOptions, meters: Sequence[PowerMeter], progress: Progress | None
) -> tuple[list[Timing], Timing | None]:
    """Measures all engines together at each setting; at batch 1 and one stream, also the matrix product."""
    settings = matrix.settings()
    found: list[Timing] = []
    product = None
    for index, (batch, streams) in enumerate(settings):
        tasks = tasks_of(bundle, matrix, options, batch, streams)
        report = progress and partial(_report_all, progress, index * options.rounds, len(settings))
        if (batch, streams) == (1, 1):
            *timings, product = _measure(
                tasks, options, meters, report, partial(MatrixProduct, threads=options.threads)
            )
        else:
            timings = _measure(tasks, options, meters, report)
        found += timings
    return found, product


def _measure(
    tasks: Sequence[Task], options: BenchOptions, meters: Sequence[PowerMeter], progress: Progress | None,
    beside: Callable[[float], Workload] | None = None,
) -> list[Timing]:  # fmt: skip
    """Times the engines at one setting, and measures their energy."""
    energies: defaultdict[int, Energy] = defaultdict(Energy)
    timings = measure(
        tasks, options.seconds, progress, rounds=options.rounds,
        during=lambda index: count_energy(meters, energies[index]), beside=beside,
    )  # fmt: skip
    totals = {meter.total for meter in meters}
    return [replace(timing, energy=_rails(energies[i], timing, totals)) for i, timing in enumerate(timings)]


def _rails(energy: Energy, timing: Timing, totals: Collection[str | None]) -> list[RailEnergy]:
    watts = energy.mean_watts()
    return [RailEnergy(rail, w, w / timing.pairs_per_second, rail in totals) for rail, w in watts.items()]


def _report_all(progress: Progress, before: int, settings: int, done: int, rounds: int) -> None:
    progress(before + done, settings * rounds)


def _scene(bundle: Bundle, pair: tuple[Path, Path], threads: int | None, timing: Timing) -> SceneFigure:
    """Runs the scene with the engine and the setting of ``timing``."""
    execution = ExecutionOptions(threads=threads, streams=timing.streams, batch=timing.batch)
    with tempfile.TemporaryDirectory() as folder:
        task = SceneTask(
            bundle=bundle.name, before=pair[0], after=pair[1], output=Path(folder, "change.tif"), engine=timing.engine,
            execution=execution, trust=required_elsewhere(), bundle_sha256=bundle.digest(),
        )  # fmt: skip
        found = run_scene(task)
    speed, alone = found.tiles / found.seconds, timing.pairs_per_second
    return SceneFigure(
        engine=timing.engine, batch=timing.batch, streams=timing.streams, tiles=found.tiles, seconds=found.seconds,
        tiles_per_second=speed, engine_pairs_per_second=alone, share=speed / alone,
    )  # fmt: skip


def _unsteady(timings: list[Timing]) -> list[str]:
    found = [f"{t.engine} at {t.batch}, {t.streams}" for t in timings if t.warm_up and not t.warm_up.steady]
    return [f"not steady after the warm-up (engine at batch, streams): {'; '.join(found)}"] if found else []

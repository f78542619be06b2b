"""A benchmark from a bundle to its report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.signing.policy import required_elsewhere
from misgnet_runtime.callables import Progress
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.inference.throughput import Timing, measure
from misgnet_runtime.machine import describe_machine, installed_versions, usable_cores
from misgnet_runtime.measure.bench.matrix import BenchOptions, Plan, make_plan, tasks_of
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
from misgnet_runtime.measure.sensors.clocks import DeviceState, read_state, summary, throttling, watch_state
from misgnet_runtime.measure.sensors.nvpmodel import power_mode
from misgnet_runtime.measure.sensors.power import PowerMeter, find_meters

_VERSIONS = ("misgnet-export", "numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def run_bench(path: Path, options: BenchOptions, progress: Progress | None = None) -> BenchReport:
    """Measure what :func:`make_plan` finds; ``progress`` is told of rounds.

    Raises InputError for a bundle that is not what its manifest says, what :func:`make_plan` raises, MisgnetError
    where a worker fails, and for a scene what ``misgnet-run predict`` raises.
    """
    bundle = read_bundle(path)
    if options.scene:
        check_scene(*options.scene)
    plan = make_plan(bundle, options)
    meters, missing = find_meters()
    mode, before, watched = power_mode(), read_state(), list[DeviceState]()
    with watch_state(watched):
        timings, product = _measure_all(bundle, plan, options, meters, progress)
    scene = _scene(bundle, options.scene, options.threads, fastest(timings)) if options.scene else None
    states = before, summary(watched), read_state()
    return _report(
        bundle, plan, options, timings, Power([meter.source for meter in meters], missing),
        Conditions(describe_machine(), installed_versions(_VERSIONS), (mode, power_mode()), *states), scene, product,
    )  # fmt: skip


def _report(
    bundle: Bundle, plan: Plan, options: BenchOptions, timings: list[Timing], power: Power, conditions: Conditions,
    scene: SceneFigure | None, product: Timing | None,
) -> BenchReport:  # fmt: skip
    reference = choose_reference(timings)
    return BenchReport(
        created=timestamp(),
        bundle=str(bundle.name),
        bundle_version=bundle.manifest.bundle_version,
        bundle_sha256=bundle.digest(),
        settings=Settings(options.seconds, options.rounds, options.warm_up, options.threads or usable_cores()),
        engines=plan.runs,
        not_run=plan.not_run,
        timings=timings,
        reference=reference,
        ratios=ratios_to(reference, timings),
        power=power,
        conditions=conditions,
        scene=scene,
        warnings=[*throttling([conditions.before, conditions.during, conditions.after]), *_unsettled(timings)],
        matrix_product=product,
    )


def _measure_all(
    bundle: Bundle, plan: Plan, options: BenchOptions, meters: Sequence[PowerMeter], progress: Progress | None
) -> tuple[list[Timing], Timing | None]:
    """Setting after setting, and at each all engines side by side; also the matrix product beside single calls."""
    settings = plan.settings()
    found: list[Timing] = []
    product = None
    for index, (batch, streams) in enumerate(settings):
        tasks = tasks_of(bundle, plan, options, batch, streams)
        before = index * options.rounds
        tell = progress and partial(_tell_of_all, progress, before, len(settings))
        alone = (batch, streams) == (1, 1)
        found += measure(tasks, options.seconds, tell, rounds=options.rounds, meters=meters, product=alone)
        if alone:
            product = found.pop()
    return found, product


def _tell_of_all(progress: Progress, before: int, settings: int, done: int, rounds: int) -> None:
    progress(before + done, settings * rounds)


def _scene(bundle: Bundle, pair: tuple[Path, Path], threads: int | None, timing: Timing) -> SceneFigure:
    """Of the engine and the setting that ``timing`` measured."""
    with tempfile.TemporaryDirectory() as folder:
        places = str(bundle.name), str(pair[0]), str(pair[1]), f"{folder}/change.tif"
        trust = required_elsewhere()
        key = None if trust is None or trust.key is None else str(trust.key)
        signed = key, trust is not None and trust.allow_older
        task = SceneTask(*places, timing.engine, timing.batch, timing.streams, threads, *signed, bundle.digest())
        found = run_scene(task)
    speed, alone = found.tiles / found.seconds, timing.pairs_per_second
    return SceneFigure(
        timing.engine, timing.batch, timing.streams, found.tiles, found.seconds, speed, alone, speed / alone
    )  # fmt: skip


def _unsettled(timings: list[Timing]) -> list[str]:
    found = [f"{t.engine} at {t.batch}, {t.streams}" for t in timings if t.warm_up and not t.warm_up.steady]
    return [f"not steady after their warm-up (engine at batch, streams): {'; '.join(found)}"] if found else []

"""Implements ``misgnet-run bench`` and prints its report as text. Cheap to import.

The tables interpret no markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.text import Text

from misgnet_runtime.cli.options import BundlePath, takes_options
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current, is_json
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.tables import plain_table, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from misgnet_runtime.inference.throughput import Timing
    from misgnet_runtime.measure.bench.report import BenchReport, Conditions, SceneFigure
    from misgnet_runtime.measure.sensors.clocks import Clock, DeviceState

_UNREPORTED = "not reported by this system"


@takes_options
def bench(
    bundle: BundlePath,
    *,
    options: BenchOptions,
    json_file: Annotated[
        Optional[Path],  # noqa: UP045 - typer on 3.10
        typer.Option("--json", help="Also write the whole report to this JSON file (default: not written)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing JSON file.")] = False,
) -> None:
    """Measure how fast this machine runs the engines, and with how much power.

    Reports latency percentiles, throughput, energy per rail, power mode, clocks, temperatures and throttling.
    """
    from msgspec.structs import asdict

    from misgnet_runtime.measure.bench.run import run_bench
    from misgnet_runtime.storage.atomic import refuse_existing, write_file
    from misgnet_runtime.storage.schema import encode

    if json_file is not None:
        refuse_existing(json_file, force)
    with current().progress("rounds") as progress:
        report = run_bench(bundle, options, progress)
    if json_file is not None:
        write_file(json_file, encode(report), force=force)
    if not is_json():
        for table in tables(report):
            print_table(table)
    for warning in report.warnings:
        current().warning(warning)
    current().result(list(lines(report)), **asdict(report))


def tables(report: BenchReport) -> list[Table]:
    """Returns the table of speeds and, if power was measured, the table of energies."""
    return [_speeds(report), *([_energies(report)] if any(t.energy for t in report.timings) else [])]


def lines(report: BenchReport) -> Iterator[str]:
    """Yields the lines below the tables: machine, method, engines not run and why, device state, power and scene."""
    from misgnet_runtime.inference.comparison import lines_of_not_run
    from misgnet_runtime.machine import machine_line

    conditions = report.conditions
    yield machine_line(conditions.machine)
    yield _method(report)
    yield from (f"{engine.engine} runs on {engine.device}" for engine in report.engines)
    yield from lines_of_not_run(report.not_run)
    if conditions.power_modes[0]:
        yield f"power mode {conditions.power_modes[0]} before, {conditions.power_modes[1]} after"
    yield from _states(conditions)
    if report.power.meters:
        yield (
            f"power by {', '.join(report.power.meters)}: energy per pair is the mean watts of a round times its "
            "seconds, divided by its pairs"
        )
    if report.power.missing:
        yield f"power not measured: {'; '.join(report.power.missing)}"
    if report.matrix_product:
        yield _evenness(report.timings, report.matrix_product)
    if report.scene:
        yield _scene(report.scene)


def _speeds(report: BenchReport) -> Table:
    table = _table("Latency per call, and throughput")
    for name in ("p50,\nms", "p90,\nms", "p99,\nms", "max,\nms", "Pairs/s", "Rounds,\nmin to max", "Ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for timing, ratio in zip(report.timings, report.ratios, strict=True):
        times = (timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.max_ms or 0.0)
        spread = f"{_short(min(timing.rounds))} to {_short(max(timing.rounds))}"
        table.add_row(
            *_setting(timing), *map(_short, times), _short(timing.pairs_per_second), spread, f"{ratio:.2f} x"
        )  # fmt: skip
    table.caption = Text(f"Ratio: speed relative to {report.reference} at the same batch and streams", style="dim")
    return table


def _energies(report: BenchReport) -> Table:
    table = _table("Power and energy by rail")
    table.add_column("Rail", overflow="fold")
    for name in ("Mean W", "J per pair"):
        table.add_column(name, justify="right", no_wrap=True)
    for timing in report.timings:
        for entry in timing.energy:
            rail = f"{entry.rail} (the whole module)" if entry.total else entry.rail
            table.add_row(*_setting(timing), Text(rail), f"{entry.watts:.2f}", f"{entry.joules_per_pair:.4f}")
    return table


def _table(title: str) -> Table:
    table = plain_table(title)
    table.add_column("Engine", overflow="fold", min_width=10)
    table.add_column("Batch,\nstreams", justify="right", no_wrap=True)
    return table


def _setting(timing: Timing) -> tuple[Text, str]:
    return Text(timing.engine), f"{timing.batch}, {timing.streams}"


def _method(report: BenchReport) -> str:
    settings = report.settings
    counts = [timing.calls for timing in report.timings]
    fewest, most = min(counts), max(counts)
    calls = plural(most, "call") if fewest == most else f"{fewest} to {most} calls"
    warm = [timing.warm_up.seconds for timing in report.timings if timing.warm_up]
    return (
        f"method: each engine ran in its own process with {plural(settings.threads, 'thread')}; engines with the same "
        f"batch and streams alternated in {plural(settings.rounds, 'round')}, for about {settings.seconds:g} s "
        f"({calls}) each; warm-up until two windows of calls agreed within 5 %, at most "
        f"{settings.warm_up:g} s: {min(warm):.1f} to {max(warm):.1f} s"
    )


def _evenness(timings: list[Timing], product: Timing) -> str:
    """Returns p99 / p50 of the engines and of a matrix product, which shows the machine's own share of slow calls."""
    alone = [t for t in timings if (t.batch, t.streams) == (product.batch, product.streams)]
    engines = ", ".join(f"{t.engine} {t.p99_ms / t.p50_ms:.2f}" for t in alone)
    return (
        f"p99 / p50 of single calls at batch 1: {engines}; for comparison, a float32 matrix product of NumPy "
        f"({product.p50_ms:.1f} ms) in the same rounds: {product.p99_ms / product.p50_ms:.2f}"
    )


def _states(conditions: Conditions) -> list[str]:
    """Returns the device state before, during and after the measurement; one line if all three are equal."""
    before, during, after = map(_state, (conditions.before, conditions.during, conditions.after))
    if before == during == after:
        return [before]
    during = f"while engines ran (median clocks, highest temperatures): {during}"
    return [f"before: {before}", during, f"after: {after}"]


def _state(state: DeviceState) -> str:
    """Returns clocks and temperatures as text; groups clocks of the same kind, limit and governor (one per core)."""
    kinds: dict[tuple[str, float, str], list[Clock]] = {}
    for clock in state.clocks:
        kinds.setdefault((clock.name.split()[0], clock.highest, clock.governor), []).append(clock)
    clocks = [_clock(*kind, clocks) for kind, clocks in kinds.items()]
    memory = [] if state.memory_mhz is None else [f"memory {state.memory_mhz:.0f} MHz"]
    temperatures = [f"{zone} {value:.1f} °C" for zone, value in state.temperatures.items()]
    return (
        f"clocks {', '.join([*clocks, *memory]) or _UNREPORTED}; temperatures {', '.join(temperatures) or _UNREPORTED}"
    )


def _clock(kind: str, highest: float, governor: str, clocks: list[Clock]) -> str:
    low, high = (f"{limit(clock.current for clock in clocks):.0f}" for limit in (min, max))
    pinned = ", pinned" if all(clock.pinned for clock in clocks) else ""
    return f"{kind} {low if low == high else f'{low} to {high}'} of {highest:.0f} MHz ({governor}{pinned})"


def _scene(scene: SceneFigure) -> str:
    return (
        f"scene with {scene.engine}, batch {scene.batch}, streams {scene.streams}: {plural(scene.tiles, 'tile')} in "
        f"{scene.seconds:.1f} s, {scene.tiles_per_second:.1f} tiles/s, {scene.share:.2f} of the engine's "
        f"{scene.engine_pairs_per_second:.1f} pairs/s"
    )


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"

"""Implements ``misgnet-run tune``: measures the engines and saves the fastest settings. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from misgnet_runtime.cli.completion import engine_names
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.log import current, is_json
from misgnet_runtime.tables import plain_table, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from misgnet_runtime.inference.tuned import Measurement, Tuning
    from misgnet_runtime.measure.tune import TuneReport

_OptionalPath = Optional[Path]  # noqa: UP045 - typer on 3.10
_Names = Optional[list[str]]  # noqa: UP045


def tune(
    bundle: BundlePath,
    *,
    engine: Annotated[
        _Names,
        typer.Option(
            "--engine",
            help="Engine to measure; may be repeated. Later commands then choose among these.",
            show_default="all engines that run here",
            autocompletion=engine_names,
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Minutes of measurement per engine, excluding opening and warm-up.")
    ] = 1.0,
    json_file: Annotated[
        _OptionalPath,
        typer.Option("--json", help="Also write all measurements to this JSON file (default: not written)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing JSON file.")] = False,
) -> None:
    """Measure which engine is fastest on this machine, and save its settings for later commands.

    Each engine that runs here and passes the golden tiles is measured with one stream and with as many as keep its
    device busy, on a GPU at the batch sizes of its plan. The fastest settings for one pair and for many pairs are
    saved in $MISGNET_CACHE (default: misgnet in the user's cache) for this bundle, this machine and these library
    versions. All commands except verify and bench use them. Explicit options take precedence, and --no-tuned ignores
    them.
    """
    from msgspec.structs import asdict

    from misgnet_runtime.measure.tune import tune_bundle
    from misgnet_runtime.storage.atomic import refuse_existing, write_file
    from misgnet_runtime.storage.schema import encode

    if json_file is not None:
        refuse_existing(json_file, force)
    report = tune_bundle(bundle, tuple(engine or ()), minutes, current())
    if json_file is not None:
        write_file(json_file, encode(report), force=force)
    if not is_json():
        print_table(table(report.tuning))
    current().result(list(lines(report)), **asdict(report))


def table(tuning: Tuning) -> Table:
    """Returns the table of all measurements, fastest first. It interprets no markup."""
    from rich.text import Text

    rounds = min(len(each.rounds) for each in tuning.measurements)
    caption = (
        f"Medians of {rounds} alternating rounds. Ratio: speed relative to {_name(tuning.measurements[0])}. Spread: "
        "interquartile range of the rounds' ratios. If named: when chosen with --engine."
    )
    found = plain_table("Speed of each engine and setting")
    found.caption = Text(caption, style="dim")
    found.add_column("Engine", overflow="fold")
    for name in ("Streams", "Batch", "Pairs/s", "Ratio", "Spread, %"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("Chosen for", overflow="fold")
    for each in sorted(tuning.measurements, key=lambda each: -each.ratio):
        figures = f"{each.pairs_per_second:.2f}", f"{each.ratio:.2f}", f"{100 * each.spread:.1f}"
        numbers = str(each.setting.streams), str(each.setting.batch)
        found.add_row(Text(each.engine), *numbers, *figures, ", ".join(_chosen_for(tuning, each)))
    return found


def lines(report: TuneReport) -> Iterator[str]:
    """Yields the settings that later commands use, and each engine not measured, with the reason."""
    from misgnet_runtime.inference.comparison import lines_of_not_run

    for workload in ("one pair", "many pairs"):
        for each in report.tuning.measurements:
            if workload in _chosen_for(report.tuning, each):
                yield f"for {workload}: {_name(each)}, {each.pairs_per_second:.2f} pairs/s"
    yield f"saved in {report.file}"
    yield from lines_of_not_run(report.not_run)


def _name(measurement: Measurement) -> str:
    return f"{measurement.engine}, {measurement.setting.describe()}"


def _chosen_for(tuning: Tuning, measurement: Measurement) -> Iterator[str]:
    engine, setting = measurement.engine, measurement.setting
    if engine == tuning.latency and setting == tuning.setting(engine, "latency"):
        yield "one pair"
    if setting == tuning.settings.get(engine):
        yield "many pairs" if engine == tuning.throughput else "many pairs, if named"

"""``misgnet-run bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli import bench_options as arguments
from misgnet_runtime.log import current, is_json, out_console


def bench(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    *,
    engine: arguments.Engines = None,
    batch: arguments.Batches = None,
    streams: arguments.Streams = None,
    threads: arguments.Threads = None,
    seconds: arguments.Seconds = 5.0,
    rounds: arguments.Rounds = 5,
    warm_up: arguments.WarmUp = 10.0,
    scene: arguments.Scene = None,
    json_file: arguments.JsonFile = None,
    force: arguments.Force = False,
) -> None:
    """How fast this machine runs the engines, at what power, and in what state it was.

    Latency percentiles, throughput, energy by rail, power mode, clocks, temperatures and throttling.
    """
    from msgspec.structs import asdict

    from misgnet_runtime.cli.bench_tables import lines, tables
    from misgnet_runtime.measure.bench.matrix import BenchOptions
    from misgnet_runtime.measure.bench.run import run_bench
    from misgnet_runtime.storage.atomic import refuse_existing, write_file
    from misgnet_runtime.storage.schema import encode

    if json_file is not None:
        refuse_existing(json_file, force)
    options = BenchOptions(
        engines=tuple(engine or ()), batches=tuple(batch or ()), streams=tuple(streams or ()), threads=threads,
        seconds=seconds, rounds=rounds, warm_up=warm_up, scene=scene,
    )  # fmt: skip
    with current().progress("rounds") as progress:
        report = run_bench(bundle, options, progress)
    if json_file is not None:
        write_file(json_file, encode(report), force=force)
    if not is_json():
        for table in tables(report):
            out_console.print(table)
    for warning in report.warnings:
        current().warning(warning)
    current().result(list(lines(report)), **asdict(report))

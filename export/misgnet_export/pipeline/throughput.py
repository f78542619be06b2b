"""Measures latency and throughput of the engines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from misgnet_export.pipeline.context import BuildContext
from misgnet_runtime.bundle import EngineEntry
from misgnet_runtime.inference.throughput import Task, Timing, measure

_BATCHES = (1, 4)
_ROUNDS, _ENOUGH_ROUNDS = 10, 4  # short rounds, so that a steady machine needs only few


def time_engines(context: BuildContext, entries: Sequence[EngineEntry], golden: Path) -> list[Timing]:
    """Measures engines that run on this machine, float and INT8 side by side, each in its own process."""
    interface = context.interface
    with context.log.stage("measure throughput") as stage:
        timings: list[Timing] = []
        for batch in [b for b in _BATCHES if b <= interface.max_batch]:
            tasks = [Task(entry, str(context.root), interface, str(golden), batch=batch) for entry in entries]
            timings += measure(tasks, progress=stage.progress, rounds=_ROUNDS, enough_rounds=_ENOUGH_ROUNDS)
        best = {e.name: max(t.pairs_per_second for t in timings if t.engine == e.name) for e in entries}
        stage.finding = ", ".join(f"{name} {value:.1f} pairs/s" for name, value in best.items())
    return timings

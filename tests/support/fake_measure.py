"""Replaces the measuring of engines in child processes, which cannot see the fakes of a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.inference import comparison
from misgnet_runtime.inference.throughput import Task, Timing

Speeds = Callable[[Task], "float | list[float] | None"]


def fake_measure(monkeypatch: pytest.MonkeyPatch, speeds: Speeds) -> list[list[Task]]:
    """Replaces measuring: ``speeds`` returns the speed of a task, the speeds of its rounds, or None to fail it."""
    calls: list[list[Task]] = []

    def measure(tasks: Sequence[Task], seconds: float, *, rounds: int) -> list[Timing]:
        calls.append(list(tasks))
        found = []
        for task in tasks:
            if (speed := speeds(task)) is None:
                raise MisgnetError(f"the benchmark of {task.name} at batch {task.batch} ended early: no message")
            of_rounds = speed if isinstance(speed, list) else [speed] * rounds
            timing = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "pairs_per_second"), 1.0)
            found.append(Timing(engine=task.name, precision="", batch=task.batch, calls=9, rounds=of_rounds, **timing))
        return found

    monkeypatch.setattr(comparison, "measure", measure)
    return calls

"""Throughput: a process an engine, measured in turn, and none of them left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bundles import FLOAT, INT8, INTERFACE, RTX, make_bundle
from misgnet_runtime import throughput
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.manifest import EngineEntry
from misgnet_runtime.throughput import ROUNDS, Task, measure


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def task(bundle: Path, entry: EngineEntry, batch: int = 1) -> Task:
    return Task(entry, str(bundle), INTERFACE, str(bundle / "golden/tiles.npz"), batch, threads=1)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[throughput._Worker]:
    """The workers that were started; their calls go to ``calls``."""
    started: list[throughput._Worker] = []
    start = throughput._Worker.__init__

    def noted(self: throughput._Worker, task: Task) -> None:
        start(self, task)
        started.append(self)

    monkeypatch.setattr(throughput._Worker, "__init__", noted)
    return started


def test_engines_are_timed_in_turn(
    bundle: Path, workers: list[throughput._Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    run = throughput._Worker.run

    def noted(self: throughput._Worker, calls: int) -> list[float]:
        turns.append(self.name)
        return run(self, calls)

    monkeypatch.setattr(throughput._Worker, "run", noted)
    rounds: list[tuple[int, int]] = []
    timings = measure([task(bundle, FLOAT), task(bundle, INT8, 4)], 0.05, lambda *done: rounds.append(done))
    first, second = "cpu-float32 at batch 1", "cpu at batch 4"
    assert turns == [first, second] * (1 + ROUNDS)
    assert rounds == [(i, ROUNDS) for i in range(1, ROUNDS + 1)]
    assert [(t.engine, t.precision, t.batch) for t in timings] == [("cpu-float32", "float32", 1), ("cpu", "int8", 4)]
    for timing in timings:
        assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms
        assert timing.calls >= 2 * ROUNDS and timing.calls % ROUNDS == 0
        assert timing.pairs_per_second > 0
    assert [w.process.returncode for w in workers] == [-9, -9]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "nowhere.onnx"}, "onnxruntime cannot open"),
        ({"kind": "rtx", "file": RTX.file}, "UnavailableError"),
    ],
)
def test_a_worker_that_fails_is_told_in_its_own_words(
    bundle: Path, workers: list[throughput._Worker], change: dict[str, str], words: str
) -> None:
    entry = msgspec.structs.replace(INT8, **change)
    with pytest.raises(MisgnetError, match=f"the benchmark of cpu at batch 1 ended early: .*{words}"):
        measure([task(bundle, FLOAT), task(bundle, entry)], 0.05)
    assert len(workers) == 2
    assert all(w.process.returncode is not None for w in workers)


def test_a_worker_that_is_killed_is_an_error(bundle: Path, workers: list[throughput._Worker]) -> None:
    with pytest.raises(MisgnetError, match="ended early: no message"):
        measure([task(bundle, FLOAT)], 0.05, lambda *_: (workers[0].process.kill(), workers[0].process.wait()))
    assert workers[0].process.returncode == -9


def test_a_worker_ends_with_its_parent(bundle: Path) -> None:
    """A parent that dies closes the worker's input."""
    command = [sys.executable, "-m", "misgnet_runtime.throughput"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=throughput._environment()) as worker:
        assert worker.stdin and worker.stdout
        worker.stdin.write(msgspec.json.encode(task(bundle, FLOAT)) + b"\n3\n")
        worker.stdin.flush()
        assert len(msgspec.json.decode(worker.stdout.readline(), type=list[float])) == 3
        worker.stdin.close()
        assert worker.wait(timeout=30) == 0


def test_a_worker_finds_the_package_where_its_parent_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    assert throughput._environment()["PYTHONPATH"] == os.pathsep.join([str(Path.cwd()), "/somewhere"])

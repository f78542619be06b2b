"""Tests of throughput measurements: one process per engine, alternating rounds, concurrent streams, clean exits."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.children import environment, python_command
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError
from misgnet_runtime.inference import throughput
from misgnet_runtime.inference.throughput import ROUNDS, Round, Task, Timing, WarmUp, measure
from misgnet_runtime.inference.throughput_worker import time_calls, warm_up
from misgnet_runtime.measure import matrix_baseline
from misgnet_runtime.measure.matrix_baseline import MatrixProduct
from support.bundles import FLOAT, INT8, INTERFACE, RTX, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def task(bundle: Path, entry: EngineEntry, batch: int = 1) -> Task:
    return Task(entry, str(bundle), INTERFACE, str(bundle / "golden/tiles.npz"), batch=batch, threads=1)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[throughput._Worker]:
    """The list of workers that were started."""
    started: list[throughput._Worker] = []
    start = throughput._Worker.__init__

    def recorded(self: throughput._Worker, task: Task) -> None:
        start(self, task)
        started.append(self)

    monkeypatch.setattr(throughput._Worker, "__init__", recorded)
    return started


def test_engines_are_timed_in_alternating_rounds(
    bundle: Path, workers: list[throughput._Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    run = throughput._Worker.run

    def recorded(self: throughput._Worker, calls: int) -> Round:
        turns.append(self.name)
        return run(self, calls)

    monkeypatch.setattr(throughput._Worker, "run", recorded)
    rounds: list[tuple[int, int]] = []
    timings = measure([task(bundle, FLOAT), task(bundle, INT8, 4)], 0.05, lambda *done: rounds.append(done))
    first, second = "cpu-float32 at batch 1", "cpu at batch 4"
    assert turns == [first, second] * ROUNDS
    assert rounds == [(i, ROUNDS) for i in range(1, ROUNDS + 1)]
    assert [(t.engine, t.precision, t.batch) for t in timings] == [("cpu-float32", "float32", 1), ("cpu", "int8", 4)]
    for timing in timings:
        assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms
        assert timing.calls >= 2 * ROUNDS and timing.calls % ROUNDS == 0
        assert timing.max_ms is not None and timing.p99_ms <= timing.max_ms
        assert len(timing.rounds) == ROUNDS
        assert min(timing.rounds) <= timing.pairs_per_second <= max(timing.rounds)
        assert timing.warm_up is not None and timing.warm_up.calls % 3 == 0
        assert (timing.streams, timing.energy) == (1, [])
    assert [w.process.returncode for w in workers] == [-9, -9]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"file": "nowhere.onnx"}, InputError, r"the file 'nowhere\.onnx' is missing"),
        ({"kind": "rtx", "file": RTX.file}, UnavailableError, ""),
    ],
)
def test_a_failing_worker_is_reported_with_its_message(
    bundle: Path, workers: list[throughput._Worker], change: dict[str, str], kind: type[MisgnetError], words: str
) -> None:
    entry = msgspec.structs.replace(INT8, **change)
    with pytest.raises(kind, match=f"the benchmark of cpu at batch 1 ended early: .*{words}"):
        measure([task(bundle, FLOAT), task(bundle, entry)], 0.05)
    assert len(workers) == 2
    assert all(w.process.returncode is not None for w in workers)


def test_a_killed_worker_is_an_error(bundle: Path, workers: list[throughput._Worker]) -> None:
    with pytest.raises(MisgnetError, match="ended early: no message"):
        measure([task(bundle, FLOAT)], 0.05, lambda *_: (workers[0].process.kill(), workers[0].process.wait()))
    assert workers[0].process.returncode == -9


def test_a_worker_exits_with_its_parent(bundle: Path) -> None:
    """A parent that dies closes the worker's input."""
    command = python_command("misgnet_runtime.inference.throughput_worker")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment()) as worker:
        assert worker.stdin and worker.stdout
        worker.stdin.write(msgspec.json.encode(task(bundle, FLOAT)) + b"\n3\n")
        worker.stdin.flush()
        msgspec.json.decode(worker.stdout.readline(), type=WarmUp)
        assert len(msgspec.json.decode(worker.stdout.readline(), type=Round).milliseconds) == 3
        worker.stdin.close()
        assert worker.wait(timeout=30) == 0


def test_a_worker_imports_the_same_package_as_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "relative", "/somewhere"])
    own = str(Path(throughput.__file__).parents[2])
    assert environment()["PYTHONPATH"] == os.pathsep.join(["/somewhere", own])


# End of the measurement


def rounds_of(*calls: list[float]) -> list[Round]:
    """Returns rounds whose calls take these durations in milliseconds."""
    return [Round(sum(ms) / 1000, ms) for ms in calls]


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (rounds_of(), False),
        (rounds_of([10.0]), False),
        (rounds_of([10.0], [10.1]), True),
        (rounds_of([10.0], [10.3]), False),
        (rounds_of([10.3], [10.0]), False),
        (rounds_of([10.0], [99.0], [10.0]), True),  # the middle round is in neither half
        (rounds_of([10.0, 10.0, 90.0], [10.1, 10.0, 10.0]), True),  # one slow call
        (rounds_of([10.0], [10.2], [10.4], [10.6]), False),  # the machine slows down
    ],
)
def test_settled_compares_the_medians_of_both_halves(rounds: list[Round], expected: bool) -> None:
    assert throughput.settled(rounds) is expected


@pytest.mark.parametrize(("drifts", "expected"), [((), 4), ((INT8,), 6), ((FLOAT, INT8), 6)])
def test_measurement_ends_early_when_every_task_is_settled(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, drifts: tuple[EngineEntry, ...], expected: int
) -> None:
    counts: dict[str, int] = {}

    def run(self: throughput._Worker, calls: int) -> Round:
        name = self.task.name
        counts[name] = counts.get(name, 0) + 1
        slower = 1.05 ** counts[name] if name in [entry.name for entry in drifts] else 1.0
        return Round(0.01 * slower, [10 * slower] * calls)

    monkeypatch.setattr(throughput._Worker, "run", run)
    monkeypatch.setattr(throughput._Worker, "warm_up", lambda _: WarmUp(3, 0.1, True, 0.01))
    seen: list[tuple[int, int]] = []
    tasks = [task(bundle, FLOAT), task(bundle, INT8)]
    timings = measure(tasks, 0.05, lambda *done: seen.append(done), rounds=6, enough_rounds=4)
    assert [len(timing.rounds) for timing in timings] == [expected, expected]
    assert seen == [(done, 6) for done in range(1, expected + 1)]


# Streams, warm-up, power


def test_one_thread_per_stream_calls_concurrently() -> None:
    together = threading.Barrier(3, timeout=10)  # a call returns only while two others run
    with ThreadPoolExecutor(3) as pool:
        found = time_calls(together.wait, 9, pool)
    assert len(found.milliseconds) == 9
    assert found.seconds < sum(found.milliseconds) / 1000 + 0.1


def test_throughput_uses_wall_time() -> None:
    """Three concurrent calls of 30 ms have three times the pairs per second of sequential calls."""
    with ThreadPoolExecutor(3) as pool:
        found = time_calls(lambda: time.sleep(0.03), 6, pool)
    measured = throughput._Measured(WarmUp(3, 0.1, True, 0.03), [found, found])
    timing = throughput._timing(Task(FLOAT, "", INTERFACE, "", batch=4, streams=3), measured)
    assert timing.calls == 12 and timing.streams == 3
    assert timing.pairs_per_second == pytest.approx(4 * 6 / found.seconds)
    assert timing.pairs_per_second > 2 * 4 / (timing.p50_ms / 1000)


def test_a_worker_runs_several_streams(bundle: Path) -> None:
    wanted = msgspec.structs.replace(task(bundle, FLOAT), streams=2)
    (timing,) = measure([wanted], 0.02, rounds=2)
    assert timing.streams == 2 and len(timing.rounds) == 2
    assert timing.calls >= 8 and timing.calls % 4 == 0
    assert timing.warm_up is not None and timing.warm_up.calls % 6 == 0


def windows(*medians: float) -> Callable[[int], Round]:
    """Returns a function whose successive rounds have calls of these durations in milliseconds."""
    left = iter(medians)
    return lambda calls: Round(0.5, [next(left)] * calls)


def test_warm_up_ends_when_two_windows_agree() -> None:
    found = warm_up(windows(90, 60, 50, 49), Task(FLOAT, "", INTERFACE, "", streams=2))
    assert (found.calls, found.steady) == (24, True)
    assert found.seconds_per_call == pytest.approx(0.5 / 6)


def test_warm_up_ends_unsteady_after_its_time_limit() -> None:
    found = warm_up(windows(90, 60), Task(FLOAT, "", INTERFACE, "", warm_up=0.0))
    assert (found.calls, found.steady) == (3, False)


def test_a_matrix_product_is_measured_in_the_same_rounds(bundle: Path, workers: list[throughput._Worker]) -> None:
    found = measure([task(bundle, FLOAT), task(bundle, INT8)], 0.02, rounds=2, beside=MatrixProduct)
    assert [timing.engine for timing in found] == ["cpu-float32", "cpu", "matrix product"]
    assert (found[2].batch, found[2].streams, len(found[2].rounds)) == (1, 1, 2) and found[2].p99_ms >= found[2].p50_ms
    for worker, timing in zip(workers, found, strict=True):  # each as long as requested
        assert timing.warm_up and timing.calls == 2 * throughput._calls(worker.task, timing.warm_up, 0.01)
    product = workers[2].task
    assert isinstance(product, MatrixProduct)
    assert product.seconds == min(t.warm_up.seconds_per_call for t in found[:2] if t.warm_up)


def test_a_product_takes_the_requested_time() -> None:
    """On a machine where 512 rows take a second, and every other measurement is disturbed."""
    calls = itertools.count()

    def seconds_of(rows: int) -> float:
        return (rows / 512) ** 3 * (1 if next(calls) % 2 else 4)

    found = [matrix_baseline.rows_for(seconds, seconds_of=seconds_of) for seconds in (1.0, 8.0, 1e-9, 1e9)]
    assert found == [512, 1024, 64, 4096]
    assert matrix_baseline.seconds_of(64) > 0


def test_each_round_runs_in_a_context_of_its_task(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    run = throughput._Worker.run

    def recorded(self: throughput._Worker, calls: int) -> Round:
        events.append(self.task.name)
        return run(self, calls)

    @contextmanager
    def during(index: int) -> Iterator[None]:
        events.append(index)
        yield
        events.append("end")

    monkeypatch.setattr(throughput._Worker, "run", recorded)
    measure([task(bundle, FLOAT), task(bundle, INT8)], 0.02, rounds=2, during=during)
    assert events == [0, "cpu-float32", "end", 1, "cpu", "end"] * 2


def test_timings_of_earlier_versions_are_read() -> None:
    old = (
        b'{"engine":"cpu","precision":"int8","batch":1,"calls":9,"p50_ms":1,"p90_ms":2,"p99_ms":3,"pairs_per_second":9}'
    )
    timing = msgspec.json.decode(old, type=Timing)
    assert (timing.streams, timing.max_ms, timing.rounds, timing.warm_up, timing.energy) == (1, None, [], None, [])

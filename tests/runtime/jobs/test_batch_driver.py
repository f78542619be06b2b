"""Tests of the batch driver: assignment of scenes, retries, and the record of outcomes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.formatting import now
from misgnet_runtime.jobs.batch.pool import Died, Event, Finished, Unusable
from misgnet_runtime.jobs.batch.record import Failed, SceneStarted
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.jobs.batch.worker import Outcome, Task
from support.batches import FIGURES, KEY, FakePool, Recorder, drive, opened, tasks


def test_each_scene_is_given_once_and_all_workers_are_used(tmp_path: Path) -> None:
    pool, recorder = FakePool(3), Recorder()
    with opened(tmp_path) as record:
        drive(tasks(*"abcdefg"), tmp_path, pool, record, recorder)
        assert sorted(recorder.done) == sorted(pool.given) == list("abcdefg")
        assert {end.worker for end in record.ended.values()} == {"here:0", "here:1", "here:2"}
    assert pool.started == [0, 1, 2]


def test_no_more_workers_are_started_than_there_are_scenes(tmp_path: Path) -> None:
    pool = FakePool(8)
    with opened(tmp_path) as record:
        drive(tasks("a", "b"), tmp_path, pool, record, Recorder())
    assert pool.started == [0, 1]


def test_a_scene_whose_worker_dies_is_retried_after_the_others(tmp_path: Path) -> None:
    def respond(slot: int, scene: str, times: int) -> Event:
        return Died(slot, "its worker was killed") if scene == "b" and times == 1 else Finished(slot, Outcome(FIGURES))

    pool, recorder = FakePool(1, respond), Recorder()
    with opened(tmp_path) as record:
        drive(tasks(*"abcd"), tmp_path, pool, record, recorder)
        assert record.ended["b"].attempts == 2 and record.ended["a"].attempts == 1
    assert pool.given == ["a", "b", "c", "d", "b"]
    assert "b: its worker was killed; it will be retried" in recorder.logged.warnings
    assert sorted(recorder.done) == list("abcd") and pool.started == [0, 0]


def test_a_scene_that_kills_every_worker_fails_after_the_last_retry(tmp_path: Path) -> None:
    def respond(slot: int, scene: str, times: int) -> Event:
        return Died(slot, "its worker was killed") if scene == "bad" else Finished(slot, Outcome(FIGURES))

    pool, recorder = FakePool(2, respond), Recorder()
    with opened(tmp_path) as record:
        drive(tasks("bad", *"abc"), tmp_path, pool, record, recorder)
    assert pool.given.count("bad") == 3
    assert recorder.failed == {"bad": "its worker was killed; gave up after 3 attempts"}
    assert sorted(recorder.done) == list("abc")


def test_only_retryable_failures_are_retried(tmp_path: Path) -> None:
    outcomes = {
        "own": Outcome(message="no\nGeoTIFF", warnings=("it is offset",)),
        "disk": Outcome(message="the disk is full", retry=True),
        "bug": Outcome(message="KeyError: 1", retry=True, restart_worker=True),
    }
    pool = FakePool(1, lambda slot, scene, times: Finished(slot, outcomes[scene]))
    recorder = Recorder()
    with opened(tmp_path) as record:
        drive(tasks(*outcomes), tmp_path, pool, record, recorder, retries=1)
    assert [pool.given.count(name) for name in outcomes] == [1, 2, 2]
    assert recorder.failed["own"] == "no GeoTIFF" and "after 2 attempts" in recorder.failed["disk"]
    assert "own: it is offset" in recorder.logged.warnings
    assert pool.started == [0, 0, 0], "a worker that met an unexpected error is replaced"


def test_other_workers_process_all_scenes_if_one_cannot_start(tmp_path: Path) -> None:
    class OneUnusable(FakePool):
        def start_event(self, slot: int) -> Event:
            return Unusable(slot, "no GPU") if slot == 0 else super().start_event(slot)

    recorder = Recorder()
    with opened(tmp_path) as record:
        drive(tasks(*"abc"), tmp_path, OneUnusable(2), record, recorder)
    assert sorted(recorder.done) == list("abc")
    assert "a worker cannot start: no GPU" in recorder.logged.warnings


def test_no_scene_fails_if_no_worker_can_start(tmp_path: Path) -> None:
    class Hopeless(FakePool):
        def start_event(self, slot: int) -> Event:
            return Died(slot, "exit code 1") if slot else Unusable(slot, "no engine runs here")

    pool, recorder = Hopeless(2), Recorder()
    with opened(tmp_path) as record, pytest.raises(UnavailableError, match="no engine runs here; exit code 1"):
        drive(tasks(*"abc"), tmp_path, pool, record, recorder)
    assert pool.started.count(1) == 3 and pool.closed and not recorder.failed and not record.attempts


def test_waiting_for_a_worker_is_logged_once(tmp_path: Path) -> None:
    class Late(FakePool):
        waits = 0

        def wait(self) -> list[Event]:
            self.waits += 1
            return super().wait() if self.waits > 5 else []

    recorder = Recorder()
    with opened(tmp_path) as record:
        drive(tasks("a"), tmp_path, Late(1), record, recorder, ready_seconds=0.0)
    assert [note for note in recorder.logged.messages if "no worker is ready yet" in note] == recorder.logged.messages[
        :1
    ] and recorder.done == ["a"]


def test_interrupted_scenes_count_as_not_attempted(tmp_path: Path) -> None:
    def respond(slot: int, scene: str, times: int) -> Event:
        if scene == "b":
            raise KeyboardInterrupt
        return Finished(slot, Outcome(FIGURES))

    for _ in range(4):
        with opened(tmp_path) as record:
            left = [task for task in tasks(*"abc") if task.scene.id not in record.ended]
            with pytest.raises(KeyboardInterrupt):
                drive(left, tmp_path, FakePool(1, respond), record, Recorder())
            assert list(record.ended) == ["a"] and not record.attempts["b"]


def test_a_scene_that_kills_whole_runs_fails_after_the_last_retry(tmp_path: Path) -> None:
    """If a container is killed, driver and worker die together, so no outcome of the scene is recorded."""
    for _ in range(3):
        with opened(tmp_path) as record:
            record.add(SceneStarted(now(), "bad", KEY, ("bad.tif",)))
    pool, recorder = FakePool(1), Recorder()
    with opened(tmp_path) as record:
        assert record.attempts["bad"] == 3
        drive(tasks("bad", "a"), tmp_path, pool, record, recorder)
    assert pool.given == ["a"] and "the run or the worker died in 3 consecutive attempts" in recorder.failed["bad"]
    with opened(tmp_path) as record:
        record.add(SceneStarted(now(), "late", KEY, ()))
        pool = FakePool(1)
        drive(tasks("late", "bad", "a"), tmp_path, pool, record, recorder)
    assert pool.given == ["bad", "a", "late"], "failed scenes are retried; a scene that may kill the run comes last"


def test_an_output_of_another_program_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"mine")
    recorder = Recorder()
    with opened(tmp_path) as record:
        drive(tasks("a", "b"), tmp_path, FakePool(1), record, recorder)
        assert "a.tif exists" in recorder.failed["a"] and recorder.done == ["b"]
        drive(tasks("a", force="yes"), tmp_path, FakePool(1), record, recorder)
        assert recorder.done == ["b", "a"]
        drive(tasks("a"), tmp_path, FakePool(1), record, recorder)
    assert recorder.done == ["b", "a", "a"], "now the output belongs to this folder's runs"


# The record


def test_failing_invalid_scenes_does_not_compare_them_with_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing would take time quadratic in the length of the table."""
    compared = []
    monkeypatch.setattr(Task, "__eq__", lambda one, other: compared.append(one) or one is other)
    names = [f"scene{number}" for number in range(20)]
    for name in names[10:]:
        (tmp_path / f"{name}.tif").write_bytes(b"a map")
    pool, recorder = FakePool(1), Recorder()
    with opened(tmp_path) as record:
        drive(tasks(*names), tmp_path, pool, record, recorder)
    assert list(recorder.failed) == names[10:] and pool.given == names[:10]
    assert not compared


def test_two_runs_cannot_process_the_same_scenes(tmp_path: Path) -> None:
    with opened(tmp_path, Shard(0, 2)):
        with pytest.raises(UsageError, match="another run is processing these scenes"), opened(tmp_path, Shard(0, 2)):
            pass
        for other in (Shard(), Shard(1, 3)):
            with pytest.raises(UsageError, match="processing some of these scenes"), opened(tmp_path, other):
                pass
        with opened(tmp_path, Shard(1, 2)) as record:
            record.add(Failed(now(), "b", 1, "no"))
    with opened(tmp_path) as record:
        assert list(record.ended) == ["b"], "the records of all shards are read"

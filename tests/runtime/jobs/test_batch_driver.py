"""Who does which scene, what is tried again, and what the record keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.formatting import now
from misgnet_runtime.jobs.batch import driver as batch_driver
from misgnet_runtime.jobs.batch.pool import Died, Ended, Event, Unusable
from misgnet_runtime.jobs.batch.record import Begun, Failed
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.jobs.batch.worker import Outcome, Task
from support.batches import FIGURES, KEY, FakePool, Told, drive, opened, tasks


def test_each_scene_is_given_once_and_all_workers_are_used(tmp_path: Path) -> None:
    pool, told = FakePool(3), Told()
    with opened(tmp_path) as record:
        drive(tasks(*"abcdefg"), tmp_path, pool, record, told)
        assert sorted(told.done) == sorted(pool.given) == list("abcdefg")
        assert {end.worker for end in record.ended.values()} == {"here:0", "here:1", "here:2"}
    assert pool.started == [0, 1, 2]


def test_no_more_workers_are_begun_than_there_are_scenes(tmp_path: Path) -> None:
    pool = FakePool(8)
    with opened(tmp_path) as record:
        drive(tasks("a", "b"), tmp_path, pool, record, Told())
    assert pool.started == [0, 1]


def test_a_scene_whose_worker_dies_is_tried_again_behind_the_others(tmp_path: Path) -> None:
    def answer(place: int, scene: str, times: int) -> Event:
        return Died(place, "its worker was killed") if scene == "b" and times == 1 else Ended(place, Outcome(FIGURES))

    pool, told = FakePool(1, answer), Told()
    with opened(tmp_path) as record:
        drive(tasks(*"abcd"), tmp_path, pool, record, told)
        assert record.ended["b"].attempts == 2 and record.ended["a"].attempts == 1
    assert pool.given == ["a", "b", "c", "d", "b"]
    assert "b: its worker was killed; it is tried again" in told.logged.warnings
    assert sorted(told.done) == list("abcd") and pool.started == [0, 0]


def test_a_scene_that_ends_every_worker_is_given_up(tmp_path: Path) -> None:
    def answer(place: int, scene: str, times: int) -> Event:
        return Died(place, "its worker was killed") if scene == "bad" else Ended(place, Outcome(FIGURES))

    pool, told = FakePool(2, answer), Told()
    with opened(tmp_path) as record:
        drive(tasks("bad", *"abc"), tmp_path, pool, record, told)
    assert pool.given.count("bad") == 3
    assert told.failed == {"bad": "its worker was killed; given up after 3 attempts"}
    assert sorted(told.done) == list("abc")


def test_what_is_the_scenes_own_fault_is_not_tried_again(tmp_path: Path) -> None:
    outcomes = {
        "own": Outcome(message="no\nGeoTIFF", warnings=("it lies beside",)),
        "disk": Outcome(message="the disk is full", again=True),
        "bug": Outcome(message="KeyError: 1", again=True, sick=True),
    }
    pool = FakePool(1, lambda place, scene, times: Ended(place, outcomes[scene]))
    told = Told()
    with opened(tmp_path) as record:
        drive(tasks(*outcomes), tmp_path, pool, record, told, retries=1)
    assert [pool.given.count(name) for name in outcomes] == [1, 2, 2]
    assert told.failed["own"] == "no GeoTIFF" and "after 2 attempts" in told.failed["disk"]
    assert "own: it lies beside" in told.logged.warnings
    assert pool.started == [0, 0, 0], "a worker to which something unforeseen happened is replaced"


def test_a_worker_that_cannot_begin_leaves_its_work_to_the_others(tmp_path: Path) -> None:
    class OneUnusable(FakePool):
        def begun(self, place: int) -> Event:
            return Unusable(place, "no GPU") if place == 0 else super().begun(place)

    told = Told()
    with opened(tmp_path) as record:
        drive(tasks(*"abc"), tmp_path, OneUnusable(2), record, told)
    assert sorted(told.done) == list("abc")
    assert "a worker cannot begin: no GPU" in told.logged.warnings


def test_without_any_worker_no_scene_fails(tmp_path: Path) -> None:
    class Hopeless(FakePool):
        def begun(self, place: int) -> Event:
            return Died(place, "exit code 1") if place else Unusable(place, "no engine runs here")

    pool, told = Hopeless(2), Told()
    with opened(tmp_path) as record, pytest.raises(UnavailableError, match="no engine runs here; exit code 1"):
        drive(tasks(*"abc"), tmp_path, pool, record, told)
    assert pool.started.count(1) == 3 and pool.closed and not told.failed and not record.begun


def test_waiting_for_a_worker_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(FakePool):
        looks = 0

        def wait(self) -> list[Event]:
            self.looks += 1
            return super().wait() if self.looks > 5 else []

    monkeypatch.setattr(batch_driver, "_PATIENCE", 0.0)
    told = Told()
    with opened(tmp_path) as record:
        drive(tasks("a"), tmp_path, Late(1), record, told)
    assert [note for note in told.logged.messages if "no worker is ready yet" in note] == told.logged.messages[
        :1
    ] and told.done == ["a"]


def test_what_an_interruption_leaves_counts_as_not_tried(tmp_path: Path) -> None:
    def answer(place: int, scene: str, times: int) -> Event:
        if scene == "b":
            raise KeyboardInterrupt
        return Ended(place, Outcome(FIGURES))

    for _ in range(4):
        with opened(tmp_path) as record:
            left = [task for task in tasks(*"abc") if task.scene.id not in record.ended]
            with pytest.raises(KeyboardInterrupt):
                drive(left, tmp_path, FakePool(1, answer), record, Told())
            assert list(record.ended) == ["a"] and not record.begun["b"]


def test_a_scene_that_ended_whole_runs_is_given_up_too(tmp_path: Path) -> None:
    """A container's end takes driver and worker alike, so that nobody writes how the scene ended."""
    for _ in range(3):
        with opened(tmp_path) as record:
            record.add(Begun(now(), "bad", KEY, ("bad.tif",)))
    pool, told = FakePool(1), Told()
    with opened(tmp_path) as record:
        assert record.begun["bad"] == 3
        drive(tasks("bad", "a"), tmp_path, pool, record, told)
    assert pool.given == ["a"] and "3 runs or workers in a row died" in told.failed["bad"]
    with opened(tmp_path) as record:
        record.add(Begun(now(), "late", KEY, ()))
        pool = FakePool(1)
        drive(tasks("late", "bad", "a"), tmp_path, pool, record, told)
    assert pool.given == ["bad", "a", "late"], "failed ones are tried again; what may end the run comes last"


def test_an_output_that_another_made_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"mine")
    told = Told()
    with opened(tmp_path) as record:
        drive(tasks("a", "b"), tmp_path, FakePool(1), record, told)
        assert "a.tif exists" in told.failed["a"] and told.done == ["b"]
        drive(tasks("a", force="yes"), tmp_path, FakePool(1), record, told)
        assert told.done == ["b", "a"]
        drive(tasks("a"), tmp_path, FakePool(1), record, told)
    assert told.done == ["b", "a", "a"], "now it is this folder's own"


# The record


def test_scenes_that_need_no_worker_are_not_looked_for_among_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would take the square of a table's lines."""
    compared = []
    monkeypatch.setattr(Task, "__eq__", lambda one, other: compared.append(one) or one is other)
    names = [f"scene{number}" for number in range(20)]
    for name in names[10:]:
        (tmp_path / f"{name}.tif").write_bytes(b"a map")
    pool, told = FakePool(1), Told()
    with opened(tmp_path) as record:
        drive(tasks(*names), tmp_path, pool, record, told)
    assert list(told.failed) == names[10:] and pool.given == names[:10]
    assert not compared


def test_runs_of_the_same_scenes_exclude_each_other(tmp_path: Path) -> None:
    with opened(tmp_path, Shard(0, 2)):
        with pytest.raises(UsageError, match="another run is at work on these scenes"), opened(tmp_path, Shard(0, 2)):
            pass
        for other in (Shard(), Shard(1, 3)):
            with pytest.raises(UsageError, match="on some of these scenes"), opened(tmp_path, other):
                pass
        with opened(tmp_path, Shard(1, 2)) as record:
            record.add(Failed(now(), "b", 1, "no"))
    with opened(tmp_path) as record:
        assert list(record.ended) == ["b"], "all parts' records are read"

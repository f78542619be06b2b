"""Many scenes of one table: what is read, who does it, what is kept, and that nothing is lost or done twice."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from bundles import FakeEngine, edit, fake_detector, make_bundle
from ends import die_at, in_child
from misgnet_runtime import console
from misgnet_runtime.batch import driver as batch_driver
from misgnet_runtime.batch import run as batch_run
from misgnet_runtime.batch import worker as batch_worker
from misgnet_runtime.batch.driver import Driver, Listener
from misgnet_runtime.batch.pool import Died, Ended, Event, Ready, Unusable
from misgnet_runtime.batch.ray import Slots, ray_slots
from misgnet_runtime.batch.record import Begun, Done, Failed, Record, now, open_record
from misgnet_runtime.batch.run import BatchOptions, BatchReport, run_batch, runs_on_gpu
from misgnet_runtime.batch.scene import Scene
from misgnet_runtime.batch.table import Shard, read_table
from misgnet_runtime.batch.worker import Hello, Outcome, SceneWorker, Setup, Task, work_folder
from misgnet_runtime.bundle import read_bundle
from misgnet_runtime.cli import app
from misgnet_runtime.errors import InputError, ScenesFailed, StorageError, UnavailableError, UsageError
from misgnet_runtime.scenes.options import SceneOptions
from misgnet_runtime.scenes.predict import predict_scene_files
from scenes import read, scene, write_raster

ROOT = Path(__file__).resolve().parents[1]
FIGURES = {"changed_share": 0.5, "unread": [0, 0]}
KEY = "0" * 64


def write_table(path: Path, header: str, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


# The table


def test_a_table_names_scenes_and_options(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "in/scenes.csv", "id, before,After,min-area,align,stretch",
        "north,a.tif,/abs/b.tif,9,yes,", "süd 2,../c.tif,d.tif,,,",
    )  # fmt: skip
    north, south = read_table(table, {"min_area": "4", "overlap": "8"}, tmp_path / "out")
    assert north.before == tmp_path / "in/a.tif" and north.after == Path("/abs/b.tif")
    assert north.options() == SceneOptions(min_area=9, overlap=8, align=True)
    assert south.options() == SceneOptions(min_area=4, overlap=8)
    assert (south.id, south.before.resolve(), south.outputs()) == ("süd 2", tmp_path / "c.tif", {"output": "süd 2.tif"})


def test_every_option_of_predict_can_be_a_column() -> None:
    words = {
        "engine": "cpu", "output": "maps/x.tif", "probability": "yes", "vector": "x.geojson", "quicklook": "no",
        "align": "true", "cog": "1", "no_tuned": "yes", "overlap": "0", "batch": "2", "streams": "1", "threads": "1",
        "min_area": "1.5", "simplify": "2", "bands": "3,2,1", "scale": "0.5", "before_offset": "1",
        "after_stretch": "2,98",
    }  # fmt: skip
    asked = Scene("x", Path("a"), Path("b"), words)
    options = asked.options()
    assert (options.engine, options.align, options.cog, options.tuned) == ("cpu", True, True, False)
    assert (options.overlap, options.batch, options.streams, options.threads) == (0, 2, 1, 1)
    assert (options.min_area, options.simplify) == (1.5, 2.0)
    assert (options.before.bands, options.before.scale, options.before.offset) == ((3, 2, 1), (0.5,), (1,))
    assert (options.after.stretch, options.after.scale) == ((2, 98), None)
    assert asked.outputs() == {"probability": "x.probability.tif", "vector": "x.geojson", "output": "maps/x.tif"}


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("id,before", ["a,b"], "lacks the columns 'after'"),
        ("id,before,after,colour", ["a,b,c,d"], "unknown columns 'colour'"),
        ("id,before,after,cog,cog", ["a,b,c,,"], "a column twice"),
        ("id,before,after", [], "no scenes"),
        ("id,before,after", ["a,b,c", "a,d,e"], "rows 2 and 3 both have the id 'a'"),
        ("id,before,after", ["../a,b,c"], "the id is '../a'"),
        ("id,before,after", [".a,b,c"], "the id is '.a'"),
        ("id,before,after", [",b,c"], "the id is ''"),
        ("id,before,after", [f"{'a' * 201},b,c"], "at most 200 bytes"),
        ("id,before,after", ["a,b,c,d"], "4 cells for 3 columns"),
        ("id,before,after,output", ["a,b,c,x.tif", "b,b,c,x.tif"], "'a' and 'b' would both become x.tif"),
        ("id,before,after,probability", ["a,b,c,yes", "a.probability,b,c,"], "would both become a.probability.tif"),
    ],
)
def test_a_table_that_is_wrong_as_a_whole_is_refused(tmp_path: Path, header: str, rows: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_table(write_table(tmp_path / "scenes.csv", header, *rows), {}, tmp_path / "out")


def test_tables_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.csv", {}, tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"id,before,after\n\xff\xfe,b,c\n")
    with pytest.raises(InputError, match="no CSV in UTF-8"):
        read_table(tmp_path / "bytes.csv", {}, tmp_path)
    table = write_table(tmp_path / "t.csv", "id,before,after,output", "a,a.tif,b.tif,a.tif")
    with pytest.raises(UsageError, match="is an input as well"):
        read_table(table, {}, tmp_path)


@pytest.mark.parametrize(
    ("word", "cell", "said"),
    [
        ("output", "../x.tif", "below the output folder"),
        ("output", "/x.tif", "below the output folder"),
        ("output", ".batch/x.tif", "hidden names"),
        ("vector", "x.shp", "ends in .gpkg or .geojson or .fgb"),
        ("overlap", "many", "a whole number"),
        ("min_area", "nan", "0 or more"),
        ("align", "perhaps", "yes or no"),
        ("bands", "1,2", "--bands is '1,2'"),
    ],
)
def test_a_cell_that_cannot_be_meant_is_its_scenes_failure(tmp_path: Path, word: str, cell: str, said: str) -> None:
    table = write_table(tmp_path / "t.csv", f"id,before,after,{word}", f'a,a.tif,b.tif,"{cell}"', "b,c.tif,d.tif,")
    scenes = read_table(table, {}, tmp_path / "out")
    pool, told = FakePool(1), Told()
    with opened(tmp_path / "out") as record:
        drive([Task(one, KEY) for one in scenes], tmp_path / "out", pool, record, told)
    assert pool.given == ["b"]
    assert said in told.failed["a"]


def test_shards_are_all_of_a_table() -> None:
    scenes = [Scene(f"{i}", Path("a"), Path("b"), {}) for i in range(10)]
    parts = [Shard.parse(f"{i}/3").of(scenes) for i in range(3)]
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for one in scenes)
    assert Shard.parse(None).of(scenes) == scenes and Shard.parse("2/3").suffix == "-2-of-3"
    for text in ("3/3", "1", "-1/3", "a/b", "1/0", ""):
        with pytest.raises(UsageError, match="counted from 0"):
            Shard.parse(text)


def test_the_key_is_of_all_that_outputs_depend_on(tmp_path: Path) -> None:
    before, after = (tmp_path / name for name in ("a.tif", "b.tif"))
    before.write_bytes(b"1")
    base = Scene("x", before, after, {"overlap": "8"})
    keys = [base.key(KEY), base.key("1" * 64), replace(base, words={"overlap": "9"}).key(KEY)]
    after.write_bytes(b"2")
    keys.append(base.key(KEY))
    assert len(set(keys)) == 4
    free = replace(base, words={"overlap": "8", "threads": "3", "force": "yes", "cog": ""})
    assert free.key(KEY) == base.key(KEY)


# The driver


@dataclass
class Told:
    """Who listens, and what was heard."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def listener(self) -> Listener:
        return Listener(lambda scene, line: self.lines.append((scene, line)), self.notes.append, self._ended)

    def _ended(self, end: Done | Failed) -> None:
        if isinstance(end, Failed):
            self.failed[end.scene] = end.message
        else:
            self.done.append(end.scene)


class FakePool:
    """Workers that answer at once, by ``answer`` of place, scene and how often it was given."""

    def __init__(self, size: int, answer: Callable[[int, str, int], Event] | None = None) -> None:
        self.size, self._answer = size, answer or (lambda place, scene, time: Ended(place, Outcome(FIGURES)))
        self.given: list[str] = []
        self.started: list[int] = []
        self.closed = False
        self._events: list[Event] = []

    def start(self, place: int) -> None:
        self.started.append(place)
        self._events.append(self.begun(place))

    def begun(self, place: int) -> Event:
        return Ready(place, Hello(f"here:{place}", "a fake"))

    def give(self, place: int, task: Task) -> None:
        self.given.append(task.scene.id)
        self._events.append(self._answer(place, task.scene.id, self.given.count(task.scene.id)))

    def wait(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self.closed = True


def tasks(*names: str, **words: str) -> list[Task]:
    return [Task(Scene(name, Path("a"), Path("b"), words), KEY) for name in names]


@contextmanager
def opened(output: Path, shard: Shard | None = None) -> Iterator[Record]:
    with open_record(output, shard or Shard()) as record:
        yield record


def drive(todo: list[Task], output: Path, pool: FakePool, record: Record, told: Told, retries: int = 2) -> None:
    Driver(todo, output, pool, record, retries, told.listener()).run()
    assert pool.closed


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
    assert ("b", "warning: its worker was killed; it is tried again") in told.lines
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
        "own": Outcome(message="no\nGeoTIFF", notes=("warning: it lies beside",)),
        "disk": Outcome(message="the disk is full", again=True),
        "bug": Outcome(message="KeyError: 1", again=True, sick=True),
    }
    pool = FakePool(1, lambda place, scene, times: Ended(place, outcomes[scene]))
    told = Told()
    with opened(tmp_path) as record:
        drive(tasks(*outcomes), tmp_path, pool, record, told, retries=1)
    assert [pool.given.count(name) for name in outcomes] == [1, 2, 2]
    assert told.failed["own"] == "no GeoTIFF" and "after 2 attempts" in told.failed["disk"]
    assert ("own", "warning: it lies beside") in told.lines
    assert pool.started == [0, 0, 0], "a worker to which something unforeseen happened is replaced"


def test_a_worker_that_cannot_begin_leaves_its_work_to_the_others(tmp_path: Path) -> None:
    class OneUnusable(FakePool):
        def begun(self, place: int) -> Event:
            return Unusable(place, "no GPU") if place == 0 else super().begun(place)

    told = Told()
    with opened(tmp_path) as record:
        drive(tasks(*"abc"), tmp_path, OneUnusable(2), record, told)
    assert sorted(told.done) == list("abc")
    assert "warning: a worker cannot begin: no GPU" in told.notes


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
    assert [note for note in told.notes if "no worker is ready yet" in note] == told.notes[:1] and told.done == ["a"]


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


def test_a_line_without_its_end_does_not_count_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as record:
        record.add(Begun(now(), "a", KEY, ("a.tif",)))
    path = tmp_path / "batch.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    with opened(tmp_path) as record:
        assert record.begun["a"] == 1
        record.add(Failed(now(), "a", 1, "no"))
    assert path.read_bytes().startswith(whole) and path.read_bytes().count(b"\n") == 2
    path.write_bytes(whole + b'{"type":"done"}\n')
    with pytest.raises(UsageError, match=r"line 2 is damaged"), opened(tmp_path):
        pass


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


# The worker


@dataclass
class Place:
    """A bundle, pairs of rasters, a table of them, and an output folder."""

    root: Path
    bundle: Path
    out: Path
    rows: list[str] = field(default_factory=list)

    def add(self, name: str, height: int = 80, width: int = 100, *cells: str) -> Scene:
        before, after = scene(height, width, len(self.rows))
        paths = [
            write_raster(self.root / f"in/{name}_{date}.tif", pixels)
            for date, pixels in (("before", before), ("after", after))
        ]
        self.rows.append(",".join([name, *(f"in/{path.name}" for path in paths), *cells]))
        return Scene(name, *paths, {})

    def table(self, *columns: str) -> Path:
        return write_table(self.root / "scenes.csv", ",".join(["id", "before", "after", *columns]), *self.rows)

    def setup(self) -> Setup:
        return Setup(self.bundle, read_bundle(self.bundle).digest(), self.out, SceneOptions())

    def run(self, told: Told | None = None, **options: Any) -> BatchReport:
        return run_batch(self.bundle, self.table(), self.out, BatchOptions(**options), (told or Told()).listener())

    def alone(self, name: str) -> np.ndarray:
        """What predict answers for one scene."""
        output = self.root / f"alone_{name}.tif"
        dates = (self.root / f"in/{name}_{date}.tif" for date in ("before", "after"))
        predict_scene_files(self.bundle, *dates, output, tell=lambda _: None)
        return read(output)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, make_bundle(tmp_path / "bundle"), tmp_path / "out")


class InProcess(FakePool):
    """Real workers, of this process."""

    def __init__(self, setup: Setup, size: int) -> None:
        super().__init__(size)
        self._setup = setup
        self._workers: dict[int, SceneWorker] = {}

    def begun(self, place: int) -> Event:
        self._workers[place] = SceneWorker(self._setup)
        return Ready(place, self._workers[place].start())

    def give(self, place: int, task: Task) -> None:
        self.given.append(task.scene.id)
        self._events.append(Ended(place, self._workers[place].run(task)))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[InProcess]:
    pools: list[InProcess] = []

    def pool(setup: Setup, size: int) -> InProcess:
        pools.append(InProcess(setup, size))
        return pools[-1]

    monkeypatch.setattr(batch_run, "ProcessPool", pool)
    return pools


def test_the_engine_is_opened_once_and_for_scenes_that_ask_for_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[tuple[object, ...]] = []
    one = place.add("one")

    def opening(bundle: object, *wish: object) -> object:
        wishes.append(wish)
        return fake_detector(lambda: FakeEngine(read_bundle(place.bundle).manifest.interface))()

    monkeypatch.setattr(batch_worker, "open_detector", opening)
    worker = SceneWorker(replace(place.setup(), threads=3, streams=2))
    worker.start()
    for name, words in (("a", {}), ("b", {}), ("c", {"threads": "1"}), ("d", {"threads": "1"})):
        outcome = worker.run(Task(replace(one, id=name, words=words), KEY))
        assert outcome.figures, outcome.message
    assert wishes == [("auto", 2, 3, None, "throughput"), ("auto", 2, 1, None, "throughput")]


def test_another_bundle_on_a_node_is_refused(place: Place) -> None:
    worker = SceneWorker(replace(place.setup(), digest="1" * 64))
    with pytest.raises(InputError, match="is another one"):
        worker.start()


def test_whatever_a_scene_raises_is_its_outcome(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    one = place.add("one")
    worker = SceneWorker(place.setup())
    worker.start()
    outcomes = []
    for error in (InputError("bad"), StorageError("full"), RuntimeError("CUDA error")):

        def raising(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(batch_worker, "predict_opened", raising)
            outcome = worker.run(Task(one, KEY))
        outcomes.append((outcome.message, outcome.again, outcome.sick))
    assert outcomes == [("bad", False, False), ("full", True, False), ("RuntimeError: CUDA error", True, True)]
    assert worker.run(Task(one, KEY)).figures, "the engine is opened anew"


def test_a_killed_worker_leaves_what_the_next_one_goes_on_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every call that makes something lasting, until one run lives through all of them."""
    one = replace(place.add("one", 90, 60), words={"probability": "yes"})
    calls: list[int] = []

    def fake() -> FakeEngine:
        return FakeEngine(read_bundle(place.bundle).manifest.interface)

    monkeypatch.setattr(batch_worker, "open_detector", fake_detector(fake))
    expected = None
    for moment in range(60):
        setup = replace(place.setup(), output=place.root / f"out{moment}")

        def doomed(setup: Setup = setup, moment: int = moment) -> None:
            worker = SceneWorker(setup)
            worker.start()
            die_at(moment)
            assert worker.run(Task(one, KEY)).figures

        killed = in_child(doomed)
        worker = SceneWorker(setup)
        worker.start()
        report = work_folder(setup.output, "one") / "report.json"
        whole = report.exists()
        with monkeypatch.context() as patched:
            if whole:
                patched.setattr(batch_worker, "predict_opened", lambda *_, **__: pytest.fail("computed twice"))
            outcome = worker.run(Task(one, KEY))
        assert outcome.figures, outcome.message
        files = [(setup.output / name).read_bytes() for name in ("one.tif", "one.probability.tif")]
        expected = expected or files
        assert files == expected
        calls.append(whole)
        if not killed:
            break
    assert not killed and len(calls) > 5 and any(calls) and not all(calls)


def test_what_was_begun_with_other_files_or_options_is_begun_anew(place: Place) -> None:
    one = place.add("one", 150, 90)
    worker = SceneWorker(place.setup())
    worker.start()
    folder = work_folder(place.out, "one")
    assert worker.run(Task(one, KEY)).figures
    (folder / "output.tif").write_bytes(b"of an earlier table")
    (folder / "report.json").write_text("{}")
    assert worker.run(Task(one, "1" * 64)).figures
    assert (read(place.out / "one.tif") == place.alone("one")).all()


# A run


def results(place: Place, name: str = "results.csv") -> dict[str, dict[str, str]]:
    with (place.out / name).open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_one_bad_scene_stops_no_other_and_the_same_command_goes_on(place: Place, here: list[InProcess]) -> None:
    for name in ("a", "b", "c", "d"):
        place.add(name)
    (place.root / "in/b_after.tif").unlink()
    (place.root / "in/c_before.tif").write_bytes(b"no GeoTIFF")
    told = Told()
    report = place.run(told)
    assert (report.done, report.earlier, list(report.failed)) == (2, 0, ["b", "c"])
    assert "is no file" in told.failed["b"] and "GeoTIFF" in told.failed["c"]
    rows = results(place)
    assert [row["status"] for row in rows.values()] == ["done", "failed", "failed", "done"]
    assert rows["a"]["output"] == "a.tif" and float(rows["a"]["changed_share"]) > 0.1 and rows["a"]["height"] == "80"
    assert rows["b"]["message"] == told.failed["b"] and rows["b"]["changed_share"] == ""
    with pytest.raises(ScenesFailed, match=r"2 of 4 scenes failed: b \(the after raster .* is no file\), c "):
        report.raise_failed()
    assert not (place.out / ".batch").exists()

    bytes_before = (place.out / "a.tif").stat().st_mtime_ns
    rows_before, place.rows = place.rows, []
    for name in ("a", "b", "c", "d", "e"):
        if name in ("b", "c", "e"):
            place.add(name)
    place.rows = [*rows_before, place.rows[-1]]
    report = place.run(told)
    assert here[-1].given == ["b", "c", "e"] and (report.done, report.earlier, report.failed) == (5, 2, {})
    assert (place.out / "a.tif").stat().st_mtime_ns == bytes_before
    for name in "abcde":
        assert (read(place.out / f"{name}.tif") == place.alone(name)).all()
    report.raise_failed()
    assert len(here) == 2 and place.run().earlier == 5 and len(here) == 2, "nothing is left to open an engine for"


def test_changed_files_and_options_are_done_again(place: Place, here: list[InProcess]) -> None:
    place.add("a")
    place.add("b")
    place.run()
    rows, place.rows = place.rows, []
    place.add("a", 90)
    place.rows = rows
    place.run()
    assert here[-1].given == ["a"] and read(place.out / "a.tif").shape == (90, 100)
    place.run(words={"quicklook": "yes"})
    assert here[-1].given == ["a", "b"] and (place.out / "b.png").exists()
    (place.out / "b.png").unlink()
    place.run(words={"quicklook": "yes"})
    assert here[-1].given == ["b"] and (place.out / "b.png").exists()


def test_another_bundle_is_refused_but_with_force(place: Place, here: list[InProcess]) -> None:
    place.add("a")
    place.run()
    edit(place.bundle, lambda values: values.update(bundle_version=2))
    with pytest.raises(UsageError, match=r"holds the results of the bundle .* with --force"):
        place.run()
    assert place.run(words={"force": "yes"}).done == 1 and here[-1].given == ["a"]


def test_shares_make_one_table_in_the_end(place: Place, here: list[InProcess]) -> None:
    for name in "abcde":
        place.add(name)
    for index in range(2):
        place.run(shard=Shard(index, 2))
    assert [pool.given for pool in here] == [["a", "c", "e"], ["b", "d"]]
    assert list(results(place, "results-1-of-2.csv")) == ["b", "d"]
    report = place.run()
    assert (report.done, report.earlier) == (5, 5) and list(results(place)) == list("abcde")


def test_a_run_that_is_interrupted_writes_what_it_has(
    place: Place, here: list[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.add("a")
    place.add("b")
    given = InProcess.give

    def give(self: InProcess, place: int, task: Task) -> None:
        if task.scene.id == "b":
            os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does
        given(self, place, task)

    monkeypatch.setattr(InProcess, "give", give)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        place.run()
    assert [row["status"] for row in results(place).values()] == ["done", "waiting"]
    monkeypatch.setattr(InProcess, "give", given)
    assert place.run().done == 2 and here[-1].given == ["b"]


def test_parquet_beside_csv(place: Place, here: list[InProcess]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    place.add("a")
    place.add("b")
    (place.root / "in/b_after.tif").unlink()
    assert [path.name for path in place.run().tables] == ["results.csv", "results.parquet"]
    rows = parquet.read_table(place.out / "results.parquet").to_pylist()
    assert [(row["id"], row["status"], row["height"]) for row in rows] == [("a", "done", 80), ("b", "failed", None)]
    assert isinstance(rows[0]["changed_share"], float)


# Processes that are killed


def kill_the_holder(folder: Path, after: Callable[[], bool]) -> Thread:
    """End the process that holds the scene of ``folder``, as soon as ``after``."""

    def kill() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for link in Path("/proc").glob("[0-9]*/fd/*") if after() else ():
                with suppress(OSError):
                    if link.readlink() == folder / "lock":
                        os.kill(int(link.parts[2]), signal.SIGKILL)
                        return
            time.sleep(0.01)

    thread = Thread(target=kill, daemon=True)
    thread.start()
    return thread


def forty(place: Place) -> None:
    """37 scenes, of them one that takes a while, and three that are broken each in its own way."""
    for index in range(40):
        place.add(f"s{index}", *((1300, 900) if index == 9 else (60 + index, 64)))
    (place.root / "in/s3_before.tif").write_bytes(b"no GeoTIFF")
    (place.root / "in/s20_after.tif").unlink()
    write_raster(place.root / "in/s33_after.tif", scene(60, 60)[1])


def check_forty(place: Place, report: BatchReport, told: Told) -> None:
    assert (report.done, sorted(report.failed)) == (37, ["s20", "s3", "s33"])
    for name, words in (("s3", "GeoTIFF"), ("s20", "no file"), ("s33", "differ in size")):
        assert words in report.failed[name]
    assert any(name == "s9" and "it is tried again" in line for name, line in told.lines)
    rows = results(place)
    assert rows["s9"]["attempts"] == "2" and {rows[f"s{i}"]["status"] for i in range(40) if i not in (3, 20, 33)} == {
        "done"
    }
    for name in ("s0", "s9", "s39"):
        assert (read(place.out / f"{name}.tif") == place.alone(name)).all()
    outputs = sorted(path.stem for path in place.out.glob("*.tif"))
    assert outputs == sorted(f"s{i}" for i in range(40) if i not in (3, 20, 33))


def killed_in_the_middle(place: Place, told: Told, **options: Any) -> BatchReport:
    folder = work_folder(place.out, "s9")
    journal = folder / ".output.tif.progress/journal.jsonl"
    thread = kill_the_holder(folder, lambda: journal.exists() and b'"type":"band"' in journal.read_bytes())
    report = place.run(told, **options)
    thread.join()
    return report


def test_forty_scenes_by_two_processes_of_which_one_is_killed(place: Place) -> None:
    forty(place)
    told = Told()
    report = killed_in_the_middle(place, told, workers=2, words={"batch": "1"})
    assert ("s9", "warning: its worker was killed by SIGKILL; out of memory, maybe; it is tried again") in told.lines
    check_forty(place, report, told)
    assert int(results(place)["s9"]["resumed"]) > 0, "what the killed worker had on the disk is not computed again"


def test_workers_end_with_a_driver_that_is_killed(place: Place) -> None:
    place.add("big", 2000, 1500)
    command = [sys.executable, "-m", "misgnet_runtime.cli", "batch", str(place.bundle), str(place.table())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    driver = subprocess.Popen([*command, "-o", str(place.out)], env=environment, stderr=subprocess.DEVNULL)
    lock, holders = work_folder(place.out, "big") / "lock", list[Path]()
    end = time.monotonic() + 30
    while not holders and time.monotonic() < end:
        time.sleep(0.02)
        holders = holders_of(lock)
    driver.kill()
    driver.wait()
    assert len(holders) == 1
    while (left := holders_of(lock)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left
    with opened(place.out) as record:
        assert record.begun["big"] == 1


def holders_of(path: Path) -> list[Path]:
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink() == path:
                found.append(link.parents[1])
    return found


# Ray


@pytest.mark.parametrize(
    ("resources", "on_gpu", "workers", "cores", "expected"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, True, None, 1, Slots(4, 1, 1)),
        ({"CPU": 16.0, "GPU": 4.0}, False, None, 1, Slots(16, 0, 1)),
        ({"CPU": 16.0}, True, None, 4, Slots(4, 0, 4)),
        ({"CPU": 2.0, "GPU": 4.0}, True, None, 1, Slots(2, 1, 1)),
        ({"CPU": 16.0}, False, 3, 4, Slots(3, 0, 4)),
    ],
)
def test_a_cluster_is_cut_into_slots(
    resources: dict[str, float], on_gpu: bool, workers: int | None, cores: int, expected: Slots
) -> None:
    assert ray_slots(resources, on_gpu, workers, cores) == expected


def test_a_cluster_without_room_is_told() -> None:
    with pytest.raises(UsageError, match="has 2 CPUs, and a worker takes 4"):
        ray_slots({"CPU": 2.0}, False, None, 4)


def test_gpus_are_asked_for_where_an_engine_is_for_one(tmp_path: Path) -> None:
    from bundles import FLOAT, RTX

    bundle = read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX]))
    assert runs_on_gpu(bundle, "auto") and runs_on_gpu(bundle, "rtx-sm86") and not runs_on_gpu(bundle, "cpu-float32")


def test_without_ray_the_install_line_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    place.add("a")
    with pytest.raises(UnavailableError, match=r"pip install 'misgnet-export\[ray\]'"):
        place.run(ray="auto")
    assert results(place)["a"]["status"] == "waiting"


@contextmanager
def ray_of_two(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two CPUs that ends with the block."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (
        ("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0"), ("OMP_NUM_THREADS", "1"),
        ("PYTHONPATH", str(ROOT / "runtime")),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        f"--temp-dir={place}", "--include-dashboard=false", "--object-store-memory=100000000",
    ]  # fmt: skip
    with (place / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 60
            while b"Ray runtime started" not in (place / "ray.log").read_bytes():
                assert head.poll() is None and time.monotonic() < end, (place / "ray.log").read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait(30)


def test_forty_scenes_on_a_cluster_of_two_workers_of_which_one_is_killed(
    place: Place, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_of_two(tmp_path_factory.mktemp("r"), monkeypatch) as address:
        forty(place)
        told = Told()
        report = killed_in_the_middle(place, told, ray=address, words={"batch": "1"})
        assert "2 actors of 1 core and 0 GPUs each" in told.notes
        assert any(name == "s9" and "its worker died (ActorDiedError" in line for name, line in told.lines)
        check_forty(place, report, told)


# The command


def test_the_command_ends_with_its_own_code(
    place: Place, here: list[InProcess], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.add("a", 80, 100, "yes")
    place.add("b", 80, 100, "")
    (place.root / "in/b_after.tif").unlink()
    words = [
        "batch",
        str(place.bundle),
        str(place.table("cog")),
        "-o",
        str(place.out),
        "--ray",
        "none",
        "--overlap",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", ["misgnet-run", *words, "--probability", "--log", "json"])
    with pytest.raises(SystemExit) as ended:
        console.run_app(app)
    assert ended.value.code == 6
    said, errors = capsys.readouterr()
    *lines, last = map(json.loads, said.splitlines())
    assert [line["scene"] for line in lines] == ["a"] and lines[0]["outputs"] == ["a.probability.tif", "a.tif"]
    assert (last["done"], list(last["failed"])) == (1, ["b"])
    assert "1 of 2 scenes failed: b (the after raster" in json.loads(errors.splitlines()[-1])["message"]
    from misgnet_runtime.scenes.geotiff import read_tags

    assert read_tags(place.out / "a.tif")["MISGNET_OVERLAP"] == "0"


def test_a_kubernetes_job_does_it_in_shares(
    place: Place, here: list[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    job = yaml.safe_load((ROOT / "examples/kubernetes/batch-job.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert spec["completions"] == spec["parallelism"] == spec["maxFailedIndexes"] and pod["restartPolicy"] == "Never"
    codes = spec["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert {ScenesFailed.exit_code, UsageError.exit_code} == set(codes["values"])
    (container,) = pod["containers"]
    assert codes["containerName"] == container["name"] and container["command"] == ["misgnet-run"]
    for index in range(12):
        place.add(f"s{index}")
    place.table().rename(place.root / "data.csv")
    names = {"/data/bundle": str(place.bundle), "/data/scenes.csv": str(place.root / "data.csv")}
    for index in range(spec["completions"]):
        values = {"$(JOB_COMPLETION_INDEX)": str(index), "$(CPUS)": "1", "/data/changes": str(place.out)}
        arguments = [names.get(word, word) for word in container["args"]]
        for name, value in values.items():
            arguments = [word.replace(name, value) for word in arguments]
        monkeypatch.setattr(sys, "argv", ["misgnet-run", *arguments])
        with pytest.raises(SystemExit) as ended:
            console.run_app(app)
        assert not ended.value.code
    assert sorted(path.stem for path in place.out.glob("*.tif")) == sorted(f"s{i}" for i in range(12))

"""A folder that is watched: pairs that are complete are processed once, in order, whatever ends the process."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, StorageError, UsageError
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.watch import service
from misgnet_runtime.jobs.watch.completeness import Settling, open_for_writing
from misgnet_runtime.jobs.watch.journal import Journal
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.watch.outcomes import WatchReport
from misgnet_runtime.jobs.watch.pairing import File, FilePair, Naming
from misgnet_runtime.jobs.watch.preflight import file_digest
from misgnet_runtime.jobs.watch.service import watch_folder
from support.bundles import (
    FLOAT,
    INTERFACE,
    FakeEngine,
    edit,
    expected,
    fake_detector,
    images,
    make_bundle,
    write_image,
)
from support.commands import exit_code
from support.ends import die_at, in_child
from support.logs import Collected
from support.paths import ROOT

SIZE = (70, 60)
NOW = WatchOptions(settle=0, once=True)


class Place:
    """A bundle, a folder that is watched and its output."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.folder, self.out = root / "in", root / "out"
        self.folder.mkdir()
        self.log = Collected()

    def add(self, name: str, seed: int = 0, suffix: str = ".png") -> None:
        for date, pixels in zip(("before", "after"), images(*SIZE, seed=seed), strict=True):
            write_image(self.folder / f"{name}_{date}{suffix}", pixels)

    def run(self, options: WatchOptions = NOW) -> WatchReport:
        self.log = Collected()
        return watch_folder(self.bundle, self.folder, self.out, options, self.log.log)

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "watch.jsonl").read_text().splitlines()]

    def ends(self) -> list[tuple[str, str]]:
        return [(e["pair"], e["type"]) for e in self.journal() if e["type"] in ("done", "failed")]

    def names(self) -> set[str]:
        return {path.name for path in self.out.iterdir()} - {"watch.jsonl"}


def mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image) == 255


def answer(seed: int) -> np.ndarray:
    return expected(*images(*SIZE, seed=seed)) > 0.5


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every call of any engine that is opened."""
    found: list[int] = []
    monkeypatch.setattr(service, "open_detector", fake_detector(lambda: FakeEngine(INTERFACE, batches=found)))
    return found


@pytest.fixture
def place(tmp_path: Path, batches: list[int]) -> Place:
    return Place(tmp_path)


# --- which files are a pair


def found_names(folder: Path, naming: Naming) -> tuple[list[str], list[str]]:
    pairs, remarks = naming.pairs(folder, os.listdir(folder))  # noqa: PTH208
    return [pair.name for pair in pairs], remarks


@pytest.mark.parametrize(
    "names",
    [
        ["x_before.png"], ["x_before.png", "y_after.png"], [".x_before.png", ".x_after.png"],
        ["x_before.png", "x_after.png.part"], ["x_before.png.tmp", "x_after.png.tmp"],
        ["x_before.png", "x_after.png.crdownload"], ["_before.png", "_after.png"], ["x_before.txt", "x_after.txt"],
        ["xbefore.png", "xafter.png"],
    ],
)  # fmt: skip
def test_other_names_are_no_pairs(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert found_names(tmp_path, Naming()) == ([], [])


def test_pairs_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("a_before.png", "a_after.PNG", "b c_before.jpg", "b c_after.jpeg", "d_before.tif", "d_after.tiff"):
        (tmp_path / name).touch()
    assert found_names(tmp_path, Naming()) == (["a", "b c", "d"], [])
    for name in ("e-1.png", "e-2.png"):
        (tmp_path / name).touch()
    assert found_names(tmp_path, Naming("-1", "-2")) == (["e"], [])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x_before.png", "x_before.jpg", "x_after.png"], "is not clear"),
        (["x_before.png", "x_after.tif"], "a GeoTIFF and another image"),
        (["x\udcff_before.png", "x\udcff_after.png"], "not UTF-8"),
    ],
)
def test_what_is_not_clear_is_told_and_not_taken(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    pairs, (remark,) = found_names(tmp_path, Naming())
    assert pairs == [] and words in remark and remark.isascii()


def test_folders_and_pipes_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "x_before.png").mkdir()
    os.mkfifo(tmp_path / "x_after.png")
    assert found_names(tmp_path, Naming()) == ([], [])


def one_pair(folder: Path, naming: Naming | None = None) -> FilePair:
    ((pair,), _) = (naming or Naming()).pairs(folder, os.listdir(folder))  # noqa: PTH208
    return pair


def test_a_marker_is_the_pairs_or_of_both_files(tmp_path: Path) -> None:
    naming = Naming(marker=".done")
    for name in ("x_before.png", "x_after.png", "x_before.png.done"):
        (tmp_path / name).touch()
    assert one_pair(tmp_path, naming).marked is None
    (tmp_path / "x_after.png.done").touch()
    assert one_pair(tmp_path, naming).marked == (tmp_path / "x_after.png.done").stat().st_ctime_ns
    (tmp_path / "x_before.png.done").rename(tmp_path / "x.done")
    assert one_pair(tmp_path, naming).marked == (tmp_path / "x.done").stat().st_ctime_ns


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (WatchOptions(naming=Naming("_x", "_x")), "--before-suffix"),
        (WatchOptions(naming=Naming("", "_after")), "--before-suffix"),
        (WatchOptions(naming=Naming("before", "_before")), "--before-suffix"),
        (WatchOptions(naming=Naming(marker=".png")), "--marker"),
        (WatchOptions(naming=Naming(marker="")), "--marker"),
        (WatchOptions(settle=-1), "--settle"),
        (WatchOptions(poll=0), "--poll"),
        (WatchOptions(poll=float("nan")), "--poll"),
        (WatchOptions(scene=SceneOptions(execution=ExecutionOptions(batch=0))), "--batch"),
        (WatchOptions(vector="shp"), "--vector"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(place: Place, options: WatchOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        place.run(options)
    assert not place.out.exists()


# --- when files are complete


def test_files_settle(tmp_path: Path) -> None:
    for name in ("x_before.png", "x_after.png"):
        (tmp_path / name).write_bytes(b"1")
    settling = Settling(2)
    assert settling.settled([one_pair(tmp_path)], 100) == []
    assert settling.settled([one_pair(tmp_path)], 101.9) == []
    (tmp_path / "x_after.png").write_bytes(b"12")
    assert settling.settled([one_pair(tmp_path)], 102.5) == []
    assert settling.settled([one_pair(tmp_path)], 104) == []
    assert settling.settled([one_pair(tmp_path)], 104.5) == [one_pair(tmp_path)]


def test_a_file_that_is_open_for_writing_is_not_complete(tmp_path: Path) -> None:
    for name in ("x_before.png", "x_after.png"):
        (tmp_path / name).write_bytes(b"1")
    pair = one_pair(tmp_path)
    with (tmp_path / "x_after.png").open("ab"), (tmp_path / "x_before.png").open("rb"):
        assert open_for_writing(pair.files) == {pair.after}
        assert Settling(0).settled([pair], 0) == []
    assert open_for_writing(pair.files) == set()
    assert Settling(0).settled([pair], 0) == [pair]


# --- what is processed


def test_pairs_are_processed_once_in_the_order_of_their_arrival(place: Place, batches: list[int]) -> None:
    for seed, name in enumerate("cab"):
        place.add(name, seed)
        time.sleep(0.02)  # two changes within a tick of the file system's clock have one time
    report = place.run()
    assert (report.done, report.failed) == (3, 0)
    assert place.ends() == [("c", "done"), ("a", "done"), ("b", "done")]
    for seed, name in enumerate("cab"):
        np.testing.assert_array_equal(mask(place.out / f"{name}_change.png"), answer(seed))
    assert place.names() == {f"{name}_change.png" for name in "abc"}
    assert [figures["pair"] for figures in place.log.results] == ["c", "a", "b"]
    assert place.log.results[0]["changed_share"] == answer(0).mean()
    calls = len(batches)
    assert place.run().done == 0 and len(batches) == calls


def test_equal_times_are_ordered_by_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "bca":
        place.add(name)
    monkeypatch.setattr(FilePair, "arrived", 0)
    place.run()
    assert [name for name, _ in place.ends()] == ["a", "b", "c"]


def test_a_pair_that_arrives_by_rename_counts_from_then(place: Place) -> None:
    place.add("old")
    os.rename(place.folder / "old_before.png", place.root / "old_before.png")  # noqa: PTH104
    place.add("new", 1)
    time.sleep(0.02)
    os.rename(place.root / "old_before.png", place.folder / "old_before.png")  # noqa: PTH104
    place.run()
    assert [name for name, _ in place.ends()] == ["new", "old"]


def test_a_damaged_pair_is_journaled_and_the_next_is_taken(place: Place) -> None:
    place.add("a")
    (place.folder / "a_after.png").write_bytes((place.folder / "a_after.png").read_bytes()[:99])
    place.add("b", 1)
    report = place.run()
    assert (report.done, report.failed) == (1, 1)
    assert place.ends() == [("a", "failed"), ("b", "done")] and place.names() == {"b_change.png"}
    failed = next(e for e in place.journal() if e["type"] == "failed")
    assert "a_after.png is damaged" in failed["message"]
    assert place.run().failed == 0
    assert place.run(replace(NOW, retry_failed=True)).failed == 1
    place.add("a")  # whole now: that is another pair, and needs no option
    assert place.run().done == 1
    assert place.ends()[-1] == ("a", "done")


def test_whatever_a_pair_raises_the_next_is_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a")
    monkeypatch.setattr("misgnet_runtime.jobs.watch.processing.read_pair", lambda *_: 1 / 0)
    assert place.run().failed == 1
    assert place.journal()[-1]["message"] == "ZeroDivisionError: division by zero"


def test_a_changed_pair_is_told_and_processed_when_asked(place: Place) -> None:
    place.add("a")
    place.run()
    time.sleep(0.02)
    place.add("a")  # the same bytes again
    assert place.run().done == 0 and place.log.warnings == []
    place.add("a", 5)
    assert place.run().done == 0
    assert place.log.warnings == [
        "a: its files have changed since it was processed; that is done anew with --reprocess"
    ]
    np.testing.assert_array_equal(mask(place.out / "a_change.png"), answer(0))
    assert place.run(replace(NOW, reprocess=True)).done == 1
    np.testing.assert_array_equal(mask(place.out / "a_change.png"), answer(5))
    assert place.run(replace(NOW, reprocess=True)).done == 0


def test_an_output_that_is_not_the_watchers_is_kept(place: Place) -> None:
    place.add("a")
    place.out.mkdir()
    (place.out / "a_change.png").write_bytes(b"another's")
    assert place.run().failed == 1
    assert "exists" in place.journal()[-1]["message"]
    assert (place.out / "a_change.png").read_bytes() == b"another's"
    assert place.run(replace(NOW, force=True, retry_failed=True)).done == 1


def test_files_that_change_while_they_are_read_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a")

    class Replacing(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            if not self.batches:
                place.add("a", 7)
            return super()._infer(context, arrays, batch)

    monkeypatch.setattr(service, "open_detector", fake_detector(lambda: Replacing(INTERFACE)))
    assert place.run().done == 0 and place.ends() == [] and place.names() == set()
    assert "changed while they were read" in place.log.warnings[0]
    monkeypatch.setattr(service, "open_detector", fake_detector(lambda: FakeEngine(INTERFACE)))
    assert place.run().done == 1
    np.testing.assert_array_equal(mask(place.out / "a_change.png"), answer(7))


def test_files_that_vanish_while_they_are_read_are_no_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a")

    def lost(*paths: Path) -> None:
        place.folder.rename(place.root / "gone")
        raise InputError(f"image {paths[0]} does not exist")

    with monkeypatch.context() as patched:
        patched.setattr("misgnet_runtime.jobs.watch.processing.read_pair", lost)
        assert place.run().failed == 0
    assert place.ends() == []
    (place.root / "gone").rename(place.folder)
    assert place.run().done == 1


def test_a_file_that_cannot_be_read_is_told_and_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything: the refusal is made up."""
    place.add("a")
    place.add("b", 1)

    def refused(file: File) -> str:
        if file.path.name == "a_before.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file.path))
        return file_digest(file)

    with monkeypatch.context() as patched:
        patched.setattr("misgnet_runtime.jobs.watch.processing.file_digest", refused)
        assert place.run() == WatchReport(done=1, pending=1)
    assert [w for w in place.log.warnings if "a cannot be read:" in w and "Permission denied: " in w]
    assert place.run() == WatchReport(done=1) and place.log.warnings == []


# --- GeoTIFFs


def test_geotiffs_become_maps_and_products(place: Place) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    pytest.importorskip("pyogrio", reason="polygons need the [geo] extra")
    from support.scenes import read, scene, write_raster

    for date, pixels in zip(("before", "after"), scene(90, 80), strict=True):
        write_raster(place.folder / f"s_{date}.tif", pixels.astype(np.uint16) * 100)
    place.run()
    assert "contains uint16" in place.journal()[-1]["message"]  # declared nowhere
    from misgnet_runtime.raster.declared import Declared

    declared = Declared(scale=(1 / 25500,))
    options = replace(
        NOW, probability=True, vector="gpkg", quicklook=True, retry_failed=True,
        scene=replace(NOW.scene, before=declared, after=declared),
    )  # fmt: skip
    assert place.run(options).done == 1
    assert place.names() == {"s_change.tif", "s_probability.tif", "s_change.gpkg", "s_quicklook.png"}
    before, after = scene(90, 80)
    wanted = expected(np.moveaxis(before, 0, 2), np.moveaxis(after, 0, 2)) > 0.5
    assert np.array_equal(read(place.out / "s_change.tif"), wanted)
    assert place.log.results[0]["polygons"] == 2


def test_the_command_says_how_geotiffs_are_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    pytest.importorskip("pyogrio", reason="polygons need the [geo] extra")
    from misgnet_runtime.cli import main as cli
    from support.scenes import read, scene, write_raster

    dates = scene(90, 80)
    write_raster(place.folder / "s-old.tif", dates[0].astype(np.uint16) * 100)
    write_raster(place.folder / "s-new.tif", dates[1][::-1])
    words = (
        "watch", place.bundle, place.folder, "-o", place.out, "--once", "--settle", 0, "--before-suffix", "-old",
        "--after-suffix", "-new", "--probability", "--vector", "geojson", "--min-area", 5000,
        "--before-scale", 1 / 25500, "--after-bands", "3,2,1",
    )  # fmt: skip
    code, captured = exit_code(cli.main, "misgnet-run", *words), capsys.readouterr()
    assert code == 0 and captured.out.endswith(f"{place.out}: 1 pair done, 0 pairs failed, 0 pending\n")
    assert "watching" in captured.err and "before: bands 1,2,3, scale 3.92157e-05" in captured.err
    assert place.names() == {"s_change.tif", "s_probability.tif", "s_change.geojson"}
    before, after = (np.moveaxis(date, 0, 2) for date in dates)
    assert np.array_equal(read(place.out / "s_change.tif"), expected(before, after) > 0.5)
    assert json.loads((place.out / "s_change.geojson").read_text())["features"] == []


def test_without_rasterio_the_pair_waits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for date in ("before", "after"):
        (place.folder / f"s_{date}.tif").write_bytes(b"no matter")
    place.add("a")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert place.run() == WatchReport(done=1, pending=1)
    assert place.ends() == [("a", "done")] and "requires rasterio" in place.log.warnings[0]


# --- bundles, disks and folders


def test_another_bundle_is_refused_but_with_force(place: Place) -> None:
    place.add("a")
    place.run()
    edit(place.bundle, lambda m: m.update(threshold=0.4))
    place.add("b")
    with pytest.raises(UsageError, match=r"results of the bundle [0-9a-f]{16}, and this one is .*--force"):
        place.run()
    assert place.run(replace(NOW, force=True)).done == 1
    assert [e["type"] for e in place.journal()].count("started") == 2


def test_the_folder_must_be_there_and_not_the_output(place: Place) -> None:
    place.out = place.folder
    with pytest.raises(UsageError, match="is the folder that is watched"):
        place.run()
    place.folder = place.root / "nowhere"
    with pytest.raises(InputError, match="nowhere cannot be read"):
        place.run()


def refusing_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], None]:
    """No room from the ``after``-th write on; the answer makes room."""
    real, left = os.fsync, after

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda: monkeypatch.setattr(os, "fsync", real)


@pytest.mark.parametrize("after", range(2, 9))
def test_a_full_disk_fails_no_pair(place: Place, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    place.run()
    place.add("a")
    with monkeypatch.context() as patched:
        refusing_disk(patched, after - 2)
        with pytest.raises(StorageError, match="No space left"):
            place.run()
    assert ("a", "failed") not in place.ends()
    place.run()
    assert place.ends() == [("a", "done")] and place.names() == {"a_change.png"}


def test_what_is_tried_again_is_gone_on_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a")
    with monkeypatch.context() as patched:
        patched.setattr("misgnet_runtime.jobs.watch.processing.read_pair", lambda *_: 1 / 0)
        assert place.run().failed == 1
    with monkeypatch.context() as patched:
        refusing_disk(patched, 1)  # "begun" is on the disk
        with pytest.raises(StorageError):
            place.run(replace(NOW, retry_failed=True))
    assert place.run() == WatchReport(done=1)
    assert place.ends() == [("a", "failed"), ("a", "done")]


# --- a watcher that goes on


@contextmanager
def watching(place: Place, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A watcher in a process of its own, ended by SIGTERM."""
    command = [
        sys.executable, "-m", "misgnet_runtime.cli", "watch", place.bundle, place.folder, "-o", place.out,
        "--poll", "0.02", "--settle", "0.3", "--log", "json", *words,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    place.root.joinpath("said").touch()
    with place.root.joinpath("said").open("ab") as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def wait_for(true: Callable[[], object], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def said(place: Place) -> str:
    return (place.root / "said").read_text()


@pytest.fixture
def real(tmp_path: Path) -> Place:
    """Without a fake engine."""
    return Place(tmp_path)


def test_arrivals_while_it_watches(real: Place) -> None:
    """A file that grows slowly, one that is renamed, one that lies under a name of its writer's, a lost folder."""
    real.add("grown", 1)
    whole = (real.folder / "grown_after.png").read_bytes()
    (real.folder / "grown_after.png").unlink()
    done = real.out / "grown_change.png", real.out / "moved_change.png"
    with watching(real) as process:
        wait_for(lambda: "watching" in said(real))
        with (real.folder / "grown_after.png").open("wb", buffering=0) as slow:
            slow.write(whole[:2000])
            time.sleep(0.7)  # longer than it takes to settle: it is open
            assert not done[0].exists()
            slow.write(whole[2000:])
        wait_for(done[0].exists)
        np.testing.assert_array_equal(mask(done[0]), answer(1))
        real.add("moved", 2)
        real.folder.rename(real.root / "gone")
        wait_for(lambda: "waiting for it" in said(real))
        (real.root / "gone").rename(real.folder)
        wait_for(done[1].exists)
        wait_for(lambda: len(real.ends()) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert Counter(real.ends()) == {("grown", "done"): 1, ("moved", "done"): 1}
    levels = [json.loads(line)["level"] for line in said(real).splitlines()]
    assert levels == ["info", "warning"]


def test_a_marker_is_waited_for(real: Place) -> None:
    real.add("a")
    with watching(real, "--marker", ".done"):
        wait_for(lambda: "watching" in said(real))
        time.sleep(0.2)
        assert real.names() == set()
        (real.folder / "a.done").touch()
        wait_for(lambda: real.names() == {"a_change.png"})


def test_an_interruption_is_no_error(real: Place) -> None:
    with watching(real) as process:
        wait_for(lambda: "watching" in said(real))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


# --- ends


def doomed(place: Place, moment: int) -> None:
    die_at(moment)
    place.run(scene_options())


def scene_options() -> WatchOptions:
    return replace(NOW, probability=True)


@pytest.mark.parametrize("moment", ["complete", "publish", "done"])
def test_a_result_that_is_whole_is_not_computed_again(
    place: Place, batches: list[int], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ended before it was journaled as complete, before it got its name, and before it was journaled as done."""
    place.add("a")

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    real = Journal.add

    def add(journal: Journal, entry: Any) -> None:
        return ended() if type(entry).__name__.lower() == moment else real(journal, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", add)
        if moment == "publish":
            patched.setattr("misgnet_runtime.jobs.watch.outcomes.publish", ended)
        assert place.run().done == 0
    calls = len(batches)
    assert place.run().done == 1 and len(batches) == calls
    assert place.ends() == [("a", "done")] and place.names() == {"a_change.png"}
    np.testing.assert_array_equal(mask(place.out / "a_change.png"), answer(0))


def stopped_scene(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a scene with some of its rows, by SIGTERM."""
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(400, 60), strict=True):
        write_raster(place.folder / f"s_{date}.tif", pixels)

    class Stopping(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            if len(self.batches) == 4:
                time.sleep(0.3)  # what was answered reaches the disk
                os.kill(os.getpid(), signal.SIGTERM)
            return super()._infer(context, arrays, batch)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(service, "open_detector", fake_detector(lambda: Stopping(INTERFACE)))
        assert place.run() == WatchReport(pending=1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert place.ends() == [] and place.names() == {".working"}


def test_a_scene_that_was_interrupted_is_gone_on_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    stopped_scene(place, monkeypatch)
    place.add("a")
    monkeypatch.setattr(FilePair, "arrived", 0)  # then by name, but for what was begun
    assert place.run().done == 2
    assert place.ends() == [("s", "done"), ("a", "done")]
    resumed = place.log.results[0]["resumed"]
    assert isinstance(resumed, int) and resumed > 0


def test_other_options_begin_an_interrupted_scene_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    stopped_scene(place, monkeypatch)
    assert place.run(replace(NOW, scene=replace(NOW.scene, overlap=8))).done == 1
    assert place.log.results[0]["resumed"] == 0


def test_what_was_tuned_since_begins_an_interrupted_scene_anew_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    stopped_scene(place, monkeypatch)
    monkeypatch.setattr(service, "open_detector", fake_detector(lambda: FakeEngine(INTERFACE, streams=2)))
    assert place.run().done == 1
    assert place.log.results[0]["resumed"] == 0
    words = "the engine cpu-float32 on a fake, 1 streams, batch 1, and now it is cpu-float32 on a fake, 2 streams"
    assert any(f"s was begun with {words}" in note for note in place.log.messages)


def test_an_interrupted_pair_that_changed_is_begun_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    stopped_scene(place, monkeypatch)
    write_raster(place.folder / "s_after.tif", scene(400, 60)[0])
    assert place.run().done == 1
    assert (place.log.results[0]["resumed"], place.log.results[0]["changed_share"]) == (0, 0)


def test_a_watcher_that_is_killed_anywhere_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image and a scene: each is done once, and is what it would have been."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the system keeps what a killed process wrote
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    place.add("a")
    for date, pixels in zip(("before", "after"), scene(64, 60), strict=True):
        write_raster(place.folder / f"s_{date}.tif", pixels)
    place.run(scene_options())
    whole = {name: (place.out / name).read_bytes() for name in place.names()}
    assert set(whole) == {"a_change.png", "s_change.tif", "s_probability.tif"}
    for number in range(100):
        place.out = place.root / f"out{number}"
        killed = in_child(partial(doomed, place, number))
        for name in place.names() - {".working"}:
            assert (place.out / name).read_bytes() == whole[name]
        place.run(scene_options())
        assert {name: (place.out / name).read_bytes() for name in place.names()} == whole
        assert sorted(place.ends()) == [("a", "done"), ("s", "done")]
        counts = Counter(e["type"] for e in place.journal() if e["type"] not in ("read", "unclean"))
        assert counts == {"started": 1, "begun": 2, "complete": 2, "done": 2}
        if not killed:
            break
    assert 20 < number < 99


def test_a_watcher_that_is_killed_at_any_time_goes_on(real: Place) -> None:
    names = [f"p{number}" for number in range(10)]
    for seed, name in enumerate(names):
        real.add(name, seed)
    chance = random.Random(0)
    kills = 0
    while kills < 3:
        with watching(real, "--settle", "0.05") as process:
            began = len(real.ends()) if real.out.exists() else 0
            with suppress(AssertionError):
                wait_for(lambda began=began: (real.out / "watch.jsonl").exists() and len(real.ends()) > began, 5)
            time.sleep(chance.uniform(0, 0.02))
            process.kill()
            kills += 1
    with watching(real, "--settle", "0.05", "--once") as process:
        assert process.wait(30) == 0
    assert Counter(real.ends()) == Counter((name, "done") for name in names)
    assert Counter(e["type"] for e in real.journal())["complete"] == len(names)
    for seed, name in enumerate(names):
        np.testing.assert_array_equal(mask(real.out / f"{name}_change.png"), answer(seed))
    assert real.names() == {f"{name}_change.png" for name in names}

"""Tests of the folder watcher: complete pairs are processed once, in order, even if the process is killed."""

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
from misgnet_runtime.inference.selection import DetectorOpener
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.watch.completeness import Settling, open_for_writing
from misgnet_runtime.jobs.watch.journal import Journal
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.watch.outcomes import WatchReport
from misgnet_runtime.jobs.watch.pairing import File, FilePair, Naming
from misgnet_runtime.jobs.watch.preflight import file_digest
from misgnet_runtime.jobs.watch.service import watch_folder
from misgnet_runtime.raster.images import read_mask_tags
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


class Workspace:
    """A bundle, a watched folder and an output folder; in this process, the engine is a fake.

    ``batches`` collects the batch sizes of all calls of all engines.
    """

    def __init__(self, root: Path, batches: list[int] | None = None) -> None:
        self.root = root
        self.opener = fake_detector(lambda: FakeEngine(INTERFACE, batches=batches))
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.folder, self.out = root / "in", root / "out"
        self.folder.mkdir()
        self.log = Collected()

    def add(self, name: str, seed: int = 0, suffix: str = ".png") -> None:
        for date, pixels in zip(("before", "after"), images(*SIZE, seed=seed), strict=True):
            write_image(self.folder / f"{name}_{date}{suffix}", pixels)

    def run(self, options: WatchOptions = NOW, opener: DetectorOpener | None = None) -> WatchReport:
        self.log = Collected()
        return watch_folder(
            self.bundle, self.folder, self.out, options, self.log.log, opener=opener or self.opener
        )  # fmt: skip

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "watch.jsonl").read_text().splitlines()]

    def ends(self) -> list[tuple[str, str]]:
        return [(e["pair"], e["type"]) for e in self.journal() if e["type"] in ("done", "failed")]

    def names(self) -> set[str]:
        return {path.name for path in self.out.iterdir()} - {"watch.jsonl"}


def mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image) == 255


def predicted(seed: int) -> np.ndarray:
    return expected(*images(*SIZE, seed=seed)) > 0.5


@pytest.fixture
def batches() -> list[int]:
    """Batch sizes of all calls of the workspace's engines."""
    return []


@pytest.fixture
def workspace(tmp_path: Path, batches: list[int]) -> Workspace:
    return Workspace(tmp_path, batches)


# --- pairing of files


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
def test_files_with_other_names_are_not_paired(tmp_path: Path, names: list[str]) -> None:
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
        (["x_before.png", "x_before.jpg", "x_after.png"], "more than two files of one name"),
        (["x_before.png", "x_after.tif"], "not a pair, because only one is a GeoTIFF"),
        (["x\udcff_before.png", "x\udcff_after.png"], "not UTF-8"),
    ],
)
def test_ambiguous_pairs_are_reported_and_not_processed(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    pairs, (remark,) = found_names(tmp_path, Naming())
    assert pairs == [] and words in remark and remark.isascii()


def test_folders_and_pipes_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "x_before.png").mkdir()
    os.mkfifo(tmp_path / "x_after.png")
    assert found_names(tmp_path, Naming()) == ([], [])


def one_pair(folder: Path, naming: Naming | None = None) -> FilePair:
    ((pair,), _) = (naming or Naming()).pairs(folder, os.listdir(folder))  # noqa: PTH208
    return pair


def test_a_marker_belongs_to_the_pair_or_to_both_files(tmp_path: Path) -> None:
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
def test_invalid_options_are_refused(workspace: Workspace, options: WatchOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        workspace.run(options)
    assert not workspace.out.exists()


# --- completeness of files


def test_files_are_complete_after_the_settling_time(tmp_path: Path) -> None:
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


# --- processing


def test_pairs_are_processed_once_in_order_of_arrival(workspace: Workspace, batches: list[int]) -> None:
    for seed, name in enumerate("cab"):
        workspace.add(name, seed)
        time.sleep(0.02)  # changes within one tick of the file system's clock have the same time
    report = workspace.run()
    assert (report.done, report.failed) == (3, 0)
    assert workspace.ends() == [("c", "done"), ("a", "done"), ("b", "done")]
    for seed, name in enumerate("cab"):
        np.testing.assert_array_equal(mask(workspace.out / f"{name}_change.png"), predicted(seed))
        assert read_mask_tags(workspace.out / f"{name}_change.png")["MISGNET_AFTER_SHA256"]
    assert workspace.names() == {f"{name}_change.png" for name in "abc"}
    assert [figures["pair"] for figures in workspace.log.results] == ["c", "a", "b"]
    assert workspace.log.results[0]["changed_share"] == predicted(0).mean()
    calls = len(batches)
    assert workspace.run().done == 0 and len(batches) == calls


def test_pairs_with_equal_arrival_times_are_ordered_by_name(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "bca":
        workspace.add(name)
    monkeypatch.setattr(FilePair, "arrived", 0)
    workspace.run()
    assert [name for name, _ in workspace.ends()] == ["a", "b", "c"]


def test_a_renamed_pair_arrives_at_the_time_of_the_rename(workspace: Workspace) -> None:
    workspace.add("old")
    os.rename(workspace.folder / "old_before.png", workspace.root / "old_before.png")  # noqa: PTH104
    workspace.add("new", 1)
    time.sleep(0.02)
    os.rename(workspace.root / "old_before.png", workspace.folder / "old_before.png")  # noqa: PTH104
    workspace.run()
    assert [name for name, _ in workspace.ends()] == ["new", "old"]


def test_a_damaged_pair_is_journaled_and_the_next_one_is_processed(workspace: Workspace) -> None:
    workspace.add("a")
    (workspace.folder / "a_after.png").write_bytes((workspace.folder / "a_after.png").read_bytes()[:99])
    workspace.add("b", 1)
    report = workspace.run()
    assert (report.done, report.failed) == (1, 1)
    assert workspace.ends() == [("a", "failed"), ("b", "done")] and workspace.names() == {"b_change.png"}
    failed = next(e for e in workspace.journal() if e["type"] == "failed")
    assert "a_after.png is damaged" in failed["message"]
    assert workspace.run().failed == 0
    assert workspace.run(replace(NOW, retry_failed=True)).failed == 1
    workspace.add("a")  # complete now, so the pair is processed without --retry-failed
    assert workspace.run().done == 1
    assert workspace.ends()[-1] == ("a", "done")


def test_an_unexpected_error_fails_only_its_pair(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add("a")
    monkeypatch.setattr("misgnet_runtime.jobs.image.read_pair", lambda *_: 1 / 0)
    assert workspace.run().failed == 1
    assert workspace.journal()[-1]["message"] == "ZeroDivisionError: division by zero"


def test_a_changed_pair_is_reported_and_processed_with_reprocess(workspace: Workspace) -> None:
    workspace.add("a")
    workspace.run()
    time.sleep(0.02)
    workspace.add("a")  # the same bytes again
    assert workspace.run().done == 0 and workspace.log.warnings == []
    workspace.add("a", 5)
    assert workspace.run().done == 0
    assert workspace.log.warnings == [
        "a: its files have changed since it was processed; process it again with --reprocess"
    ]
    np.testing.assert_array_equal(mask(workspace.out / "a_change.png"), predicted(0))
    assert workspace.run(replace(NOW, reprocess=True)).done == 1
    np.testing.assert_array_equal(mask(workspace.out / "a_change.png"), predicted(5))
    assert workspace.run(replace(NOW, reprocess=True)).done == 0


def test_an_output_of_another_program_is_kept(workspace: Workspace) -> None:
    workspace.add("a")
    workspace.out.mkdir()
    (workspace.out / "a_change.png").write_bytes(b"another's")
    assert workspace.run().failed == 1
    assert "exists" in workspace.journal()[-1]["message"]
    assert (workspace.out / "a_change.png").read_bytes() == b"another's"
    assert workspace.run(replace(NOW, force=True, retry_failed=True)).done == 1


def test_a_pair_whose_files_change_while_being_read_is_processed_later(workspace: Workspace) -> None:
    workspace.add("a")

    class Replacing(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            if not self.batches:
                workspace.add("a", 7)
            return super()._infer(context, arrays, batch)

    found = workspace.run(opener=fake_detector(lambda: Replacing(INTERFACE)))
    assert found.done == 0 and workspace.ends() == [] and workspace.names() == set()
    assert "changed while being read" in workspace.log.warnings[0]
    assert workspace.run().done == 1
    np.testing.assert_array_equal(mask(workspace.out / "a_change.png"), predicted(7))


def test_a_pair_whose_files_vanish_while_being_read_does_not_fail(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.add("a")

    def lost(*paths: Path) -> None:
        workspace.folder.rename(workspace.root / "gone")
        raise InputError(f"image {paths[0]} does not exist")

    with monkeypatch.context() as patched:
        patched.setattr("misgnet_runtime.jobs.image.read_pair", lost)
        assert workspace.run().failed == 0
    assert workspace.ends() == []
    (workspace.root / "gone").rename(workspace.folder)
    assert workspace.run().done == 1


def test_an_unreadable_file_is_reported_and_waited_for(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is simulated, because root may read every file."""
    workspace.add("a")
    workspace.add("b", 1)

    def refused(file: File) -> str:
        if file.path.name == "a_before.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file.path))
        return file_digest(file)

    with monkeypatch.context() as patched:
        patched.setattr("misgnet_runtime.jobs.watch.processing.file_digest", refused)
        assert workspace.run() == WatchReport(done=1, pending=1)
    assert [w for w in workspace.log.warnings if "a cannot be read:" in w and "Permission denied: " in w]
    assert workspace.run() == WatchReport(done=1) and workspace.log.warnings == []


# --- GeoTIFFs


def test_geotiffs_are_processed_into_rasters_and_products(workspace: Workspace) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    pytest.importorskip("pyogrio", reason="polygons need the [geo] extra")
    from support.scenes import read, scene, write_raster

    for date, pixels in zip(("before", "after"), scene(90, 80), strict=True):
        write_raster(workspace.folder / f"s_{date}.tif", pixels.astype(np.uint16) * 100)
    workspace.run()
    assert "contains uint16" in workspace.journal()[-1]["message"]  # no scale was declared
    from misgnet_runtime.raster.declared import Declared

    declared = Declared(scale=(1 / 25500,))
    options = replace(
        NOW, probability=True, vector="gpkg", quicklook=True, report=True, retry_failed=True,
        scene=replace(NOW.scene, before=declared, after=declared, style=True),
    )  # fmt: skip
    assert workspace.run(options).done == 1
    assert workspace.names() == {
        "s_change.tif", "s_probability.tif", "s_change.gpkg", "s_quicklook.png", "s_report.html", "s_change.qml",
        "s_probability.qml",
    }  # fmt: skip
    assert "<h1>Change map of s</h1>" in (workspace.out / "s_report.html").read_text()
    before, after = scene(90, 80)
    wanted = expected(np.moveaxis(before, 0, 2), np.moveaxis(after, 0, 2)) > 0.5
    assert np.array_equal(read(workspace.out / "s_change.tif"), wanted)
    assert workspace.log.results[0]["polygons"] == 2


def test_a_stac_item_of_a_pair_names_the_final_files(workspace: Workspace) -> None:
    rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    pytest.importorskip("pystac", reason="STAC Items of results need the [stac] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(90, 80), strict=True):
        write_raster(workspace.folder / f"s_{date}.tif", pixels)
    options = replace(NOW, stac_item=True, probability=True, retry_failed=True)
    workspace.run(options)
    assert "--stac-item requires the acquisition time of AFTER" in workspace.journal()[-1]["message"]
    with rasterio.open(workspace.folder / "s_after.tif", "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:06:01 10:20:31")
    assert workspace.run(options).done == 1
    assert workspace.names() == {"s_change.tif", "s_probability.tif", "s_item.json"}
    item = json.loads((workspace.out / "s_item.json").read_text())
    assert {asset["href"] for asset in item["assets"].values()} == {"./s_change.tif", "./s_probability.tif"}
    links = [workspace.out / link["href"] for link in item["links"]]
    assert [path.resolve() for path in links] == [workspace.folder / f"s_{date}.tif" for date in ("before", "after")]


def test_the_command_takes_options_for_geotiffs(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    pytest.importorskip("pyogrio", reason="polygons need the [geo] extra")
    from misgnet_runtime.cli import main as cli
    from support.scenes import read, scene, write_raster

    dates = scene(90, 80)
    write_raster(workspace.folder / "s-old.tif", dates[0].astype(np.uint16) * 100)
    write_raster(workspace.folder / "s-new.tif", dates[1][::-1])
    words = (
        "watch", workspace.bundle, workspace.folder, "-o", workspace.out, "--once", "--settle", 0,
        "--before-suffix", "-old", "--after-suffix", "-new", "--probability", "--vector", "geojson", "--min-area", 5000,
        "--before-scale", 1 / 25500, "--after-bands", "3,2,1",
    )  # fmt: skip
    code, captured = exit_code(cli.main, "misgnet-run", *words), capsys.readouterr()
    assert code == 0 and captured.out.endswith(f"{workspace.out}: 1 pair done, 0 pairs failed, 0 pending\n")
    assert "watching" in captured.err and "before: bands 1,2,3, scale 3.92157e-05" in captured.err
    assert workspace.names() == {"s_change.tif", "s_probability.tif", "s_change.geojson"}
    before, after = (np.moveaxis(date, 0, 2) for date in dates)
    assert np.array_equal(read(workspace.out / "s_change.tif"), expected(before, after) > 0.5)
    assert json.loads((workspace.out / "s_change.geojson").read_text())["features"] == []


def test_geotiffs_wait_if_rasterio_is_missing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for date in ("before", "after"):
        (workspace.folder / f"s_{date}.tif").write_bytes(b"no matter")
    workspace.add("a")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert workspace.run() == WatchReport(done=1, pending=1)
    assert workspace.ends() == [("a", "done")] and "requires rasterio" in workspace.log.warnings[0]


# --- bundles, disks and folders


def test_another_bundle_is_refused_unless_forced(workspace: Workspace) -> None:
    workspace.add("a")
    workspace.run()
    edit(workspace.bundle, lambda m: m.update(threshold=0.4))
    workspace.add("b")
    with pytest.raises(UsageError, match=r"results of bundle [0-9a-f]{16}, but this bundle is .*--force"):
        workspace.run()
    assert workspace.run(replace(NOW, force=True)).done == 1
    assert [e["type"] for e in workspace.journal()].count("started") == 2


def test_the_folder_must_exist_and_differ_from_the_output(workspace: Workspace) -> None:
    workspace.out = workspace.folder
    with pytest.raises(UsageError, match="is the watched folder"):
        workspace.run()
    workspace.folder = workspace.root / "nowhere"
    with pytest.raises(InputError, match="nowhere cannot be read"):
        workspace.run()


def refusing_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], None]:
    """Makes the disk full after ``after`` writes; returns a function that makes it writable again."""
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
def test_a_full_disk_does_not_fail_a_pair(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    workspace.run()
    workspace.add("a")
    with monkeypatch.context() as patched:
        refusing_disk(patched, after - 2)
        with pytest.raises(StorageError, match="No space left"):
            workspace.run()
    assert ("a", "failed") not in workspace.ends()
    workspace.run()
    assert workspace.ends() == [("a", "done")] and workspace.names() == {"a_change.png"}


def test_an_interrupted_retry_is_resumed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add("a")
    with monkeypatch.context() as patched:
        patched.setattr("misgnet_runtime.jobs.image.read_pair", lambda *_: 1 / 0)
        assert workspace.run().failed == 1
    with monkeypatch.context() as patched:
        refusing_disk(patched, 1)  # the start of the pair is on the disk
        with pytest.raises(StorageError):
            workspace.run(replace(NOW, retry_failed=True))
    assert workspace.run() == WatchReport(done=1)
    assert workspace.ends() == [("a", "failed"), ("a", "done")]


# --- a watcher that keeps running


@contextmanager
def watching(workspace: Workspace, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a watcher in a child process until the block ends, then stops it with SIGTERM."""
    command = [
        sys.executable, "-m", "misgnet_runtime", "watch", workspace.bundle, workspace.folder, "-o", workspace.out,
        "--poll", "0.02", "--settle", "0.3", "--log", "json", *words,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    workspace.root.joinpath("log.jsonl").touch()
    with workspace.root.joinpath("log.jsonl").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
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


def log_text(workspace: Workspace) -> str:
    return (workspace.root / "log.jsonl").read_text()


@pytest.fixture
def real(tmp_path: Path) -> Workspace:
    """A workspace whose watcher opens the bundle's real engine."""
    return Workspace(tmp_path)


def test_pairs_that_arrive_while_watching_are_processed_once(real: Workspace) -> None:
    """Covers a file that is written slowly, and a folder that is moved away and back."""
    real.add("grown", 1)
    whole = (real.folder / "grown_after.png").read_bytes()
    (real.folder / "grown_after.png").unlink()
    done = real.out / "grown_change.png", real.out / "moved_change.png"
    with watching(real) as process:
        wait_for(lambda: "watching" in log_text(real))
        with (real.folder / "grown_after.png").open("wb", buffering=0) as slow:
            slow.write(whole[:2000])
            time.sleep(0.7)  # longer than the settling time, but the file is open for writing
            assert not done[0].exists()
            slow.write(whole[2000:])
        wait_for(done[0].exists)
        np.testing.assert_array_equal(mask(done[0]), predicted(1))
        real.add("moved", 2)
        real.folder.rename(real.root / "gone")
        wait_for(lambda: "waiting for it" in log_text(real))
        (real.root / "gone").rename(real.folder)
        wait_for(done[1].exists)
        wait_for(lambda: len(real.ends()) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert Counter(real.ends()) == {("grown", "done"): 1, ("moved", "done"): 1}
    levels = [json.loads(line)["level"] for line in log_text(real).splitlines()]
    assert levels == ["info", "warning"]


def test_the_watcher_waits_for_the_marker(real: Workspace) -> None:
    real.add("a")
    with watching(real, "--marker", ".done"):
        wait_for(lambda: "watching" in log_text(real))
        time.sleep(0.2)
        assert real.names() == set()
        (real.folder / "a.done").touch()
        wait_for(lambda: real.names() == {"a_change.png"})


def test_sigint_stops_the_watcher_without_an_error(real: Workspace) -> None:
    with watching(real) as process:
        wait_for(lambda: "watching" in log_text(real))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


# --- interruptions and kills


def run_and_die(workspace: Workspace, moment: int) -> None:
    die_at(moment)
    workspace.run(scene_options())


def scene_options() -> WatchOptions:
    return replace(NOW, probability=True)


@pytest.mark.parametrize("moment", ["complete", "publish", "done"])
def test_a_complete_result_is_not_computed_again(
    workspace: Workspace, batches: list[int], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The watcher stops before ``complete`` is journaled, before publication, and before ``done`` is journaled."""
    workspace.add("a")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    real = Journal.add

    def add(journal: Journal, entry: Any) -> None:
        return stop() if type(entry).__name__.lower() == moment else real(journal, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", add)
        if moment == "publish":
            patched.setattr("misgnet_runtime.jobs.watch.outcomes.publish", stop)
        assert workspace.run().done == 0
    calls = len(batches)
    assert workspace.run().done == 1 and len(batches) == calls
    assert workspace.ends() == [("a", "done")] and workspace.names() == {"a_change.png"}
    np.testing.assert_array_equal(mask(workspace.out / "a_change.png"), predicted(0))


def stopped_scene(workspace: Workspace) -> None:
    """Leaves a partly processed scene by stopping the watcher with SIGTERM."""
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(400, 60), strict=True):
        write_raster(workspace.folder / f"s_{date}.tif", pixels)

    class Stopping(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            if len(self.batches) == 4:
                time.sleep(0.3)  # until the finished rows are on the disk
                os.kill(os.getpid(), signal.SIGTERM)
            return super()._infer(context, arrays, batch)

    before = signal.getsignal(signal.SIGTERM)
    assert workspace.run(opener=fake_detector(lambda: Stopping(INTERFACE))) == WatchReport(pending=1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert workspace.ends() == [] and workspace.names() == {".working"}


def test_an_interrupted_scene_is_resumed_first(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    stopped_scene(workspace)
    workspace.add("a")
    monkeypatch.setattr(FilePair, "arrived", 0)  # by name, except that unfinished pairs come first
    assert workspace.run().done == 2
    assert workspace.ends() == [("s", "done"), ("a", "done")]
    resumed = workspace.log.results[0]["resumed"]
    assert isinstance(resumed, int) and resumed > 0


def test_an_interrupted_scene_is_not_resumed_with_other_options(workspace: Workspace) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    stopped_scene(workspace)
    assert workspace.run(replace(NOW, scene=replace(NOW.scene, overlap=8))).done == 1
    assert workspace.log.results[0]["resumed"] == 0


def test_an_interrupted_scene_is_not_resumed_after_tuning_and_that_is_logged(workspace: Workspace) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    stopped_scene(workspace)
    assert workspace.run(opener=fake_detector(lambda: FakeEngine(INTERFACE, streams=2))).done == 1
    assert workspace.log.results[0]["resumed"] == 0
    changes = "the engine cpu-float32 on a fake, 1 streams, batch 1, and now it is cpu-float32 on a fake, 2 streams"
    assert any(f"s was started with {changes}" in note for note in workspace.log.messages)


def test_an_interrupted_pair_whose_files_changed_is_not_resumed(workspace: Workspace) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    stopped_scene(workspace)
    write_raster(workspace.folder / "s_after.tif", scene(400, 60)[0])
    assert workspace.run().done == 1
    assert (workspace.log.results[0]["resumed"], workspace.log.results[0]["changed_share"]) == (0, 0)


def test_resume_after_kill_at_any_step_writes_identical_outputs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image and a scene are each processed once, with outputs equal to those of an uninterrupted run."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # data of a killed process survives without fsync
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    workspace.add("a")
    for date, pixels in zip(("before", "after"), scene(64, 60), strict=True):
        write_raster(workspace.folder / f"s_{date}.tif", pixels)
    workspace.run(scene_options())
    whole = {name: (workspace.out / name).read_bytes() for name in workspace.names()}
    assert set(whole) == {"a_change.png", "s_change.tif", "s_probability.tif"}
    for number in range(100):
        workspace.out = workspace.root / f"out{number}"
        killed = in_child(partial(run_and_die, workspace, number))
        for name in workspace.names() - {".working"}:
            assert (workspace.out / name).read_bytes() == whole[name]
        workspace.run(scene_options())
        assert {name: (workspace.out / name).read_bytes() for name in workspace.names()} == whole
        assert sorted(workspace.ends()) == [("a", "done"), ("s", "done")]
        counts = Counter(e["type"] for e in workspace.journal() if e["type"] not in ("read", "unclean"))
        assert counts == {"started": 1, "begun": 2, "complete": 2, "done": 2}
        if not killed:
            break
    assert 20 < number < 99


def test_resume_after_kills_at_random_times_processes_each_pair_once(real: Workspace) -> None:
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
        np.testing.assert_array_equal(mask(real.out / f"{name}_change.png"), predicted(seed))
    assert real.names() == {f"{name}_change.png" for name in names}

"""Tests the prediction of a scene from two GeoTIFFs: correct, atomic outputs, identical after interruptions."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.transform import from_origin

from misgnet_runtime.cli import main as cli
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import GateFailed, InputError, StorageError, UnavailableError, UsageError
from misgnet_runtime.inference.selection import DetectorOpener
from misgnet_runtime.jobs.journal import progress_folder
from misgnet_runtime.jobs.scene import predict as scene_predict
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import SceneReport, predict_scene_files
from support.bundles import FLOAT, INTERFACE, FakeEngine, edit, expected, fake_detector, make_bundle, write_image
from support.commands import exit_code
from support.ends import die_at, in_child
from support.logs import Collected
from support.paths import ROOT
from support.scenes import PLACE, read, scene, write_raster

H, W = 300, 210
BEFORE, AFTER = scene(H, W)
ALL_NAMES = {"change.tif", "p.tif", "change.gpkg", "look.png", "report.html", "change.qml", "p.qml"}
Call = Callable[..., SceneReport]
FAKE = fake_detector(lambda: FakeEngine(INTERFACE))


class Place:
    """A bundle, two rasters and an output in a temporary folder; the engine is a fake."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.before, self.after = (
            write_raster(root / f"{name}.tif", pixels) for name, pixels in (("before", BEFORE), ("after", AFTER))
        )
        self.out = root / "out"
        self.change = self.out / "change.tif"
        self.all = SceneOptions(
            probability=self.out / "p.tif", vector=self.out / "change.gpkg", quicklook=self.out / "look.png",
            report=self.out / "report.html", style=True,
        )  # fmt: skip

    def run(
        self, options: SceneOptions | None = None, change: Path | None = None, opener: DetectorOpener = FAKE
    ) -> SceneReport:
        logged = Collected()
        asked = options or SceneOptions()
        paths = self.bundle, self.before, self.after, change or self.change
        report = predict_scene_files(
            *paths, replace(asked, execution=asked.execution.over(ExecutionOptions(batch=4))), log=logged.log,
            opener=opener,
        )  # fmt: skip
        assert logged.messages[0].startswith("before: ") and logged.messages[1].startswith("after: ")
        return report

    def names(self) -> set[str]:
        return {path.name for path in self.out.iterdir()} if self.out.exists() else set()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def difference() -> np.ndarray:
    return expected(np.moveaxis(BEFORE, 0, 2), np.moveaxis(AFTER, 0, 2))


# --- outputs


def test_the_map_is_the_engines_output(place: Place) -> None:
    report = place.run(place.all)
    with rasterio.open(place.change, driver="GTiff") as change, rasterio.open(place.out / "p.tif") as probability:
        for dataset in (change, probability):
            assert dataset.crs == PLACE["crs"] and dataset.transform == PLACE["transform"]
            assert dataset.is_tiled and dataset.compression.name == "deflate"
        assert (change.dtypes[0], change.nodata, change.colormap(1)[1]) == ("uint8", 255, (255, 0, 0, 255))
        assert np.array_equal(change.read(1), difference() > 0.5)
        np.testing.assert_allclose(probability.read(1), difference(), atol=1e-6)
        tags = change.tags()
    assert tags["MISGNET_BUNDLE_VERSION"] == "1" and tags["MISGNET_THRESHOLD"] == "0.5"
    assert tags["MISGNET_BEFORE_SCALING"] == "bands 1,2,3, 8-bit values as they are"
    assert len(tags["MISGNET_AFTER_SHA256"]) == 64
    assert report.changed_share == pytest.approx((difference() > 0.5).mean())
    assert (report.nodata_share, report.unread, report.resumed, report.polygons) == (0, (0, 0), 0, 2)
    assert place.names() == ALL_NAMES


def test_another_threshold_is_recorded_and_not_taken_for_the_bundles(place: Place) -> None:
    edit(place.bundle, lambda m: m.update(metrics={"engines": [{"engine": "cpu-float32", "scores": {"f1": 0.875}}]}))
    place.run()
    with rasterio.open(place.change) as change:
        assert change.tags()["MISGNET_BUNDLE_F1"] == "0.8750 at threshold 0.5"
    place.run(SceneOptions(threshold=0.02), place.out / "low.tif")
    with rasterio.open(place.out / "low.tif") as change:
        assert np.array_equal(change.read(1), difference() > 0.02)
        assert change.tags()["MISGNET_THRESHOLD"] == "0.02"
        assert change.tags()["MISGNET_BUNDLE_F1"] == "0.8750 at threshold 0.5; not measured at threshold 0.02"
    assert (difference() > 0.02).sum() > (difference() > 0.5).sum()


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(place: Place, threshold: float) -> None:
    with pytest.raises(UsageError, match=r"--threshold is .*; expected 0 to 1"):
        place.run(SceneOptions(threshold=threshold))


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (64, 64), (65, 40), (130, 129)])
@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_scenes_of_any_size_are_predicted(place: Place, size: tuple[int, int], overlap: int) -> None:
    before, after = (image[:, : size[0]].repeat(2, 2)[:, :, : size[1]] for image in (BEFORE, AFTER))
    write_raster(place.before, before)
    write_raster(place.after, after)
    place.run(replace(place.all, overlap=overlap, vector=None))
    wanted = expected(np.moveaxis(before, 0, 2), np.moveaxis(after, 0, 2))
    np.testing.assert_allclose(read(place.out / "p.tif"), wanted, atol=1e-6)


def test_streams_share_the_work_and_give_the_same_bytes(place: Place) -> None:
    place.run(place.all)
    names = "change.tif", "p.tif"
    alone = [(place.out / name).read_bytes() for name in names]
    engine = FakeEngine(INTERFACE, streams=3)
    options = replace(place.all, execution=ExecutionOptions(streams=3), force=True)
    report = place.run(options, opener=fake_detector(lambda: engine))
    assert report.tiles == sum(engine.batches) == 30 and report.seconds > 0
    assert "30 tiles in " in report.lines(place.change)[1]
    assert alone == [(place.out / name).read_bytes() for name in names]


def test_a_cog_is_valid_and_has_the_same_pixels(place: Place) -> None:
    place.run(place.all)
    plain = read(place.change), read(place.out / "p.tif")
    place.run(replace(place.all, cog=True, force=True))
    for path, pixels in zip((place.change, place.out / "p.tif"), plain, strict=True):
        assert np.array_equal(read(path), pixels, equal_nan=True)
        with rasterio.open(path) as dataset:
            assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert dataset.crs == PLACE["crs"] and "MISGNET_ENGINE" in dataset.tags()


def test_nodata_is_not_change_and_does_not_leak(place: Place) -> None:
    after = AFTER.copy()
    after[:, :, 100:] = 0  # black compared with grey would be change
    write_raster(place.after, after, nodata=0)
    report = place.run(place.all)
    change = read(place.change)
    assert (change[:, 100:] == 255).all() and report.nodata_share == pytest.approx((W - 100) / W)
    assert np.array_equal(change[:, :100], difference()[:, :100] > 0.5)
    assert np.isnan(read(place.out / "p.tif")[:, 100:]).all()


def test_tiles_without_data_are_not_inferred(place: Place) -> None:
    engine = FakeEngine(INTERFACE)
    write_raster(place.before, np.where(np.arange(W) < 70, BEFORE, 0).astype(np.uint8), nodata=0)
    place.run(opener=fake_detector(lambda: engine))
    assert engine.batches == [2] * 6  # 2 of 5 tiles in each of 6 rows of tiles


def test_a_map_without_valid_pixels_has_no_changed_share(place: Place) -> None:
    write_raster(place.before, np.zeros_like(BEFORE), nodata=0)
    report = place.run(place.all)
    assert (report.nodata_share, report.changed_share, report.polygons) == (1, None, 0)
    assert (read(place.change) == 255).all()


def test_unreadable_blocks_are_counted_once(place: Place) -> None:
    write_raster(place.after, AFTER, compress="none")
    place.after.write_bytes(place.after.read_bytes()[: -9 * 32 * 32 * 3])
    report = place.run(SceneOptions(max_unreadable=100))
    lost = np.zeros((H, W), bool)
    lost[288:] = True  # 7 blocks of the last row, and 2 of the row above
    lost[256:288, 160:] = True
    assert report.unread == (9, lost.sum())
    assert np.array_equal(read(place.change) == 255, lost)


def test_shifted_dates_are_warned_of(place: Place) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 600, 600), np.uint8)
    write_raster(place.before, noise)
    write_raster(place.after, np.roll(noise, (3, -4), (1, 2)))
    logged = Collected()
    predict_scene_files(place.bundle, place.before, place.after, place.change, log=logged.log, opener=FAKE)
    assert "about +3 rows and -4 columns" in logged.warnings[0]


def test_the_quick_look_shows_the_change(place: Place) -> None:
    place.run(place.all)
    with Image.open(place.out / "look.png") as image:
        picture = np.asarray(image)
    # Panels of 300 px (a panel's least width) with 20 px between them; margins of 16 px, and 48 px above for texts.
    before, _, change = (picture[64 : 64 + H, left : left + W] for left in (16, 336, 656))
    assert np.array_equal(before, np.moveaxis(BEFORE, 0, 2))
    unmarked = (change == np.moveaxis(AFTER, 0, 2)).all(2)
    assert np.array_equal(unmarked, difference() <= 0.5)
    assert (change == (255, 0, 0)).all(2).sum() == 2 * (75 + 42 - 2) + 2 * (90 + 70 - 2)  # outlines of two rectangles


# --- polygons


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb"])
def test_polygons_are_not_split_at_tiles_and_have_areas(place: Place, suffix: str) -> None:
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    path = place.out / f"c.{suffix}"
    place.run(SceneOptions(vector=path))
    meta, _, outlines, values = pyogrio.raw.read(path, layer="change")
    fields = dict(zip(meta["fields"], values, strict=True))
    order = np.argsort(fields["pixels"])
    sizes = [75 * 42, 90 * 70]  # the rectangles of scene(), each across many tiles
    assert sorted(fields["pixels"]) == sizes
    np.testing.assert_allclose(fields["area_m2"][order], [size / 4 for size in sizes])
    inside = difference()[60:150, 35:105].mean()
    assert fields["probability"][order][1] == pytest.approx(inside, abs=1e-5)
    bounds = shapely.bounds(shapely.from_wkb(outlines[order]))[1]
    if suffix == "geojson":
        assert meta["crs"] == "EPSG:4326" and 13 < bounds[0] < bounds[2] < 14.1
    else:
        assert meta["crs"] == "EPSG:32633"
        np.testing.assert_allclose(bounds, (399_984 + 17.5, 4_999_992 - 75, 399_984 + 52.5, 4_999_992 - 30))


def test_small_polygons_are_dropped_and_others_simplified(place: Place) -> None:
    pytest.importorskip("pyogrio")
    assert place.run(replace(place.all, min_area=800)).polygons == 1
    assert place.run(replace(place.all, min_area=2000, force=True)).polygons == 0
    assert place.run(replace(place.all, simplify=2, force=True)).polygons == 2


def test_polygons_in_degrees_have_square_metres(place: Place) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    for path, pixels in ((place.before, BEFORE), (place.after, AFTER)):
        write_raster(path, pixels, crs="EPSG:4326", transform=from_origin(14, 60, 1e-5, 1e-5))
    place.run(place.all)
    meta, _, _, values = pyogrio.raw.read(place.out / "change.gpkg", layer="change")
    fields = dict(zip(meta["fields"], values, strict=True))
    # a degree at 60 N on WGS 84: 111,412 m of latitude, 55,800 m of longitude
    np.testing.assert_allclose(fields["area_m2"] / fields["pixels"], 1.11412 * 0.55800, rtol=1e-3)


def test_polygons_of_rasters_without_georeferencing_are_in_pixels(place: Place) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        for path, pixels in ((place.before, BEFORE), (place.after, AFTER)):
            write_raster(path, pixels, crs=None, transform=None)
        place.run(place.all)
    meta, *_ = pyogrio.raw.read(place.out / "change.gpkg", layer="change")
    assert "area_m2" not in meta["fields"] and {"id", "pixels", "probability"} <= set(meta["fields"])


def test_polygons_lost_by_a_full_disk_are_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """If closing a GeoPackage fails, GDAL reports no error, and the layer is empty."""
    pyogrio = pytest.importorskip("pyogrio")
    write = pyogrio.raw.write

    def write_none(path: Path, outlines: Any, fields: list[Any], *rest: Any, **more: Any) -> None:
        if outlines is None:  # the style's table
            write(path, outlines, fields, *rest, **more)
        else:
            write(path, outlines[:0], [values[:0] for values in fields], *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pyogrio.raw, "write", write_none)
        with pytest.raises(StorageError, match=r"change.gpkg differs from what was written"):
            place.run(place.all)
    assert not (place.out / "change.gpkg").exists()
    assert place.run(place.all).polygons == 2


# --- interruptions


def outcome(place: Place) -> dict[str, bytes]:
    """Returns the bytes of all outputs except the polygons, which contain the time."""
    return {path.name: path.read_bytes() for path in place.out.iterdir() if path.is_file() and path.suffix != ".gpkg"}


def test_resume_after_kill_at_any_system_call_writes_identical_outputs(place: Place) -> None:
    pytest.importorskip("pyogrio")
    options = replace(place.all, cog=True)
    place.run(options)
    whole = outcome(place)
    resumed = []
    for number in range(100):
        for path in place.out.iterdir():
            path.unlink()

        def killed_run(number: int = number) -> None:
            die_at(number)
            place.run(options)

        if in_child(killed_run) == 0:
            break
        assert outcome(place).items() <= whole.items()  # an output with its final name is complete
        resumed.append(place.run(options).resumed)
        assert outcome(place) == whole
        assert place.names() == ALL_NAMES
    assert len(resumed) > 20 and {0, 48, 96, 144, 192, 236, H} <= set(resumed)


def test_resume_after_kill_at_any_time_writes_identical_outputs(place: Place) -> None:
    place.run()
    whole = outcome(place)
    start = time.perf_counter()
    place.run(SceneOptions(force=True))
    length = time.perf_counter() - start
    chance = random.Random(0)
    for _ in range(20):
        place.change.unlink()
        in_child(place.run, chance.uniform(0, 1.5 * length))
        if place.change.exists():
            assert outcome(place) == whole
        with suppress(UsageError):  # the run had finished, and the output exists
            place.run()
        assert outcome(place) == whole


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("after", [0, 3, 9])
def test_resume_after_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch, error: int, after: int) -> None:
    place.run(change=place.root / "whole.tif")
    left, real = after, os.fsync

    def fsync(handle: int) -> None:
        nonlocal left
        if left == 0:
            raise OSError(error, os.strerror(error))
        left -= 1
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match=r"cannot be written: .*then rerun the command"):
            place.run()
    assert place.names() <= {".change.tif.progress"}
    report = place.run()
    assert report.resumed == {0: 0, 3: 48, 9: 192}[after]
    assert place.change.read_bytes() == (place.root / "whole.tif").read_bytes()


class InterruptedEngine(FakeEngine):
    """Engine that works until some rows of the scene are on disk, then raises ``error``."""

    def __init__(self, place: Place, error: BaseException) -> None:
        super().__init__(INTERFACE)
        self.journal = progress_folder(place.change) / "journal.jsonl"
        self.error = error

    def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
        if len(self.batches) == 5:
            limit = time.monotonic() + 20
            while self.journal.read_bytes().count(b"\n") < 3 and time.monotonic() < limit:
                time.sleep(0.01)
            raise self.error
        return super()._infer(context, arrays, batch)


def run_and_interrupt(place: Place, error: BaseException | None = None) -> None:
    """Interrupts a run after two of its seven rows of tiles."""
    ended = error or GateFailed("the end")
    with pytest.raises(type(ended)) as caught:
        place.run(opener=fake_detector(lambda: InterruptedEngine(place, ended)))
    assert error is None or "rerun the same command to resume" in str(caught.value)
    assert place.names() == {".change.tif.progress"}


def test_an_interruption_keeps_finished_work(place: Place) -> None:
    run_and_interrupt(place, KeyboardInterrupt())
    assert place.run().resumed == 96 and place.names() == {"change.tif"}


OTHERS: dict[str, tuple[Callable[[Place], object], SceneOptions, str]] = {
    "before": (lambda p: write_raster(p.before, BEFORE + np.uint8(1)), SceneOptions(), "the before raster"),
    "after": (lambda p: write_raster(p.after, AFTER[::-1]), SceneOptions(), "the after raster"),
    "bundle": (lambda p: edit(p.bundle, lambda m: m.update(threshold=0.4)), SceneOptions(), "the bundle"),
    "overlap": (lambda p: None, SceneOptions(overlap=8), "--overlap 16, and now it is 8"),
    "batch": (lambda p: None, SceneOptions(execution=ExecutionOptions(batch=1)), "--batch 4, and now it is 1"),
    "cog": (lambda p: None, SceneOptions(cog=True), "--cog False, and now it is True"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_input_bundle_or_option_is_refused(place: Place, case: str) -> None:
    change, options, words = OTHERS[case]
    run_and_interrupt(place)
    change(place)
    with pytest.raises(UsageError) as caught:
        place.run(options)
    assert words in str(caught.value) and "start over with --restart" in str(caught.value)
    assert place.run(replace(options, restart=True)).resumed == 0
    assert place.names() == {"change.tif"}


def test_rows_that_fail_their_checksum_are_computed_again(place: Place) -> None:
    place.run(change=place.root / "whole.tif")
    run_and_interrupt(place)
    raw = progress_folder(place.change) / "probability.raw"
    data = bytearray(raw.read_bytes())
    data[5] ^= 1
    raw.write_bytes(data)
    assert place.run().resumed == 0
    assert place.change.read_bytes() == (place.root / "whole.tif").read_bytes()


def test_an_input_that_changes_during_the_run_is_an_error(place: Place) -> None:
    class Touching(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            os.utime(place.after, (1, 1))
            return super()._infer(context, arrays, batch)

    with pytest.raises(InputError, match="was changed while it was read"):
        place.run(opener=fake_detector(lambda: Touching(INTERFACE)))
    assert place.names() == {".change.tif.progress"}


# --- the engine opens in another thread


def test_the_engine_opens_while_the_pixels_are_inspected(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    inspecting, opened = Event(), Event()
    real = scene_predict.inspected

    def inspect(*arguments: Any) -> Any:
        inspecting.set()
        assert opened.wait(20), "it waits for the inspection"
        return real(*arguments)

    def engine() -> FakeEngine:
        assert inspecting.wait(20)
        opened.set()
        return FakeEngine(INTERFACE)

    monkeypatch.setattr(scene_predict, "inspected", inspect)
    assert place.run(opener=fake_detector(engine)).tiles > 0


@pytest.mark.parametrize("refused", ["inspected", "run_pair"])
def test_the_engine_is_closed_if_the_scene_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    engine = FakeEngine(INTERFACE)

    def refuse(*_: Any) -> None:
        raise InputError("not this scene")

    monkeypatch.setattr(scene_predict, refused, refuse)
    with pytest.raises(InputError, match="not this scene"):
        predict_scene_files(place.bundle, place.before, place.after, place.change, opener=fake_detector(lambda: engine))
    assert engine.closed


def test_an_engine_that_does_not_open_is_reported_and_leaves_nothing(place: Place) -> None:
    def engine() -> FakeEngine:
        raise UnavailableError("no such device")

    with pytest.raises(UnavailableError, match="no such device"):
        place.run(opener=fake_detector(engine))
    assert place.names() == set()


def test_no_engine_opens_for_rasters_that_do_not_match(place: Place) -> None:
    write_raster(place.after, AFTER[:, :-1])
    with pytest.raises(InputError, match="--align"):
        place.run(opener=fake_detector(lambda: pytest.fail("it was opened")))


# --- memory

# VmHWM, not ru_maxrss, which starts with the value of the parent process.
PEAK = """
import re, sys
from contextlib import contextmanager
from pathlib import Path
from support.bundles import FLOAT, FakeEngine
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files

@contextmanager
def opener(*others, **more):
    interface = Interface(256, 4)
    with ChangeDetector(FakeEngine(interface), interface) as detector:
        yield detector, FLOAT, "a fake"

bundle, before, after, out = map(Path, sys.argv[1:])
options = SceneOptions(probability=out / "p.tif", quicklook=out / "look.png")
predict_scene_files(bundle, before, after, out / "change.tif", options, opener=opener)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_scene(place: Place) -> None:
    """The larger scene has 96 MiB per date."""
    memory = []
    for height in (1024, 16384):
        for path in (place.before, place.after):
            with rasterio.open(
                path, "w", driver="GTiff", width=2048, height=height, count=3, dtype="uint8", tiled=True, **PLACE
            ) as dataset:
                dataset.write(np.full((3, 512, 512), 200, np.uint8), window=((0, 512), (300, 812)))
        paths = ("tests", "runtime")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / path) for path in paths)}
        command = [sys.executable, "-c", PEAK, place.bundle, place.before, place.after, place.root / str(height)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        memory.append(int(ended.stdout))
    assert memory[1] < 1.15 * memory[0] + 16  # GDAL caches at most 16 MiB of blocks


# --- refused inputs


@pytest.mark.parametrize("date", ["before", "after"])
def test_an_output_that_is_an_input_is_refused_even_with_force(place: Place, date: str) -> None:
    path = getattr(place, date)
    content = path.read_bytes()
    (place.root / "link.tif").symlink_to(path)
    for output in (path, place.root / "link.tif"):
        with pytest.raises(UsageError, match=f"output {output} is also an input; choose another -o"):
            place.run(SceneOptions(force=True), output)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", sorted(ALL_NAMES))
def test_an_existing_output_is_kept(place: Place, name: str) -> None:
    place.out.mkdir()
    (place.out / name).write_bytes(b"old")
    with pytest.raises(UsageError, match=f"{name} exists; .*--force"):
        place.run(place.all)
    assert place.names() == {name} and (place.out / name).read_bytes() == b"old"
    place.run(replace(place.all, force=True))
    assert (place.out / name).read_bytes() != b"old"


def test_nan_from_the_engine_is_an_error(place: Place) -> None:
    with pytest.raises(GateFailed, match="NaN or Inf"):
        place.run(opener=fake_detector(lambda: FakeEngine(INTERFACE, nan=True)))
    assert not place.change.exists()


def test_a_scene_larger_than_the_disk_is_refused(place: Place) -> None:
    for path in (place.before, place.after):
        size = 2**20
        with rasterio.open(
            path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", tiled=True, sparse_ok=True,
            blockxsize=4096, blockysize=4096, bigtiff="yes", nodata=0, **PLACE,
        ):  # fmt: skip
            pass
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"1,048,576 x 1,048,576 px, and its map needs 4\.4 TB"):
        place.run()
    assert not place.names() and time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("module", "options"),
    [("rasterio", {}), ("pyogrio", {"vector": Path("x.gpkg")}), ("shapely", {"report": Path("x.html")})],
)
def test_a_missing_library_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, module: str, options: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match=rf"requires {module}: pip install 'misgnet-export\[geo\]'"):
        place.run(SceneOptions(**options))


# --- the command


command = partial(exit_code, cli.main, "misgnet-run")


def test_the_command_requires_a_scale_and_writes_polygons(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for path, pixels in ((place.before, BEFORE), (place.after, AFTER)):
        write_raster(path, pixels.astype(np.uint16) * 100)
    pair = ("predict", place.bundle, place.before, place.after)
    assert command(*pair, "-o", place.change) == 4
    assert "contains uint16" in capsys.readouterr().err
    words = ("--scale", 1 / 25500, "--before-bands", "1,2,3", "--vector", place.out / "c.geojson", "--min-area", 800)
    assert command(*pair, "-o", place.change, *words) == 0
    captured = capsys.readouterr()
    assert f"{place.change}: 210 x 300 px, " in captured.out and "1 polygon," in captured.out
    assert "before: bands 1,2,3, scale 3.92157e-05" in captured.err
    assert np.array_equal(read(place.change), difference() > 0.5)
    assert len(json.loads((place.out / "c.geojson").read_text())["features"]) == 1


def test_options_for_scenes_are_refused_for_images(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    images = (write_image(place.out / f"{n}.png", np.zeros((8, 8, 3), np.uint8)) for n in ("before", "after"))
    pair = ("predict", place.bundle, *images)
    assert command(*pair, "-o", place.out / "m.png", "--align") == 2
    assert "choose an output that ends in .tif" in capsys.readouterr().err

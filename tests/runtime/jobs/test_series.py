"""Tests series: maps equal those of predict, each date is encoded once, a failing date does not stop the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from misgnet_runtime.cli import main as cli
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import GateFailed, InputError, UsageError
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.split_detector import choose_split
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.jobs.scene.run import SceneReport
from misgnet_runtime.jobs.series import encoding as encoding_module
from misgnet_runtime.jobs.series.encode import encode_file
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.jobs.series.series import Listener, run_series
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.grid import Grid
from support.bundles import FLOAT, SPLIT_FLOAT, SPLIT_INT8, edit, make_bundle
from support.commands import exit_code
from support.ends import die_at, in_child
from support.fake_split import FakeSplit
from support.logs import Collected
from support.paths import ROOT
from support.scenes import PLACE, read, scene, write_raster

H, W = 150, 110
TILES = 6
REFERENCE, _ = scene(H, W)
RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def later(seed: int) -> NDArray[np.uint8]:
    """Returns a date that differs from the reference and from dates of other seeds."""
    return np.asarray(np.roll(scene(H, W, seed)[1], 11 * seed, 2), np.uint8)


class Place:
    """A split bundle, a reference and three later dates, and an output folder; the engine is ``split`` if given."""

    def __init__(self, root: Path, split: FakeSplit | None = None) -> None:
        self.root = root
        self.opener = split.opener() if split else open_detector
        self.split_opener = split.opener() if split else choose_split
        self.bundle = make_bundle(root / "bundle", engines=[SPLIT_FLOAT, SPLIT_INT8])
        self.reference = write_raster(root / "in" / "reference.tif", REFERENCE)
        self.dates = [write_raster(root / "in" / f"d{seed}.tif", later(seed)) for seed in (1, 2, 3)]
        self.out = root / "out"
        self.logged = Collected()
        self.reports: dict[str, SceneReport] = {}

    def run(self, options: SeriesOptions | None = None, dates: list[Path] | None = None) -> list[str]:
        """Runs the series and returns the names of the dates that were computed."""
        self.logged.records.clear()
        self.reports.clear()
        listener = Listener(self.logged.log, lambda path, report: self.reports.update({path.name: report}))
        run_series(
            self.bundle, self.reference, dates or self.dates, self.out, options=options or SeriesOptions(),
            listener=listener, opener=self.split_opener,
        )  # fmt: skip
        return list(self.reports)

    def predict(self, before: Path, after: Path, options: SceneOptions | None = None) -> tuple[Any, Any, SceneReport]:
        """Returns mask, probability and report of the engine that is not split."""
        probability = self.root / "alone" / "p.tif"
        change = self.root / "alone" / "change.tif"
        asked = replace(options or SceneOptions(), force=True, probability=probability)
        report = predict_scene_files(self.bundle, before, after, change, asked, opener=self.opener)
        return read(change), read(probability), report

    def names(self) -> set[str]:
        return {path.name for path in self.out.iterdir()} if self.out.exists() else set()


@pytest.fixture
def split() -> FakeSplit:
    return FakeSplit()


@pytest.fixture
def place(tmp_path: Path, split: FakeSplit) -> Place:
    return Place(tmp_path, split)


ALL = SeriesOptions(
    probability=True, vector=True, quicklook=True, report=True, scene=SceneOptions(style=True)
)  # fmt: skip
PROBABLE = SeriesOptions(probability=True)


def check_equal(place: Place, before: Path, after: Path, options: SceneOptions | None = None) -> None:
    """Checks that the series' map of ``after`` equals that of predict, up to the rounding of float16."""
    mask, probability, report = place.predict(before, after, options)
    found = read(place.out / f"{after.stem}.tif")
    assert (found == mask).mean() >= 0.9999 and np.array_equal(found == 255, mask == 255)
    np.testing.assert_allclose(read(place.out / f"{after.stem}.probability.tif"), probability, atol=1e-3)
    mine = place.reports[f"{after.stem}.tif"]
    assert (mine.nodata_share, mine.unread) == (report.nodata_share, report.unread)


# --- outputs


def test_each_date_is_compared_with_the_reference(place: Place) -> None:
    assert place.run(ALL) == ["d1.tif", "d2.tif", "d3.tif"]
    endings = ("tif", "probability.tif", "gpkg", "png", "html", "qml", "probability.qml")
    wanted = {f"d{date}.{ending}" for date in (1, 2, 3) for ending in endings} | {"reference.features"}
    assert place.names() == wanted
    assert place.run(ALL) == [] and "d3.tif is up to date" in place.logged.messages[-1]
    (place.out / "d2.html").unlink()
    place.run(replace(ALL, scene=replace(ALL.scene, force=True)))
    assert place.names() == wanted
    for date in place.dates:
        place.reports.setdefault(date.name, place.predict(place.reference, date)[2])
        check_equal(place, place.reference, date)
        with rasterio.open(place.out / date.name) as dataset:
            assert dataset.crs == PLACE["crs"] and dataset.transform == PLACE["transform"]
            tags = dataset.tags()
            assert (tags["MISGNET_SPLIT"], tags["MISGNET_ENGINE"]) == ("yes", "cpu-float32 on a fake")
    assert any(line.startswith("d2.tif: bands 1,2,3") for line in place.logged.messages)


def test_each_date_is_encoded_once(place: Place, split: FakeSplit) -> None:
    place.run()
    assert split.encoded == 4 * TILES
    more = write_raster(place.root / "in" / "d4.tif", later(4))
    assert place.run(dates=[*place.dates, more]) == ["d4.tif"]
    assert split.encoded == 5 * TILES
    assert f"{place.out / 'd1.tif'} is up to date (written by an identical run)" in place.logged.messages


def test_features_written_by_encode_are_used(place: Place, split: FakeSplit) -> None:
    file = place.root / "kept.features"
    encode_file(place.bundle, place.reference, file, opener=place.split_opener)
    assert split.encoded == TILES
    place.run(replace(PROBABLE, features=file, discard_features=True))
    assert split.encoded == 4 * TILES and file.exists() and not place.names() & {"reference.features"}
    check_equal(place, place.reference, place.dates[1])


def test_features_are_discarded_on_request(place: Place) -> None:
    place.run(SeriesOptions(discard_features=True))
    assert place.names() == {"d1.tif", "d2.tif", "d3.tif"}


@pytest.mark.parametrize("engine", ["cpu-float32", "cpu"])
def test_real_engines_give_the_masks_of_predict(tmp_path: Path, engine: str) -> None:
    place = Place(tmp_path)
    scene_options = SceneOptions(engine=engine)
    place.run(SeriesOptions(scene=scene_options, probability=True))
    for date in place.dates:
        mask, probability, _ = place.predict(place.reference, date, scene_options)
        assert np.array_equal(read(place.out / date.name), mask) and mask.any()
        assert np.array_equal(read(place.out / f"{date.stem}.probability.tif"), probability)


# --- pixels without data


def with_nodata(pixels: NDArray[np.uint8], *where: tuple[slice, slice]) -> NDArray[np.uint8]:
    pixels = pixels.copy()
    for rows, columns in where:
        pixels[:, rows, columns] = 0
    return pixels


LEFT, TOP, CORNER = (slice(None), slice(0, 20)), (slice(0, 9), slice(None)), (slice(140, None), slice(100, None))
NODATA_AREAS: dict[str, tuple[list[tuple[slice, slice]], list[tuple[slice, slice]], int]] = {
    # nodata areas of the reference and of the later date, and how many of the reference's tiles are encoded again
    "reference": ([LEFT], [], 0),
    "later": ([], [LEFT], 3),
    "both": ([LEFT], [LEFT], 0),
    "each its own": ([LEFT], [TOP], 2),
    "the later one has less": ([LEFT], [LEFT, CORNER], 1),
    "all of the later": ([], [(slice(None), slice(None))], 0),
}


@pytest.mark.parametrize("case", NODATA_AREAS)
def test_nodata_areas_of_either_date_match_predict(place: Place, split: FakeSplit, case: str) -> None:
    first, second, encoded_again = NODATA_AREAS[case]
    write_raster(place.reference, with_nodata(REFERENCE, *first), nodata=0)
    write_raster(place.dates[0], with_nodata(later(1), *second), nodata=0)
    place.run(PROBABLE, place.dates[:1])
    encoded_before = 0 if case.startswith("all") else TILES
    assert split.encoded == TILES + encoded_before + encoded_again
    check_equal(place, place.reference, place.dates[0])


@pytest.mark.parametrize("case", NODATA_AREAS)
def test_nodata_areas_in_a_consecutive_series_match_predict(place: Place, case: str) -> None:
    first, second, _ = NODATA_AREAS[case]
    write_raster(place.dates[0], with_nodata(later(1), *first), nodata=0)
    write_raster(place.dates[1], with_nodata(later(2), *second), nodata=0)
    place.run(replace(PROBABLE, consecutive=True))
    for before, after in zip([place.reference, *place.dates], place.dates, strict=False):
        check_equal(place, before, after)


def test_alpha_and_scaling_of_one_date_match_predict(place: Place) -> None:
    alpha = np.full((1, H, W), 255, np.uint8)
    alpha[:, 70:, :30] = 0
    write_raster(place.dates[0], np.concatenate([later(1), alpha]), colours=RGBA)
    write_raster(place.dates[1], later(2).astype(np.uint16) * 100)
    place.run(PROBABLE, place.dates[:1])
    check_equal(place, place.reference, place.dates[0])
    scaled = SceneOptions(after=Declared(scale=(1 / 25500,)))
    place.run(replace(PROBABLE, scene=scaled), place.dates[1:2])
    check_equal(place, place.reference, place.dates[1], scaled)


@pytest.mark.parametrize("consecutive", [False, True])
def test_unreadable_blocks_are_counted_as_by_predict(place: Place, consecutive: bool) -> None:
    for path, pixels in ((place.reference, REFERENCE), (place.dates[0], later(1))):
        write_raster(path, pixels, compress="none")
        path.write_bytes(path.read_bytes()[: -(2 + (path is place.reference)) * 32 * 32 * 3])
    allowed = SceneOptions(max_unreadable=100)
    place.run(replace(PROBABLE, scene=allowed, consecutive=consecutive), place.dates[:1])
    check_equal(place, place.reference, place.dates[0], allowed)
    assert place.reports["d1.tif"].unread[0] == 5


# --- grids


def moved(columns: float, rows: float) -> Any:
    """Returns the scenes' georeferencing, moved by pixels."""
    return from_origin(PLACE["transform"].c + columns / 2, PLACE["transform"].f - rows / 2, 0.5, 0.5)


@pytest.mark.parametrize("consecutive", [False, True])
def test_dates_on_other_grids_are_warped_onto_the_first(place: Place, consecutive: bool) -> None:
    for path, seed in zip(place.dates, (1, 2, 3), strict=True):
        write_raster(path, later(seed), transform=moved(2 * seed, 0.5))
    aligned = SceneOptions(align=True)
    place.run(replace(PROBABLE, scene=aligned, consecutive=consecutive))
    with rasterio.open(place.out / "d3.tif") as dataset:
        assert dataset.transform == PLACE["transform"] and dataset.tags()["MISGNET_ALIGNED"] == "True"
    for date in place.dates[:1] if consecutive else place.dates:
        check_equal(place, place.reference, date, aligned)


# --- consecutive


def test_grids_a_fraction_of_a_pixel_apart_count_as_equal(place: Place) -> None:
    """Tiles start on a grid on the ground, rounded to pixels; the grid of each date alone would differ."""
    nudged = moved(0.4, 0.4)
    options = replace(PROBABLE, consecutive=True, scene=SceneOptions(overlap=13))
    write_raster(place.dates[0], later(1), transform=nudged)
    anchors = {
        Grid(H, W, rasterio.CRS.from_user_input(PLACE["crs"]), transform).anchor
        for transform in (PLACE["transform"], nudged)
    }
    assert len(anchors) == 2
    place.run(options)
    write_raster(place.dates[0], later(1))
    for before, after in zip([place.reference, *place.dates], place.dates, strict=False):
        check_equal(place, before, after, options.scene)
        with rasterio.open(place.out / after.name) as dataset:
            assert dataset.transform == PLACE["transform"]


def test_each_date_is_compared_with_the_previous_one(
    place: Place, split: FakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    encode = split.encode

    def watched(images: Any) -> Any:
        kept.append(sum("features" in name for name in place.names()))
        return encode(images)

    monkeypatch.setattr(split, "encode", watched)
    place.run(replace(PROBABLE, consecutive=True))
    assert split.encoded == 4 * TILES and max(kept) == 2
    for before, after in zip([place.reference, *place.dates], place.dates, strict=False):
        check_equal(place, before, after)
    assert {name for name in place.names() if "features" in name} == {"d2.features", "d3.features"}


def test_a_consecutive_series_is_continued_from_its_last_date(place: Place, split: FakeSplit) -> None:
    options = SeriesOptions(consecutive=True)
    place.run(options, place.dates[:2])
    assert place.run(options) == ["d3.tif"] and split.encoded == 4 * TILES
    assert {name for name in place.names() if "features" in name} == {"d2.features", "d3.features"}
    place.run(replace(options, discard_features=True))
    assert place.names() == {"d1.tif", "d2.tif", "d3.tif"}


# --- interruptions


def outcome(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.out.iterdir() if path.is_file()}


@pytest.mark.parametrize(("consecutive", "step"), [(False, 2), (True, 3)])
def test_series_resumes_after_kill_at_any_system_call(place: Place, consecutive: bool, step: int) -> None:
    options = SeriesOptions(consecutive=consecutive)
    dates = place.dates[:2]
    place.run(options, dates)
    whole, computed = outcome(place), set()
    for number in range(0, 200, step):
        for path in place.out.iterdir():
            path.unlink()

        def killed_run(number: int = number) -> None:
            die_at(number)
            place.run(options, dates)

        if in_child(killed_run) == 0:
            break
        maps = {name: data for name, data in outcome(place).items() if name.endswith(".tif")}
        assert maps.items() <= whole.items()
        computed.add(tuple(place.run(options, dates)))
        assert outcome(place) == whole and place.names() == set(whole)
    assert computed >= {("d1.tif", "d2.tif"), ("d2.tif",)}


def test_finished_rows_of_a_date_are_not_computed_again(place: Place, split: FakeSplit) -> None:
    encode, left = split.encode, 2 * TILES + 3  # the engine fails in the last row of tiles of the second date

    def ending(images: Any) -> Any:
        if split.encoded > left:
            raise GateFailed("the end")
        return encode(images)

    split.encode = ending  # type: ignore[method-assign]
    with pytest.raises(GateFailed, match=r"2 of 3 dates failed; the first is .*d2\.tif: the end"):
        place.run()
    assert place.names() == {"d1.tif", "reference.features", ".d2.tif.progress", ".d3.tif.progress"}
    split.encode = encode  # type: ignore[method-assign]
    assert place.run() == ["d2.tif", "d3.tif"]
    assert place.names() == {"d1.tif", "d2.tif", "d3.tif", "reference.features"}


def test_an_interruption_says_how_to_resume(place: Place, split: FakeSplit) -> None:
    def interrupted(images: Any) -> Any:
        raise KeyboardInterrupt

    split.encode = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="rerun the same command to resume"):
        place.run()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: write_raster(path, later(2)[:, :100]), "differ in size"),
        (lambda path: path.write_bytes(b"no raster"), "cannot be opened as a GeoTIFF"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_a_failing_date_does_not_stop_the_others(place: Place, damage: Callable[[Path], object], words: str) -> None:
    damage(place.dates[1])
    with pytest.raises(InputError, match=rf"1 of 3 dates failed; the first is .*d2\.tif: .*{words}"):
        place.run()
    assert list(place.reports) == ["d1.tif", "d3.tif"]
    assert any("continuing with the other dates" in line for line in place.logged.messages)


def test_a_failing_date_of_a_consecutive_series_also_fails_the_next(place: Place) -> None:
    place.dates[1].write_bytes(b"no raster")
    more = write_raster(place.root / "in" / "d4.tif", later(4))
    with pytest.raises(InputError, match=r"2 of 4 dates failed; the first is .*d2\.tif"):
        place.run(SeriesOptions(consecutive=True), [*place.dates, more])
    assert list(place.reports) == ["d1.tif", "d4.tif"]
    assert {name for name in place.names() if "features" in name} == {"d3.features", "d4.features"}


def test_damaged_features_are_never_compared(place: Place) -> None:
    place.run(dates=place.dates[:1])
    with (place.out / "reference.features").open("r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(InputError, match=r"tile 0 does not match its checksum; remove the file"):
        place.run()
    (place.out / "reference.features").unlink()
    assert place.run() == ["d2.tif", "d3.tif"]


# --- refused inputs


def test_an_output_of_another_run_is_kept(place: Place) -> None:
    place.run()
    old = outcome(place)["d1.tif"]
    other = SeriesOptions(scene=SceneOptions(min_area=5))
    with pytest.raises(UsageError, match=r"3 of 3 dates failed; .*d1\.tif exists; .*--force"):
        place.run(other)
    assert outcome(place)["d1.tif"] == old
    forced = replace(other, scene=replace(other.scene, force=True))
    assert place.run(forced) == ["d1.tif", "d2.tif", "d3.tif"]
    assert place.run(forced) == []
    assert len(place.run(replace(forced, scene=replace(forced.scene, restart=True)))) == 3


def test_settings_tuned_since_are_named(place: Place, split: FakeSplit) -> None:
    """Another batch size gives a slightly different map, and only this message explains why."""
    place.run()
    split.batch = 2
    with pytest.raises(
        UsageError, match=r"differs from this run only in tuned settings; misgnet-run tune .*: pass --batch 1 to resume"
    ):
        place.run()
    assert place.run(SeriesOptions(scene=SceneOptions(execution=ExecutionOptions(batch=1)))) == []
    assert place.run(SeriesOptions(scene=SceneOptions(force=True))) == ["d1.tif", "d2.tif", "d3.tif"]
    split.batch = None
    with pytest.raises(UsageError, match="pass --batch 2 to resume"):
        place.run()
    split.entry, split.batch = SPLIT_INT8, 2
    with pytest.raises(UsageError, match=r"chooses --engine unless .* pass --engine cpu-float32 to resume"):
        place.run()
    split.entry, split.batch = SPLIT_FLOAT, None
    with pytest.raises(UsageError, match=r"exists; choose another name"):
        place.run(SeriesOptions(scene=SceneOptions(overlap=8)))


def test_a_date_with_a_missing_output_is_not_finished(place: Place) -> None:
    place.run(PROBABLE)
    (place.out / "d2.probability.tif").unlink()
    with pytest.raises(UsageError, match=r"1 of 3 dates failed; .*d2\.tif exists"):
        place.run(PROBABLE)


FEATURES_OF_OTHERS: dict[str, tuple[Callable[[Place], object], SceneOptions, str]] = {
    "raster": (lambda p: write_raster(p.reference, REFERENCE[:, ::-1]), SceneOptions(), "the raster"),
    "overlap": (lambda p: None, SceneOptions(overlap=8), "--overlap 16, and now it is 8"),
    "scaling": (lambda p: None, SceneOptions(before=Declared(bands=(3, 2, 1))), "and now it is bands 3,2,1"),
    "bundle": (lambda p: edit(p.bundle, lambda m: m.update(threshold=0.4)), SceneOptions(), "the bundle"),
    "grid": (
        lambda p: [write_raster(path, REFERENCE, crs="EPSG:32634") for path in (p.reference, *p.dates)],
        SceneOptions(), "the grid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("case", FEATURES_OF_OTHERS)
def test_features_of_another_kind_are_refused(place: Place, case: str, given: bool) -> None:
    change, options, words = FEATURES_OF_OTHERS[case]
    file = place.root / "kept.features" if given else place.out / "reference.features"
    encode_file(place.bundle, place.reference, file, opener=place.split_opener)
    change(place)
    asked = SeriesOptions(scene=options, features=file if given else None)
    with pytest.raises(UsageError) as caught:
        place.run(asked)
    assert words in str(caught.value) and str(file) in str(caught.value) and not place.reports
    forced = replace(asked, scene=replace(options, force=True))
    if given:
        with pytest.raises(UsageError):
            place.run(forced)
    else:
        assert len(place.run(forced)) == 3


def test_features_of_another_layout_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run(dates=place.dates[:1])
    lay_out = encoding_module.lay_out
    monkeypatch.setattr(encoding_module, "lay_out", lambda *words: lay_out(*words[:4], (5, 5)))
    with pytest.raises(UsageError, match="made with other tiles, by another version"):
        place.run()


def test_invalid_names_are_refused_before_any_work(place: Place) -> None:
    twin = write_raster(place.root / "other" / "d1.tif", later(5))
    product = write_raster(place.root / "in" / "d1.probability.tif", later(5))
    for dates, options, words in (
        ([*place.dates, twin], SeriesOptions(), "would both be written to"),
        ([*place.dates, product], PROBABLE, "would both be written to"),
    ):
        with pytest.raises(UsageError, match=words):
            place.run(options, dates)
    place.out = place.root / "in"
    with pytest.raises(UsageError, match="is also an input"):
        place.run(SeriesOptions(scene=SceneOptions(force=True)))
    assert np.array_equal(read(place.dates[0]), later(1)[0])
    reference = write_raster(place.root / "old" / "d1.tif", REFERENCE)
    place.out, place.reference = place.root / "out", reference
    with pytest.raises(UsageError, match="would both be written to"):
        place.run(SeriesOptions(consecutive=True))
    assert len(place.run()) == 3  # no map is written for the reference


def test_a_bundle_that_is_not_split_says_how_to_split_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.bundle = make_bundle(tmp_path / "whole", engines=[FLOAT])
    with pytest.raises(UsageError, match=r"misgnet-export build --split"):
        place.run()
    assert not place.names()


# --- memory

PEAK = """
import re, sys
from pathlib import Path
from support.bundles import TILE
from support.fake_split import FakeSplit
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.log import current
from misgnet_runtime.jobs.series.series import Listener, run_series

bundle, before, after, out = map(Path, sys.argv[1:])
options = SeriesOptions(scene=SceneOptions(overlap=0), consecutive=True)
listener = Listener(current(), print)
run_series(bundle, before, [after], out, options=options, listener=listener, opener=FakeSplit().opener())
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_scene(place: Place) -> None:
    """The larger scene has 100 MiB of features per date."""
    memory = []
    for height in (1024, 4096):
        for path in (place.reference, place.dates[0]):
            with rasterio.open(
                path, "w", driver="GTiff", width=4096, height=height, count=3, dtype="uint8", tiled=True, nodata=0,
                **PLACE,
            ) as dataset:  # fmt: skip
                dataset.write(np.full((3, 256, 256), 200, np.uint8), window=((0, 256), (300, 556)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / path) for path in ("tests", "runtime"))}
        arguments = [place.bundle, place.reference, place.dates[0], place.root / str(height)]
        command = [sys.executable, "-c", PEAK, *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        memory.append(int(ended.stdout.split()[-1]))
        size = (place.root / str(height) / "d1.features").stat().st_size
    assert (
        size > 95 << 20 and memory[1] < memory[0] + 60
    )  # GDAL's cache and the queues fill; features in memory would be 150 MiB


# --- the command


command = partial(exit_code, cli.main, "misgnet-run")


def test_encode_and_series_commands_report_results_and_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    file = place.root / "reference.features"
    assert command("encode", place.bundle, place.reference, "-o", file, "--engine", "cpu") == 0
    captured = capsys.readouterr()
    assert f"{file}: 6 tiles" in captured.out and "reference.tif: bands 1,2,3" in captured.err
    place.dates[1].write_bytes(b"no raster")
    words = ("-o", place.out, "--features", file, "--engine", "cpu", "--probability", "--quicklook", "--vector")
    call = ("series", place.bundle, place.reference, *place.dates, *words)
    assert command(*call) == InputError.exit_code
    captured = capsys.readouterr()
    assert f"{place.out / 'd1.tif'}: 110 x 150 px" in captured.out and "d2.tif" not in captured.out
    assert re.search(r"error: 1 of 3 dates failed; the first is .*d2\.tif", captured.err)
    write_raster(place.dates[1], later(2))
    assert command(*call) == 0
    assert "d1.tif is up to date" in capsys.readouterr().err
    assert place.names() == {f"d{n}.{end}" for n in (1, 2, 3) for end in ("tif", "probability.tif", "png", "gpkg")}


def test_the_command_accepts_scalings_of_the_first_and_the_later_dates(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for path, seed in zip(place.dates, (1, 2, 3), strict=True):
        write_raster(path, later(seed).astype(np.uint16) * 100)
    words = ("-o", place.out, "--after-scale", 1 / 25500, "--before-bands", "3,2,1", "--consecutive")
    assert command("series", place.bundle, place.reference, *place.dates, *words) == 0
    with rasterio.open(place.out / "d1.tif") as first, rasterio.open(place.out / "d2.tif") as second:
        assert first.tags()["MISGNET_BEFORE_SCALING"].startswith("bands 3,2,1")
        assert second.tags()["MISGNET_BEFORE_SCALING"] == first.tags()["MISGNET_AFTER_SCALING"]


def test_json_events_report_outputs_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path)
    place.dates[0].write_bytes(b"no raster")
    call = ("series", place.bundle, place.reference, *place.dates, "-o", place.out, "--log", "json")
    assert command(*call) == InputError.exit_code
    captured = capsys.readouterr()
    results = [json.loads(line) for line in captured.out.splitlines()]
    assert [Path(result["output"]).name for result in results] == ["d2.tif", "d3.tif"]
    assert results[0]["nodata_share"] == 0
    assert "1 of 3 dates failed" in json.loads(captured.err.splitlines()[-1])["message"]


def test_features_serve_any_threshold(place: Place, split: FakeSplit) -> None:
    place.run()
    encoded = split.encoded
    place.run(SeriesOptions(scene=SceneOptions(threshold=0.2, force=True)))
    assert split.encoded == encoded + 3 * TILES  # those of the reference are kept
    with rasterio.open(place.out / "d1.tif") as change:
        assert change.tags()["MISGNET_THRESHOLD"] == "0.2"

"""Tests that images are tiled and blended like scenes: masks of a pair, a folder and the API equal a raster's map."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from misgnet_runtime import open_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs import folder, image
from misgnet_runtime.jobs.folder import predict_folders
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.raster.images import read_mask_tags
from support.bundles import FLOAT, INTERFACE, TILE, FakeEngine, edit, fake_detector, make_bundle, write_image
from support.commands import exit_code
from support.fake_split import FakeSplit
from support.scenes import read, scene, write_raster

SIZES = [(150, 210), (64, 200), (65, 66), (64, 64), (10, 30)]
NOWHERE = {"crs": None, "transform": None}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class Contextual(FakeEngine):
    """Predicts from a whole tile and from the position in it, so that every place of tiles gives another map."""

    def _output(self, probability: NDArray[np.float32]) -> NDArray[Any]:
        position = np.linspace(0, 0.4, TILE, dtype=np.float32)
        mean = probability.mean((1, 2), keepdims=True)
        return np.clip(probability + 3 * mean * position[:, None] + position, 0, 1).astype(np.float32)


class Place:
    """A bundle and a pair of images, which are also a pair of rasters without georeferencing."""

    def __init__(self, root: Path, size: tuple[int, int]) -> None:
        self.root = root
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        edit(self.bundle, lambda m: m.update(overlap=8))
        self.dates = [np.ascontiguousarray(np.moveaxis(date, 0, 2)) for date in scene(*size)]
        for name, pixels in zip("AB", self.dates, strict=True):
            write_image(root / "images" / name / "a.png", pixels)
            write_raster(root / "rasters" / f"{name}.tif", np.moveaxis(pixels, 2, 0), **NOWHERE)
        self.opener = fake_detector(lambda: Contextual(INTERFACE))

    def images(self) -> tuple[Path, Path]:
        return self.root / "images/A/a.png", self.root / "images/B/a.png"

    def scene(self, **asked: Any) -> tuple[NDArray[np.float32], dict[str, str]]:
        """Returns the probability of change of the rasters, and the tags of the map."""
        probability, change = self.root / "scene/p.tif", self.root / "scene/change.tif"
        options = SceneOptions(force=True, probability=probability, **asked)
        rasters = [self.root / "rasters" / f"{name}.tif" for name in "AB"]
        predict_scene_files(self.bundle, *rasters, change, options, opener=self.opener)
        with rasterio.open(change) as dataset:
            return read(probability), dataset.tags()


@pytest.fixture(params=SIZES, ids=str)
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, request.param)


@pytest.fixture
def large(tmp_path: Path) -> Place:
    return Place(tmp_path, SIZES[0])


def mask_of(path: Path) -> NDArray[np.bool_]:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1) > 0)


def test_session_equals_scene(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet_runtime.api.session.open_detector", place.opener)
    with open_bundle(place.bundle) as session:
        found = session.predict(*place.dates)
    wanted, _ = place.scene()
    np.testing.assert_array_equal(found.probability, wanted)
    np.testing.assert_array_equal(found.mask, wanted > 0.5)


@pytest.mark.parametrize("overlap", [None, 0, 32])
def test_pair_of_images_equals_scene(place: Place, monkeypatch: pytest.MonkeyPatch, overlap: int | None) -> None:
    monkeypatch.setattr(image, "open_detector", place.opener)
    image.predict_files(place.bundle, *place.images(), place.root / "mask.png", overlap=overlap)
    wanted, tags = place.scene(overlap=overlap)
    np.testing.assert_array_equal(mask_of(place.root / "mask.png"), wanted > 0.5)
    assert tags["MISGNET_OVERLAP"] == str(8 if overlap is None else overlap)


@pytest.mark.parametrize("overlap", [None, 32])
def test_folder_equals_scene(place: Place, overlap: int | None) -> None:
    write_image(place.root / "images/A/b.png", place.dates[1])  # shares a batch with the other pair
    write_image(place.root / "images/B/b.png", place.dates[0])
    folders = place.root / "images/A", place.root / "images/B"
    options = SceneOptions(overlap=overlap)
    predict_folders(place.bundle, *folders, place.root / "out", options, opener=place.opener)
    wanted, _ = place.scene(overlap=overlap)
    for name in ("a", "b"):  # the fake engine is symmetric in its dates
        np.testing.assert_array_equal(mask_of(place.root / f"out/{name}.png"), wanted > 0.5)


def test_overlap_changes_the_map_of_a_large_image(large: Place) -> None:
    """Otherwise the tests above would show nothing."""
    maps = [large.scene(overlap=overlap)[0] for overlap in (0, 8, 32)]
    assert not np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[1], maps[2])


def test_bundle_of_schema_1_overlaps_by_a_quarter(large: Place) -> None:
    edit(large.bundle, lambda m: m.update(schema_version=1, overlap=0))
    assert large.scene()[1]["MISGNET_OVERLAP"] == str(TILE // 4)


def test_overlap_out_of_range_is_refused(large: Place) -> None:
    command = partial(exit_code, cli.main, "misgnet-run", "predict", large.bundle)
    assert command(*large.images(), "-o", large.root / "mask.png", "--overlap", 49) == 2
    assert command(*large.images(), "-o", large.root / "mask.png", "--overlap", 48) == 0
    assert command(large.root / "images/A", large.root / "images/B", "-o", large.root / "out", "--overlap", 48) == 0


def interrupt(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts a run of two pairs after the mask of the first is written."""
    for name in "AB":
        write_image(place.root / "images" / name / "b.png", place.dates[0])

    def in_turn(read: Any, work: Any, write: Any, _: int) -> None:
        for item in read():
            write(work(item))
            if (place.root / "out/a.png").exists():
                raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(folder, "run_pipeline", in_turn)
        again(place)


def again(place: Place, **asked: Any) -> None:
    folders = place.root / "images/A", place.root / "images/B"
    predict_folders(place.bundle, *folders, place.root / "out", SceneOptions(**asked), opener=place.opener)


def test_folder_of_large_images_is_not_resumed_with_another_overlap(
    large: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(large, monkeypatch)
    with pytest.raises(UsageError, match="was started with --overlap 8, and now it is 16"):
        again(large, overlap=16)
    again(large, overlap=8)


def test_folder_of_tiles_is_resumed_with_any_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, (TILE, TILE))
    interrupt(place, monkeypatch)
    again(place, overlap=16)


# --- tiles without data


@pytest.mark.parametrize("overlap", [None, 0, 16])
def test_scene_tiles_without_data_are_not_computed(large: Place, overlap: int | None) -> None:
    """Only the first 70 columns have data: of the tiles, those that start in them are computed."""
    stride = TILE - (8 if overlap is None else overlap)
    for name, date in zip("AB", scene(TILE, 210), strict=True):
        pixels = np.where(np.arange(210) < 70, np.maximum(date, 1), 0).astype(np.uint8)
        write_raster(large.root / "rasters" / f"{name}.tif", pixels, nodata=0, **NOWHERE)
    engine = Contextual(INTERFACE)
    large.opener = fake_detector(lambda: engine)
    large.scene(overlap=overlap)
    assert sum(engine.batches) == len(range(0, 70, stride)) == 2


def test_series_tiles_without_data_are_not_encoded(large: Place) -> None:
    from misgnet_runtime.jobs.series.encode import encode_file

    pixels = np.where(np.arange(210) < 70, 90, 0).astype(np.uint8) * np.ones((3, TILE, 1), np.uint8)
    raster = write_raster(large.root / "date.tif", pixels, nodata=0, **NOWHERE)
    split = FakeSplit()
    report = encode_file(large.bundle, raster, large.root / "date.features", opener=split.opener())
    assert split.encoded == 2 and report.features.footer.settings["--overlap"] == "8"


@pytest.mark.parametrize("size", [(64, 64), (150, 210)])
def test_masks_of_a_pair_and_of_folders_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path, size)
    monkeypatch.setattr(image, "open_detector", place.opener)
    one, folders = tmp_path / "out/a.png", [tmp_path / "images" / name for name in "AB"]
    one.parent.mkdir()
    image.predict_files(place.bundle, *place.images(), one, overlap=12, threshold=0.25)
    options = SceneOptions(overlap=12, threshold=0.25)
    predict_folders(place.bundle, *folders, tmp_path / "many", options, opener=place.opener)
    assert one.read_bytes() == (tmp_path / "many/a.png").read_bytes()
    predict_folders(place.bundle, *folders, one.parent, options, skip_existing=True, opener=place.opener)
    assert "skipped" not in caplog.text
    options = SceneOptions(overlap=12)
    predict_folders(place.bundle, *folders, one.parent, options, skip_existing=True, opener=place.opener)
    assert "a.png is skipped, but it was written with --threshold 0.25, and now it is not set" in caplog.text


def test_a_scene_written_as_a_mask_carries_the_tags_of_its_map(large: Place) -> None:
    rasters, mask = [large.root / f"rasters/{name}.tif" for name in "AB"], large.root / "mask.png"
    predict_scene_files(large.bundle, *rasters, mask, opener=large.opener)
    _, tags = large.scene()
    found = read_mask_tags(mask)
    assert found["MISGNET_BEFORE_SHA256"] and found == {name: tags[name] for name in found}


def test_pair_of_images_at_another_threshold_is_noted(
    large: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    edit(large.bundle, lambda m: m.update(metrics={"engines": [{"engine": FLOAT.name, "scores": {"f1": 0.875}}]}))
    monkeypatch.setattr(image, "open_detector", large.opener)
    caplog.set_level("INFO")
    image.predict_files(large.bundle, *large.images(), large.root / "own.png")
    assert "F1" not in caplog.text
    image.predict_files(large.bundle, *large.images(), large.root / "low.png", threshold=0.25)
    assert "F1 according to the bundle: 0.8750 at threshold 0.5; not measured at threshold 0.25" in caplog.text
    wanted, _ = large.scene()
    np.testing.assert_array_equal(mask_of(large.root / "low.png"), wanted > 0.25)

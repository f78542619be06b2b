"""Tests maps of a part of a scene (``--aoi``, dates that overlap in part) and of dates that were registered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pyogrio = pytest.importorskip("pyogrio", reason="scenes need the [geo] extra")
shapely = pytest.importorskip("shapely", reason="scenes need the [geo] extra")

from numpy.typing import NDArray
from rasterio.transform import from_origin

from misgnet_runtime.cli.main import main
from misgnet_runtime.engines.base import Arrays
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.jobs.folder import predict_folders
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.jobs.scene.run import SceneReport
from misgnet_runtime.raster.reader import Raster
from misgnet_runtime.raster.tiling import Span
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, make_bundle
from support.commands import exit_code
from support.logs import Collected
from support.scenes import read, scene, write_raster

H, W = 500, 420
BEFORE, AFTER = scene(H, W)


class WholeTile(FakeEngine):
    """An engine whose output at a pixel depends on the whole tile, as that of a network does."""

    def _infer(self, context: Any, arrays: Arrays, batch: int) -> Arrays:
        found = super()._infer(context, arrays, batch)[self.outputs[0].name]
        mean = found.mean(axis=(1, 2), keepdims=True)
        return {self.outputs[0].name: (0.7 * found + 0.3 * mean).astype(np.float32)}


class Place:
    """A bundle and two rasters in a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.before, self.after = (
            write_raster(root / f"{name}.tif", pixels) for name, pixels in (("before", BEFORE), ("after", AFTER))
        )
        self.logged = Collected()

    def run(self, name: str, options: SceneOptions, dates: tuple[Path, Path] | None = None) -> SceneReport:
        self.logged = Collected()
        execution = options.execution.over(ExecutionOptions(batch=1))
        chosen = replace(options, probability=self.root / f"{name}_p.tif", execution=execution)
        return predict_scene_files(
            self.bundle, *(dates or (self.before, self.after)), self.root / f"{name}.tif", chosen,
            log=self.logged.log, opener=fake_detector(lambda: WholeTile(INTERFACE)),
        )  # fmt: skip

    def area(self, *boxes: tuple[int, int, int, int], name: str = "area.gpkg") -> Path:
        """Writes rectangles of rows and columns: top, left, bottom, right."""
        shapes = [
            shapely.box(399_984 + left / 2, 4_999_992 - bottom / 2, 399_984 + right / 2, 4_999_992 - top / 2)
            for top, left, bottom, right in boxes
        ]
        outlines = np.array(shapely.to_wkb(shapes), object)
        pyogrio.raw.write(self.root / name, outlines, [], [], crs="EPSG:32633", geometry_type="Polygon")
        return self.root / name

    def tags(self, name: str) -> dict[str, str]:
        with rasterio.open(self.root / f"{name}.tif") as dataset:
            return dict(dataset.tags())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def inside(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    found = np.zeros((H, W), np.bool_)
    for top, left, bottom, right in boxes:
        found[top:bottom, left:right] = True
    return found


AREAS = {
    "in one tile": [(130, 140, 140, 150)],
    "over tiles": [(90, 60, 260, 131)],
    "apart": [(3, 5, 20, 20), (300, 100, 310, 390), (480, 400, 500, 420)],
    "at the last row": [(499, 200, 500, 260)],
    "everything": [(0, 0, H, W)],
}


@pytest.mark.parametrize("case", AREAS)
def test_the_map_within_an_area_is_that_of_the_whole_scene(place: Place, case: str) -> None:
    boxes = AREAS[case]
    whole, part = place.run("whole", SceneOptions()), place.run("part", SceneOptions(aoi=place.area(*boxes)))
    area = inside(*boxes)
    for ending, nodata in (("", 255), ("_p", np.nan)):
        found, wanted = (read(place.root / f"{name}{ending}.tif") for name in ("part", "whole"))
        assert np.array_equal(found[area], wanted[area])
        assert np.array_equal(found[~area], np.full((~area).sum(), nodata, found.dtype), equal_nan=True)
    assert part.valid_share == area.mean() and part.aoi_valid_share == 1 and whole.aoi_valid_share is None
    assert part.tiles < whole.tiles or case == "everything"


def test_nothing_but_tiles_that_touch_the_area_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[tuple[Span, Span]] = []
    original = Raster.image

    def noted(self: Raster, scaling: Any, rows: Span, columns: Span) -> Any:
        windows.append((rows, columns))
        return original(self, scaling, rows, columns)

    place.run("first", SceneOptions())  # how many windows the checks of a pair read
    monkeypatch.setattr("misgnet_runtime.jobs.scene.inputs.residual_shift", lambda *_: None)
    monkeypatch.setattr(Raster, "image", noted)
    report = place.run("part", SceneOptions(aoi=place.area((200, 200, 210, 210))))
    assert 1 <= report.tiles <= 4 and len(windows) <= 2 * report.tiles
    assert all(rows.start <= 210 and rows.stop >= 200 and c.start <= 210 and c.stop >= 200 for rows, c in windows)


def test_the_area_is_recorded_and_a_changed_area_does_not_resume(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    area = place.area((90, 60, 260, 131))
    monkeypatch.setattr("misgnet_runtime.jobs.scene.run._publish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.run("part", SceneOptions(aoi=area))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="was started with the area"):
        place.run("part", SceneOptions(aoi=place.area((90, 60, 260, 132), name="other.gpkg")))
    with pytest.raises(UsageError, match="the area"):
        place.run("part", SceneOptions())
    report = place.run("part", SceneOptions(aoi=area.rename(place.root / "renamed.gpkg")))
    assert report.resumed == H and report.tiles == 0
    assert len(place.tags("part")["MISGNET_AOI_SHA256"]) == 64


def test_an_interrupted_map_of_an_area_resumes_with_equal_bytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SceneOptions(aoi=place.area(*AREAS["apart"]))
    place.run("alone", options)
    calls = iter(range(100))

    def failing(self: WholeTile, *given: Any) -> Arrays:
        if next(calls) == 12:
            raise InputError("stopped")
        return original(self, *given)

    original = WholeTile._infer
    monkeypatch.setattr(WholeTile, "_infer", failing)
    with pytest.raises(InputError, match="stopped"):
        place.run("again", options)
    monkeypatch.undo()
    assert place.run("again", options).resumed > 0
    for ending in ("", "_p"):
        files = [(place.root / f"{name}{ending}.tif").read_bytes() for name in ("alone", "again")]
        assert files[0] == files[1]


def test_polygons_end_at_the_area(place: Place) -> None:
    place.run("part", SceneOptions(aoi=place.area((120, 100, 160, 140)), vector=place.root / "c.gpkg"))
    bounds = pyogrio.read_bounds(place.root / "c.gpkg")[1]
    assert bounds.shape[1] == 1
    assert bounds[:, 0].tolist() == [399_984 + 50, 4_999_992 - 80, 399_984 + 70, 4_999_992 - 60]


def test_predict_reports_a_bad_area_and_names_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "bad.geojson").write_text('{"type": "Point", "coordinates": [0, 0]}')
    arguments = [
        "misgnet-run",
        "predict",
        str(place.bundle),
        str(place.before),
        str(place.after),
        "-o",
        str(place.root / "x.tif"),
    ]
    assert exit_code(main, *arguments, "--aoi", place.root / "bad.geojson") == 4
    assert "bad.geojson" in capsys.readouterr().err
    assert exit_code(main, *arguments, "--aoi", place.area((120, 100, 160, 140))) == 0
    assert "100.00 % of the area's pixels are valid" in capsys.readouterr().out
    plain = {"crs": None, "transform": None}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        dates = [write_raster(place.root / f"plain{i}.tif", BEFORE, **plain) for i in range(2)]
    with pytest.raises(InputError, match="not georeferenced"):
        place.run("plain", SceneOptions(aoi=place.root / "area.gpkg"), (dates[0], dates[1]))


def test_an_output_may_not_replace_the_area(place: Place) -> None:
    area = place.area((120, 100, 160, 140))
    with pytest.raises(UsageError, match=r"area\.gpkg"):
        place.run("part", SceneOptions(aoi=area, vector=area, force=True))


# --- dates that overlap in part


@pytest.mark.parametrize(("down", "right"), [(0, 192), (128, 64), (300, 0)])
def test_dates_are_compared_where_both_are(place: Place, down: int, right: int) -> None:
    """Tiles within the overlap are those of the pair that was cropped to it."""
    corner = from_origin(399_984 + right / 2, 4_999_992 - down / 2, 0.5, 0.5)
    after = write_raster(place.root / "moved.tif", AFTER[:, down:, right:], transform=corner)
    cropped = write_raster(place.root / "cropped.tif", BEFORE[:, down:, right:], transform=corner)
    whole = place.run("whole", SceneOptions())
    part = place.run("part", SceneOptions(align=True), (place.before, after))
    place.run("crop", SceneOptions(), (cropped, after))
    found, wanted = read(place.root / "part_p.tif"), read(place.root / "crop_p.tif")
    assert np.isnan(found[:down]).all() and np.isnan(found[:, :right]).all()
    assert not np.isnan(found[down:, right:]).any() and part.tiles < whole.tiles
    margin = 64  # tiles that also cover what only one date has
    inner = slice(margin if down else 0, None), slice(margin if right else 0, None)
    assert np.abs(found[down:, right:][inner] - wanted[inner]).max() < 1e-6


def test_nothing_beyond_the_overlap_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    corner = from_origin(399_984 + 150, 4_999_992 - 150, 0.5, 0.5)
    after = write_raster(place.root / "moved.tif", AFTER[:, 300:, 300:], transform=corner)
    windows: list[tuple[Span, Span]] = []
    original = Raster.image
    monkeypatch.setattr(
        Raster, "image", lambda self, scaling, *window: (windows.append(window), original(self, scaling, *window))[1]
    )
    place.run("part", SceneOptions(align=True), (place.before, after))
    assert windows and all(rows.stop > 290 and columns.stop > 290 for rows, columns in windows)


def test_an_area_and_a_partial_overlap_combine(place: Place) -> None:
    corner = from_origin(399_984 + 100, 4_999_992, 0.5, 0.5)
    after = write_raster(place.root / "moved.tif", AFTER[:, :, 200:], transform=corner)
    area = place.area((100, 150, 200, 250))
    report = place.run("part", SceneOptions(align=True, aoi=area), (place.before, after))
    assert np.array_equal(~np.isnan(read(place.root / "part_p.tif")), inside((100, 200, 200, 250)))
    assert report.aoi_valid_share == 0.5


def test_an_area_that_changed_is_noticed_among_finished_outputs_of_a_folder(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for date, path in (("A", place.before), ("B", place.after)):
        (place.root / date).mkdir()
        path.rename(place.root / date / "one.tif")
    opener = fake_detector(lambda: WholeTile(INTERFACE))
    folders = place.bundle, place.root / "A", place.root / "B", place.root / "maps"
    options = SceneOptions(aoi=place.area((130, 140, 140, 150)))
    predict_folders(*folders, options, opener=opener)
    caplog.clear()
    predict_folders(*folders, options, skip_existing=True, opener=opener)
    assert not [record for record in caplog.records if "is skipped, but" in record.getMessage()]
    place.area((0, 0, 60, 60))
    predict_folders(*folders, options, skip_existing=True, opener=opener)
    (warning,) = [record.getMessage() for record in caplog.records if "is skipped, but" in record.getMessage()]
    assert warning.startswith("one.tif is skipped, but it was written with the options of scenes ")

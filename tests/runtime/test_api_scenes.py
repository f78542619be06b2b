"""Tests of ``BundleSession.predict_scene``, of the dates that it takes, and of its result."""

from __future__ import annotations

import base64
import gc
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("pyogrio")

from PIL import Image

from misgnet_runtime import BundleSession, InputError, SceneResult, UnavailableError, UsageError, open_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from support.bundles import FLOAT, make_bundle
from support.commands import exit_code
from support.scenes import PLACE, read, scene, write_raster
from support.stac import three_bands, write_item

H, W = 150, 210
BEFORE, AFTER = scene(H, W)
AFTER[:, :20, :30] = 0  # nodata
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:rasterio")


class Place:
    """A bundle, a pair of rasters, and their map by the command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.before = write_raster(root / "before.tif", BEFORE)
        self.after = write_raster(root / "after.tif", AFTER, nodata=0)
        self.probability = root / "command/p.tif"
        options = SceneOptions(probability=self.probability, vector=root / "command/v.gpkg")
        predict_scene_files(self.bundle, self.before, self.after, root / "command/change.tif", options)
        self.change = read(root / "command/change.tif")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def session(place: Place) -> Iterator[BundleSession]:
    with open_bundle(place.bundle) as found:
        yield found


@pytest.fixture(scope="module")
def result(place: Place, session: BundleSession) -> SceneResult:
    return session.predict_scene(place.before, place.after)


# Results


def test_result_equals_the_outputs_of_the_command(place: Place, result: SceneResult) -> None:
    np.testing.assert_array_equal(result.probability, read(place.probability))
    np.testing.assert_array_equal(result.mask.filled(True), place.change > 0)
    np.testing.assert_array_equal(result.valid, place.change != 255)
    assert result.mask.dtype == np.bool_ and result.probability.dtype == np.float32
    assert result.mask.mean() == pytest.approx(result.changed_share)
    assert result.valid_share == pytest.approx(1 - 600 / (H * W)) == result.valid.mean()
    assert result.crs == PLACE["crs"] and result.transform == PLACE["transform"]
    assert result.report["tiles"] == 15 and result.report["engine"] == FLOAT.name
    assert result.warnings == ()
    assert re.fullmatch(r"<SceneResult of 210 x 150 px, .* % changed of valid pixels, .* % valid, .*>", repr(result))


def test_polygons_are_a_geodataframe(result: SceneResult) -> None:
    geopandas = pytest.importorskip("geopandas")
    assert isinstance(result.polygons, geopandas.GeoDataFrame)
    assert result.polygons.crs == PLACE["crs"]
    assert result.polygons.area.sum() == pytest.approx(0.25 * result.mask.sum())


def test_polygons_are_geojson_without_geopandas(
    place: Place, session: BundleSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "geopandas", None)
    found = session.predict_scene(place.before, place.after).polygons
    assert (found["type"], found["crs"]) == ("FeatureCollection", "EPSG:32633")
    json.dumps(found)  # plain values
    assert sum(one["properties"]["pixels"] for one in found["features"]) == (place.change == 1).sum()
    assert found["features"][0]["geometry"]["type"] == "Polygon"


def test_scene_without_change_has_no_polygons(place: Place, session: BundleSession) -> None:
    for found in (session.predict_scene(place.before, place.before), session.predict_scene(place.after, place.after)):
        assert len(found.polygons) == 0 and not found.mask.any()


def test_temporary_files_live_as_long_as_the_result(place: Place, session: BundleSession) -> None:
    found = session.predict_scene(place.before, place.after)
    folder = found.files["output"].parent
    assert all(path.is_file() and path.parent == folder for path in found.files.values())
    assert folder.stat().st_mode & 0o077 == 0
    mask = found.mask
    del found
    gc.collect()
    assert not folder.exists() and mask.shape == (H, W)


def test_failed_run_leaves_no_temporary_files(
    place: Place, session: BundleSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        session.predict_scene(place.before, place.after, progress=stop)
    assert list(tmp_path.iterdir()) == []
    session.predict_scene(place.before, place.after)  # the session is still of use


def test_output_keeps_its_files_and_is_not_replaced(place: Place, session: BundleSession, tmp_path: Path) -> None:
    found = session.predict_scene(place.before, place.after, tmp_path / "map.tif", cog=True)
    names = ["map.gpkg", "map.tif", "map_probability.tif", "map_quicklook.png"]
    del found
    gc.collect()
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), place.change)
    with pytest.raises(UsageError, match=r"map.tif exists"):
        session.predict_scene(place.before, place.after, str(tmp_path / "map.tif"))
    again = session.predict_scene(
        place.before, place.after, tmp_path / "map.tif", force=True, vector=tmp_path / "other.fgb", quicklook=None
    )
    assert {*again.files} == {"output", "probability", "vector"} and (tmp_path / "other.fgb").is_file()
    with pytest.raises(UsageError, match=r"the result has no quicklook, because .*; pass quicklook=PATH"):
        _ = again.quicklook
    with pytest.raises(UsageError, match=r"the result has no report.*pass report=PATH"):
        again.save(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    assert "<img" not in again._repr_html_()


def test_interrupted_run_resumes(place: Place, session: BundleSession, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="finished work is kept"):
        session.predict_scene(place.before, place.after, tmp_path / "map.tif", progress=stop)
    assert not (tmp_path / "map.tif").exists()
    found = session.predict_scene(place.before, place.after, tmp_path / "map.tif")
    assert found.report["resumed"] > 0
    np.testing.assert_array_equal(found.probability, read(place.probability))


def test_save_writes_the_file_that_the_suffix_names(result: SceneResult, tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    for name in ("a.tif", "a.tiff", "a.png", "a.gpkg", "a.geojson", "a.fgb", "a.html"):
        assert result.save(tmp_path / name) == tmp_path / name
    assert (tmp_path / "a.tif").read_bytes() == result.files["output"].read_bytes()
    assert (tmp_path / "a.png").read_bytes() == result.files["quicklook"].read_bytes()
    areas = [
        pyogrio.raw.read(tmp_path / f"a.{suffix}", columns=["pixels"], layer=0)[3][0]
        for suffix in ("gpkg", "geojson", "fgb")
    ]
    assert all(sorted(one) == sorted(areas[0]) and len(one) for one in areas)
    assert pyogrio.read_info(tmp_path / "a.geojson")["crs"] == "EPSG:4326"
    assert pyogrio.read_info(tmp_path / "a.fgb")["crs"] == "EPSG:32633"
    before = (tmp_path / "a.fgb").stat()
    with pytest.raises(UsageError, match=r"a.fgb exists"):
        result.save(tmp_path / "a.fgb")
    assert (tmp_path / "a.fgb").stat() == before
    result.save(str(tmp_path / "a.fgb"), force=True)
    with pytest.raises(UsageError, match=r"has the suffix '.jpg'; choose .tif, .tiff, .png"):
        result.save(tmp_path / "a.jpg")
    assert len(list(tmp_path.iterdir())) == 7


def test_html_is_small_escaped_and_self_contained(place: Place, session: BundleSession) -> None:
    found = session.predict_scene(place.before, place.before)
    assert "<strong>Warning:</strong> BEFORE and AFTER are the same file" in found._repr_html_()
    found.warnings = ("<script>alert(1)</script>",)
    text = found._repr_html_()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert len(text) < 300_000 and not re.search(r"https?://", text)
    picture = base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]+)"', text)[1])  # type: ignore[index]
    assert picture[:2] == b"\xff\xd8"
    assert re.search(r"<th>tiles</th><td>15</td>", text)


def test_html_of_a_noisy_picture_stays_small(result: SceneResult, tmp_path: Path) -> None:
    from misgnet_runtime.api.shown import html_of

    noise = np.random.default_rng(0).integers(0, 256, (1024, 3072, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert len(html_of("noise", tmp_path / "noise.png", {}, [])) < 300_000


def test_plot_draws_in_map_coordinates(result: SceneResult) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    _, given = pyplot.subplots()
    try:
        ax = result.plot(given)
        assert ax is given
        (image,) = ax.images
        assert image.get_extent() == [399_984, 399_984 + W / 2, 4_999_992 - H / 2, 4_999_992]
        assert "EPSG:32633" in ax.get_xlabel() and "changed" in ax.get_title()
        assert np.ma.getmaskarray(image.get_array())[:20, :30].all()
        assert result.plot() is not given
    finally:
        pyplot.close("all")


def test_plot_without_matplotlib_names_the_extra(result: SceneResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UnavailableError, match=re.escape("pip install 'misgnet-export[notebook]'")):
        result.plot()


def test_quicklook_is_a_picture(result: SceneResult) -> None:
    assert result.quicklook.size[0] >= 2 * W and result.quicklook.mode == "RGB"


# Options


def test_options_are_those_of_the_command(place: Place, session: BundleSession, tmp_path: Path) -> None:
    out = tmp_path / "command.tif"
    words = ["--bands", "3,2,1", "--before-scale", "0.003", "--after-scale", "0.004", "--overlap", "32"]
    words += ["--threshold", "0.3", "--probability", str(tmp_path / "p.tif"), "--min-area", "100"]
    code = exit_code(
        cli.main, "misgnet-run", "predict", place.bundle, place.before, place.after, "-o", out, *words,
        "--vector", tmp_path / "v.gpkg",
    )  # fmt: skip
    assert code == 0
    found = session.predict_scene(
        place.before, place.after, bands=[3, 2, 1], before_scale=0.003, after_scale=(0.004,), overlap=32,
        threshold=0.3, min_area=100, align=False,
    )  # type: ignore[arg-type]  # fmt: skip
    np.testing.assert_array_equal(found.probability, read(tmp_path / "p.tif"))
    np.testing.assert_array_equal(found.mask.filled(True), read(out) > 0)
    texts = {"bands": "3,2,1", "before_scale": "0.003", "after_scale": "0.004", "overlap": "32"}
    text = session.predict_scene(place.before, place.after, **texts)
    np.testing.assert_array_equal(text.probability, found.probability)
    several = session.predict_scene(place.before, place.after, **{**texts, "bands": ["3", "2", "1"]})
    np.testing.assert_array_equal(several.probability, found.probability)


def test_area_and_registration(place: Place, session: BundleSession, tmp_path: Path) -> None:
    west, north = 399_984 + 20, 4_999_992 - 15
    ring = [[west, north], [west + 40, north], [west + 40, north - 30], [west, north - 30], [west, north]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    area = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [area]}))
    found = session.predict_scene(place.before, place.after, aoi=path, coregister="shift")
    inside = np.zeros((H, W), np.bool_)
    inside[30:90, 40:120] = True
    np.testing.assert_array_equal(found.valid, inside & (place.change != 255))
    assert found.report["registration"]["inliers"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 2}, "'streams' belongs to the engine, which is already open; pass it to open_bundle"),
        ({"engine": "cpu"}, "'engine' belongs to the engine"),
        ({"colour": 1}, "there is no option 'colour'; there are .*after_bands.*threshold"),
        ({"overlap": 2.5}, "--overlap is 2.5; expected a whole number"),
        ({"overlap": "x"}, "--overlap is 'x'; expected a whole number"),
        ({"scale": object()}, "--scale is <object .*; expected a number, or one per band"),
        ({"align": 1}, "--align is 1; expected True or False"),
        ({"vector": 3}, "--vector is 3; expected a path"),
        ({"threshold": 2}, "--threshold is 2"),
        ({"vector": "x.shp"}, "--vector is x.shp; choose a name that ends in .gpkg"),
        ({"output": "x.png"}, "output x.png is a change raster; choose a name that ends in .tif"),
        ({"stretch": (2, 98), "scale": 1}, "--stretch determines scale and offset itself"),
    ],
    ids=lambda found: "-".join(found) if isinstance(found, dict) else "",
)
def test_invalid_options_are_refused(
    place: Place, session: BundleSession, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        session.predict_scene(place.before, place.after, **options)


def test_every_option_of_a_scene_is_a_keyword(place: Place, session: BundleSession) -> None:
    from misgnet_runtime.api.keywords import _OF_THE_SESSION, options_of
    from misgnet_runtime.options import stated

    known = stated(SceneOptions)
    assert set(_OF_THE_SESSION) <= known.keys()
    for name in known.keys() - set(_OF_THE_SESSION):
        assert options_of({name: None}) == SceneOptions()


def test_progress_and_log_report_the_run(
    place: Place, session: BundleSession, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, "misgnet"):
        session.predict_scene(place.before, place.after, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert "before: bands 1,2,3" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.ERROR, "misgnet"):
        found = session.predict_scene(place.before, place.before)
    assert caplog.text == "" and "same file" in found.warnings[0]


def test_closed_session_refuses_scenes(place: Place) -> None:
    session = open_bundle(place.bundle)
    session.close()
    with pytest.raises(UsageError, match="is closed; open the bundle again"):
        session.predict_scene(place.before, place.after)


def test_threads_share_a_session(place: Place, session: BundleSession) -> None:
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(session.predict_scene(place.before, place.after).probability))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:
        np.testing.assert_array_equal(one, read(place.probability))


# Addresses and STAC Items


def test_address_needs_remote(place: Place, session: BundleSession) -> None:
    pytest.importorskip("urllib3")
    from support.file_server import file_server

    with file_server(place.root) as server:
        addresses = [server.url(path.name) for path in (place.before, place.after)]
        with pytest.raises(UsageError, match="--remote"):
            session.predict_scene(*addresses)
        assert server.requests == []
        found = session.predict_scene(*addresses, remote=True)
    np.testing.assert_array_equal(found.probability, read(place.probability))


def test_stac_items_of_pystac_and_of_a_path_give_the_map_of_their_file(
    place: Place, session: BundleSession, tmp_path: Path
) -> None:
    path = write_item(tmp_path / "item.json", {"visual": three_bands(str(place.before))})
    found = session.predict_scene(path, place.after, before_assets=["visual"])
    np.testing.assert_array_equal(found.probability, read(place.probability))
    pystac = pytest.importorskip("pystac")
    item = pystac.Item.from_file(str(path))
    np.testing.assert_array_equal(session.predict_scene(item, place.after).probability, read(place.probability))
    item.set_self_href(None)
    with pytest.raises(InputError, match="before, STAC Item scene, has no address of its own; save it"):
        session.predict_scene(item, place.after)


# Open datasets


def test_local_dataset_is_read_from_its_file(place: Place, session: BundleSession, copied: list[str]) -> None:
    with rasterio.open(place.before) as before, rasterio.open(place.after) as after:
        found = session.predict_scene(before, after)
    np.testing.assert_array_equal(found.probability, read(place.probability))
    assert copied == []


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list to which each copy of a dataset appends the dataset's name."""
    found: list[str] = []
    real = rasterio.shutil.copy

    def copy(source: Any, *arguments: Any, **options: Any) -> None:
        found.append(source.name)
        real(source, *arguments, **options)

    monkeypatch.setattr(rasterio.shutil, "copy", copy)
    return found


def test_datasets_in_memory_and_warped_ones_are_copied(
    place: Place, session: BundleSession, copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        rasterio.MemoryFile(place.before.read_bytes()) as memory, memory.open() as before,
        rasterio.open(place.after) as file, rasterio.vrt.WarpedVRT(file) as after,
    ):  # fmt: skip
        found = session.predict_scene(before, after)
    assert len(copied) == 2
    np.testing.assert_array_equal(found.probability, read(place.probability))
    assert [path for path in tmp_path.iterdir() if path != found.files["output"].parent] == []


def test_vrt_that_a_caller_opened_is_copied(
    place: Place, session: BundleSession, copied: list[str], tmp_path: Path
) -> None:
    vrt = tmp_path / "before.vrt"
    rasterio.shutil.copy(place.before, vrt, driver="VRT")
    copied.clear()
    with rasterio.open(vrt) as before:
        found = session.predict_scene(before, place.after)
    assert copied == [str(vrt)]
    np.testing.assert_array_equal(found.probability, read(place.probability))
    with pytest.raises(InputError, match="GeoTIFF"):  # a path is not opened by other drivers
        session.predict_scene(vrt, place.after)


def test_dataset_with_a_sidecar_file_is_copied(
    place: Place, session: BundleSession, copied: list[str], tmp_path: Path
) -> None:
    """A file's sidecar files are not read, but the caller's dataset has what they state."""
    path = write_raster(tmp_path / "after.tif", AFTER)
    (tmp_path / "after.tif.aux.xml").write_text(
        "<PAMDataset>"
        + "".join(f'<PAMRasterBand band="{b}"><NoDataValue>0</NoDataValue></PAMRasterBand>' for b in (1, 2, 3))
        + "</PAMDataset>"
    )
    with rasterio.open(path) as after:
        assert after.nodata == 0
        found = session.predict_scene(place.before, after)
    assert len(copied) == 1
    np.testing.assert_array_equal(found.probability, read(place.probability))


def test_closed_and_writable_datasets_are_refused(place: Place, session: BundleSession, tmp_path: Path) -> None:
    with rasterio.open(place.before) as dataset:
        pass
    with pytest.raises(UsageError, match=r"before, dataset .*, is closed; open it with"):
        session.predict_scene(dataset, place.after)
    path = write_raster(tmp_path / "after.tif", AFTER)
    with rasterio.open(path, "r+") as dataset, pytest.raises(UsageError, match=r"is open in mode 'r\+'"):
        session.predict_scene(place.before, dataset)


def test_other_objects_are_refused(place: Place, session: BundleSession) -> None:
    with pytest.raises(InputError, match=r"before is a numpy.ndarray; .*: pass arrays and Pillow images to predict"):
        session.predict_scene(BEFORE, place.after)
    with pytest.raises(InputError, match=r"after is a builtins.int; a scene is a path or an address of a GeoTIFF"):
        session.predict_scene(place.before, 3)


# DataArrays


def data_array(pixels: Any = BEFORE, *, dims: tuple[str, ...] = ("band", "y", "x"), crs: Any = "EPSG:32633") -> Any:
    """Returns a DataArray as rioxarray opens one, made without it."""
    xarray = pytest.importorskip("xarray")
    coords = {
        "band": np.arange(1, 4), "y": 4_999_992 - 0.25 - 0.5 * np.arange(H), "x": 399_984 + 0.25 + 0.5 * np.arange(W),
    }  # fmt: skip
    found = xarray.DataArray(pixels, coords=coords, dims=("band", "y", "x"), name="scene")
    if crs:
        wkt = rasterio.crs.CRS.from_user_input(crs).to_wkt()
        found = found.assign_coords(spatial_ref=xarray.DataArray(0, attrs={"crs_wkt": wkt}))
    return found.transpose(*dims)


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band")])
def test_data_array_gives_the_map_of_its_file(place: Place, session: BundleSession, dims: tuple[str, ...]) -> None:
    after = data_array(AFTER, dims=dims)
    after.attrs["_FillValue"] = 0
    found = session.predict_scene(data_array(dims=dims), after)
    np.testing.assert_array_equal(found.probability, read(place.probability))
    assert found.crs == PLACE["crs"] and found.transform == PLACE["transform"]


def test_data_array_of_rioxarray(place: Place, session: BundleSession) -> None:
    rioxarray = pytest.importorskip("rioxarray")
    with rioxarray.open_rasterio(place.before) as before, rioxarray.open_rasterio(place.after) as after:
        found = session.predict_scene(before.expand_dims("time"), after)
        part = session.predict_scene(before[:, 30:, 40:], after[:, 30:, 40:])
        masked = rioxarray.open_rasterio(place.after, masked=True).rio.clip_box(399_990, 4_999_930, 400_030, 4_999_980)
        also = before.rio.clip_box(399_990, 4_999_930, 400_030, 4_999_980)
        floats = session.predict_scene(also, masked, after_scale=1 / 255)
    np.testing.assert_array_equal(found.probability, read(place.probability))
    assert part.transform.c == 399_984 + 20 and part.mask.shape == (H - 30, W - 40)
    assert 0 < floats.changed_share < 1  # type: ignore[operator]


def test_data_array_is_written_in_parts(place: Place, session: BundleSession, monkeypatch: pytest.MonkeyPatch) -> None:
    from misgnet_runtime.api import data_arrays

    monkeypatch.setattr(data_arrays, "_BLOCK", 64)
    monkeypatch.setattr(data_arrays, "_AT_ONCE", 1)
    found = session.predict_scene(data_array(), place.after)
    np.testing.assert_array_equal(found.probability, read(place.probability))


def test_names_of_bands_are_their_colours(place: Place, session: BundleSession) -> None:
    mixed = data_array(BEFORE[::-1]).assign_coords(band=["blue", "green", "red"])
    found = session.predict_scene(mixed, place.after)
    np.testing.assert_array_equal(found.probability, read(place.probability))


def test_unnamed_fourth_band_is_no_alpha(place: Place, session: BundleSession) -> None:
    xarray = pytest.importorskip("xarray")
    four = xarray.concat([data_array(), data_array()[:1]], "band")
    with pytest.raises(InputError, match="has 4 bands; specify the red, green and blue bands"):
        session.predict_scene(four, place.after)
    found = session.predict_scene(four, place.after, before_bands=(1, 2, 3))
    np.testing.assert_array_equal(found.probability, read(place.probability))


@pytest.mark.parametrize("attrs", [{"scale_factor": 0.0001}, {"add_offset": -0.1}, {"scales": (1.0, 1.0, 2.0)}])
def test_scale_that_an_array_states_must_be_declared(
    place: Place, session: BundleSession, attrs: dict[str, Any]
) -> None:
    before = data_array()
    before.attrs.update(attrs)
    with pytest.raises(InputError, match="its conversion to brightness is not declared"):
        session.predict_scene(before, place.after)


def test_data_array_errors(place: Place, session: BundleSession) -> None:
    xarray = pytest.importorskip("xarray")
    good = data_array()
    uneven = good.assign_coords(x=good.x + 0.1 * (np.arange(W) % 2))
    for wrong, message in (
        (data_array(crs=None), "before, DataArray 'scene', states no coordinate system; set it with rioxarray"),
        (good.rename(y="row"), "has the dimensions band, row, x; expected y and x"),
        (good.drop_vars("x"), "has no coordinates along x; expected regular coordinates"),
        (good[:, :1], "has 1 pixel along y; expected regular coordinates of at least 2 pixel centres"),
        (uneven, "has irregular coordinates along x; resample it"),
        (xarray.concat([good, good], "time"), "has time of 2, band of 3 besides its rows and columns; select one"),
        (good.astype(np.complex64), "contains complex64"),
        (good > 50, "cannot be written as a GeoTIFF"),
    ):
        with pytest.raises(InputError, match=message):
            session.predict_scene(wrong, place.after)

"""Tests what a person sees of a map's outputs: names and dates in tags, classes, styles, attributes of polygons."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pyogrio = pytest.importorskip("pyogrio", reason="polygons need the [geo] extra")

import misgnet_runtime
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.log import collector
from misgnet_runtime.raster import styles
from misgnet_runtime.raster.source import LocalFile
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, make_bundle
from support.commands import exit_code
from support.scenes import PLACE, scene, write_raster

BEFORE, AFTER = scene(120, 90)
FAKE = fake_detector(lambda: FakeEngine(INTERFACE))
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Returns a function that predicts a pair taken on known dates, and returns the folder of the outputs."""
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])

    def ran(folder: str = "out", tags: dict[str, str] | None = None, place: Any = PLACE, **options: Any) -> Path:
        tags = {"before": "2019:05:02 10:11:12", "after": "2021-06-03T00:00:00+02:00"} if tags is None else tags
        for name, pixels in (("before", BEFORE), ("after", AFTER)):
            write_raster(tmp_path / f"{name}.tif", pixels, **place)
            if name in tags:
                with rasterio.open(tmp_path / f"{name}.tif", "r+") as dataset:
                    dataset.update_tags(ACQUISITIONDATETIME=tags[name])
        out = tmp_path / folder
        asked = SceneOptions(force=True, **{
            name: out / value if isinstance(value, str) else value for name, value in options.items()
        })  # fmt: skip
        paths = (tmp_path / f"{name}.tif" for name in ("before", "after"))
        predict_scene_files(bundle, *paths, out / "change.tif", asked, log=collector()[0], opener=FAKE)
        return out

    return ran


def fields_of(path: Path) -> dict[str, Any]:
    meta, _, _, values = pyogrio.raw.read(path, layer="change")
    return dict(zip(meta["fields"], values, strict=True))


# --- rasters


@pytest.mark.parametrize("cog", [False, True])
def test_tags_name_both_files_their_dates_and_the_software(run: Run, cog: bool) -> None:
    out = run(probability="p.tif", cog=cog)
    for name in ("change.tif", "p.tif"):
        with rasterio.open(out / name) as dataset:
            tags = dataset.tags()
        assert (tags["MISGNET_BEFORE_NAME"], tags["MISGNET_AFTER_NAME"]) == ("before.tif", "after.tif")
        assert tags["MISGNET_BEFORE_DATE"] == "2019-05-02T10:11:12+00:00"
        assert tags["MISGNET_AFTER_DATE"] == "2021-06-03T00:00:00+02:00"
        assert tags["MISGNET_SOFTWARE"] == f"misgnet-export {misgnet_runtime.__version__}"
        assert tags["MISGNET_VALID_SHARE"] == "1" and len(tags["MISGNET_BEFORE_SHA256"]) == 64


def test_unknown_dates_have_no_tag(run: Run) -> None:
    with rasterio.open(run(tags={"before": "soon"}) / "change.tif") as dataset:
        assert not [name for name in dataset.tags() if name.endswith("_DATE")]


def test_the_valid_share_counts_pixels_that_both_dates_have(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "AFTER", np.where(np.arange(90) < 30, 0, AFTER).astype(np.uint8))
    monkeypatch.setattr("misgnet_runtime.raster.writer._COUNTED", 1000)
    with rasterio.open(run(place={**PLACE, "nodata": 0}) / "change.tif") as dataset:
        assert (dataset.read(1) == 255).sum() == 30 * 120 and dataset.tags()["MISGNET_VALID_SHARE"] == "0.666667"


@pytest.mark.parametrize("cog", [False, True])
def test_bands_and_classes_are_described(run: Run, cog: bool) -> None:
    out = run(probability="p.tif", cog=cog)
    with rasterio.open(out / "change.tif") as dataset:
        assert dataset.descriptions == ("change",)
        classes = {name: value for name, value in dataset.tags(1).items() if name.startswith("CLASS_")}
        assert classes == {"CLASS_0": "unchanged", "CLASS_1": "changed", "CLASS_255": "no data"}
    with rasterio.open(out / "p.tif") as dataset:
        assert dataset.descriptions == ("probability of change",) and "CLASS_0" not in dataset.tags(1)


def test_equal_runs_write_equal_bytes(run: Run) -> None:
    names = {"probability": "p.tif", "quicklook": "q.png", "report": "r.html", "vector": "c.geojson", "style": True}
    first = {path.name: path.read_bytes() for path in run("one", **names).iterdir()}
    second = {path.name: path.read_bytes() for path in run("two", **names).iterdir()}
    assert first.keys() == second.keys() and len(first) == 7
    assert [name for name in first if first[name] != second[name]] == []


# --- styles for QGIS


def test_styles_lie_beside_their_rasters(run: Run) -> None:
    out = run(probability="p.tif", style=True)
    assert {path.name for path in out.iterdir()} == {"change.tif", "change.qml", "p.tif", "p.qml"}
    assert {path.name for path in run("plain", probability="p.tif").iterdir()} == {"change.tif", "p.tif"}


def test_style_of_a_change_raster_hides_unchanged_pixels_and_names_classes(run: Run) -> None:
    root = ElementTree.parse(run(style=True) / "change.qml").getroot()
    assert root.tag == "qgis"
    renderer = root.find("pipe/rasterrenderer")
    assert renderer is not None and (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = {one.get("value"): one for one in renderer.findall("colorPalette/paletteEntry")}
    assert {value: (one.get("label"), one.get("alpha")) for value, one in entries.items()} == {
        "0": ("unchanged", "0"), "1": ("changed", "255"), "255": ("no data", "0")
    }  # fmt: skip
    assert entries["1"].get("color") == "#ff0000"


def test_style_of_a_probability_raster_is_a_ramp_from_nothing_to_red() -> None:
    root = ElementTree.fromstring(styles.probability_raster())
    shader = root.find("pipe/rasterrenderer[@type='singlebandpseudocolor']/rastershader/colorrampshader")
    assert shader is not None and (shader.get("minimumValue"), shader.get("maximumValue")) == ("0", "1")
    items = [(float(one.get("value", "")), int(one.get("alpha", ""))) for one in shader.findall("item")]
    assert items == sorted(items) and items[0] == (0, 0) and items[-1] == (1, 255)


def test_geopackage_has_a_default_style(run: Run) -> None:
    path = run(vector="c.gpkg") / "c.gpkg"
    meta, _, _, values = pyogrio.raw.read(path, layer="layer_styles")
    (row,) = zip(*values, strict=True)
    style = dict(zip(meta["fields"], row, strict=True))
    assert (style["f_table_schema"], style["f_table_name"], style["f_geometry_column"]) == ("", "change", "geom")
    assert style["useAsDefault"] == 1 and style["styleQML"] == styles.change_areas()
    layer = ElementTree.fromstring(style["styleQML"]).find("renderer-v2/symbols/symbol/layer[@class='SimpleFill']")
    assert layer is not None
    new = {one.get("name"): one.get("value") for one in layer.findall("Option/Option")}
    old = {one.get("k"): one.get("v") for one in layer.findall("prop")}
    assert new == old and new["color"] == "255,0,0,64" and new["outline_color"] == "255,0,0,255"
    with path.open("rb") as file:
        assert file.read(16) == b"SQLite format 3\0"


def test_style_of_a_mask_is_refused(run: Run, tmp_path: Path) -> None:
    run()
    with pytest.raises(UsageError, match=r"--style is for GeoTIFFs; choose -o mask\.tif"):
        SceneOptions(style=True).check(tmp_path / "mask.png")


def test_two_outputs_with_one_style_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same name"):
        SceneOptions(style=True, probability=tmp_path / "a.tiff").check(tmp_path / "a.tif")


# --- polygons


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb"])
def test_polygons_state_number_probabilities_dates_and_scene(run: Run, suffix: str) -> None:
    path = run(vector=f"c.{suffix}", probability="p.tif") / f"c.{suffix}"
    fields = fields_of(path)
    assert list(fields) == [
        "id", "pixels", "area_m2", "probability", "probability_max", "before_date", "after_date", "scene",
    ]  # fmt: skip
    order = np.argsort(fields["id"])
    assert list(fields["id"][order]) == [1, 2]
    assert (np.diff(fields["pixels"][order]) <= 0).all()
    with rasterio.open(path.with_name("p.tif")) as dataset:
        probability = dataset.read(1)
    areas = [probability[24:60, 15:45], probability[-30:, -18:]]  # the rectangles of scene(), the larger one first
    for name, expected in (("probability", np.mean), ("probability_max", np.max)):
        np.testing.assert_allclose(fields[name][order], [expected(area) for area in areas], rtol=1e-5)
    assert set(fields["scene"]) == {"after"}
    assert {str(date)[:19] for date in fields["before_date"]} == {"2019-05-02T10:11:12"}
    assert {str(date)[:19] for date in fields["after_date"]} == {"2021-06-02T22:00:00"}  # in UTC


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb"])
def test_unknown_dates_are_null(run: Run, suffix: str) -> None:
    fields = fields_of(run(tags={}, vector=f"c.{suffix}") / f"c.{suffix}")
    for name in ("before_date", "after_date"):
        assert all(value is None or np.isnat(value) for value in fields[name]), fields[name]


def test_equal_areas_are_numbered_from_top_to_bottom(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the raster is mirrored on the ground."""
    for south_up in (False, True):
        transform = PLACE["transform"]
        if south_up:
            transform = rasterio.Affine(0.5, 0, transform.c, 0, 0.5, transform.f)
        blocks = BEFORE.copy()
        for top, left in ((70, 10), (10, 60), (10, 10)):
            blocks[:, top : top + 10, left : left + 10] += 150
        with monkeypatch.context() as patched:
            patched.setitem(globals(), "AFTER", blocks)
            out = run(f"out{south_up}", place={**PLACE, "transform": transform}, vector="c.gpkg")
        _, _, outlines, values = pyogrio.raw.read(out / "c.gpkg", layer="change")
        corners = [struct.unpack("<dd", wkb[13:29]) for wkb in outlines]  # the first point of each
        pixels = [((x - transform.c) / transform.a, (y - transform.f) / transform.e) for x, y in corners]
        assert [(x > 40, y > 40) for x, y in pixels] == [(False, False), (True, False), (False, True)]
        assert list(values[0]) == [1, 2, 3]


# --- names in folders


def test_series_watch_and_batch_name_page_and_styles_after_their_scene(tmp_path: Path) -> None:
    chosen = SeriesOptions(report=True, probability=True, scene=SceneOptions(style=True))
    change, options = chosen.of_date(tmp_path, LocalFile(tmp_path / "2021.tif"))
    assert {path.name for path in options.outputs(change).values()} == {
        "2021.tif", "2021.probability.tif", "2021.html", "2021.qml", "2021.probability.qml",
    }  # fmt: skip
    watched = WatchOptions(report=True, probability=True, scene=SceneOptions(style=True))
    files = watched.scene_options("a", tmp_path).outputs(tmp_path / "a_change.tif").values()
    assert {path.name for path in files} == {
        "a_change.tif", "a_probability.tif", "a_report.html", "a_change.qml", "a_probability.qml",
    }  # fmt: skip
    words = {"report": "yes", "probability": "p/x.tif", "style": "yes"}
    assert Scene("s", Path("/b.tif"), Path("/a.tif"), words).outputs() == {
        "probability_style": "p/x.qml", "output_style": "s.qml", "probability": "p/x.tif", "report": "s.html",
        "output": "s.tif",
    }  # fmt: skip


def test_new_options_at_their_defaults_are_not_recorded() -> None:
    """Runs that an older version started are resumed."""
    recorded = SceneOptions().settings(overlap=1, batch=1, streams=1)
    assert not {"--style", "--report"} & recorded.keys()
    assert not {"style", "report"} & WatchOptions().settings().keys()
    assert SceneOptions(style=True).settings(overlap=1, batch=1, streams=1)["--style"] == "True"
    assert replace(WatchOptions(), report=True).settings()["report"] == "True"


def test_folders_refuse_page_and_styles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    for name, pixels in (("A", BEFORE), ("B", AFTER)):
        write_raster(tmp_path / name / "x.tif", pixels)
    for words in (["--style"], ["--report", tmp_path / "r.html"]):
        line = ["predict", bundle, tmp_path / "A", tmp_path / "B", "-o", tmp_path / "out", *words]
        assert exit_code(cli.main, "misgnet-run", *line) == 2
        assert "--report and --style" in capsys.readouterr().err

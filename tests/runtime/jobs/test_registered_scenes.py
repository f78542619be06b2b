"""Tests registration where rasters are on a server, are stacks of STAC Items, or belong to a batch with an area."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pytest.importorskip("scipy", reason="registration needs the [register] extra")
pytest.importorskip("skimage", reason="registration needs the [register] extra")
pytest.importorskip("shapely", reason="polygons need the [geo] extra")

from misgnet_runtime.jobs.batch import run as batch_run
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.jobs.batch.run import BatchReport, run_batch
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import SceneReport, predict_scene_files
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.remote import RemoteOptions
from support.batches import BatchWorkspace, InProcess, Recorder, results
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, make_bundle
from support.file_server import file_server
from support.ground import pair_of
from support.scenes import PLACE, read, write_raster
from support.stac import COLOURS, single_band_assets, write_item

SIDE, SHIFT = 256, (-12.3, 4.7)
DATES = dict(zip(("before", "after"), pair_of(SIDE, SHIFT), strict=True))
DATES["after"][:, 100:160, 90:170] = 255
REGISTERED = SceneOptions(coregister="shift")
STATED = {"data_type": "uint8"}


class Place:
    """A bundle, and both dates as one file each and as one file for each band."""

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, root / "files"
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        for name, pixels in DATES.items():
            write_raster(self.files / f"{name}.tif", pixels)
            for colour, band in zip(COLOURS, pixels, strict=True):
                write_raster(self.files / f"{name}/{colour}.tif", band[None])
            write_item(self.files / f"{name}/item.json", single_band_assets(**STATED))

    def run(self, name: str, options: SceneOptions, *dates: Path | str) -> SceneReport:
        opener = fake_detector(lambda: FakeEngine(INTERFACE))
        return predict_scene_files(self.bundle, *dates, self.root / f"{name}.tif", options, opener=opener)

    def local(self) -> SceneReport:
        """Writes ``local.tif`` from the local files."""
        report = self.run("local", REGISTERED, *(self.files / f"{name}.tif" for name in DATES))
        found = report.registration
        assert found and (found.rows, found.columns) == pytest.approx(SHIFT, abs=0.1)
        assert 0.9 < report.valid_share < 1
        return report


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("form", ["files", "items"])
def test_registration_over_http_equals_that_of_local_files(place: Place, form: str) -> None:
    pytest.importorskip("urllib3", reason="remote rasters need the [remote] extra")
    options = replace(REGISTERED, remote=RemoteOptions(remote=True))
    names = [f"{name}.tif" for name in DATES]
    if form == "items":
        options = replace(options, both=Declared(assets=COLOURS))
        names = [f"{name}/item.json" for name in DATES]
    with file_server(place.files) as server:
        report = place.run("remote", options, *map(server.url, names))
    assert report.registration == place.local().registration
    assert np.array_equal(read(place.root / "remote.tif"), read(place.root / "local.tif"))


def test_registration_of_a_stack_equals_that_of_one_file(place: Place) -> None:
    options = replace(REGISTERED, both=Declared(assets=COLOURS))
    report = place.run("stack", options, *(place.files / f"{name}/item.json" for name in DATES))
    assert report.registration == place.local().registration
    assert np.array_equal(read(place.root / "stack.tif"), read(place.root / "local.tif"))


def test_a_row_with_an_area_and_registration_states_both_in_all_outputs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pystac", reason="STAC Items of results need the [stac] extra")
    monkeypatch.setattr(batch_run, "ProcessPool", InProcess)
    workspace = BatchWorkspace(place.root, place.bundle, place.root / "out")
    with rasterio.open(place.files / "after.tif", "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:06:01 10:20:31")
    left, top = PLACE["transform"] * (0, 0)
    ring = [(left + x * 0.5, top - y * 0.5) for x, y in ((80, 0), (180, 0), (180, 200), (80, 200), (80, 0))]
    area = {"type": "Polygon", "coordinates": [ring], "crs": {"type": "name", "properties": {"name": "EPSG:32633"}}}
    (place.root / "aoi.geojson").write_text(json.dumps(area))
    columns = {"aoi": "aoi.geojson", "coregister": "shift", "vector": "yes", "report": "yes", "stac_item": "yes"}
    dates = "files/before.tif,files/after.tif"
    workspace.rows = [f"a,{dates},{','.join(columns.values())}", f"b,{dates},,,,,"]

    def run() -> BatchReport:
        listener = Recorder().listener()
        return run_batch(place.bundle, workspace.table(*columns), workspace.out, BatchOptions(), listener)

    assert (run().done, run().earlier) == (2, 2)
    found, other = results(workspace).values()
    assert float(found["registration_rows"]) == pytest.approx(SHIFT[0], abs=0.1)
    assert float(found["registration_columns"]) == pytest.approx(SHIFT[1], abs=0.1)
    assert 3 <= int(found["registration_inliers"]) <= int(found["registration_windows"])
    assert float(found["registration_residual"]) < 1
    # AFTER lacks the first 12 or 13 of the area's 200 rows.
    assert float(found["aoi_valid_share"]) == pytest.approx(1 - 13 / 200, abs=0.01)
    assert float(found["valid_share"]) == pytest.approx(100 * 187 / SIDE**2, abs=0.01)
    assert {other[name] for name in other if name.startswith(("registration", "aoi"))} == {""}
    page = (workspace.out / "a.html").read_text()
    item = json.loads((workspace.out / "a.json").read_text())
    assert "Registration" in page and set(item["assets"]) == {"change", "vector", "report"}
    assert item["properties"]["misgnet:valid_share"] == pytest.approx(float(found["valid_share"]))
    assert (read(workspace.out / "a.tif")[:, :80] == 255).all()

"""Tests ``--stac-item``: a valid item of a scene's outputs, equal for equal runs; and items as inputs of whole runs."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pystac = pytest.importorskip("pystac", reason="STAC Items of results need the [stac] extra")
pytest.importorskip("jsonschema", reason="the validation needs jsonschema")

from rasterio.transform import from_origin

from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from misgnet_runtime.jobs.journal import progress_folder
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import SceneReport, predict_scene_files
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.footprint import footprint
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.remote import RemoteOptions
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, make_bundle
from support.file_server import FileServer, file_server
from support.logs import Collected
from support.scenes import PLACE, read, scene, write_raster
from support.stac import COLOURS, single_band_assets, three_bands, write_item
from support.stac_schemas import problems

H, W = 140, 150
BEFORE, AFTER = (pixels.astype(np.uint16) * 40 + 1000 for pixels in scene(H, W))
BEFORE[:, :20, :30] = 0
FAKE = fake_detector(lambda: FakeEngine(INTERFACE))
REFLECTANCE = {"nodata": 0, "raster:scale": 0.0001, "raster:offset": -0.1}


class Place:
    """A bundle, an item with one file for each band as BEFORE, and one with one file as AFTER."""

    def __init__(self, root: Path) -> None:
        self.root, self.out, self.logged = root, root / "out", Collected()
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        (root / "dates").mkdir()
        write_raster(root / "dates/after.tif", AFTER)
        for colour, band in zip(COLOURS, BEFORE, strict=True):
            write_raster(root / f"dates/{colour}.tif", band[None])
        self.before = write_item(root / "dates/before.json", single_band_assets(), "2023-06-01T10:20:31.5Z")
        after = {"data": three_bands("after.tif", **REFLECTANCE)}
        self.after = write_item(root / "dates/after.json", after, "2024-06-01T12:20:31+02:00")
        self.options = SceneOptions(before=Declared(assets=COLOURS))

    def run(self, before: Any = None, after: Any = None, **options: Any) -> SceneReport:
        asked = replace(self.options, execution=ExecutionOptions(batch=4), **options)
        self.logged = Collected()
        return predict_scene_files(
            self.bundle, before or self.before, after or self.after, self.out / "change.tif", asked,
            log=self.logged.log, opener=FAKE,
        )  # fmt: skip

    def item(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "change.json").read_text())
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def described(place: Place, **options: Any) -> dict[str, Any]:
    place.run(stac_item=place.out / "change.json", **options)
    return place.item()


# --- items as inputs


def test_the_map_is_that_of_the_files_with_declared_scaling(place: Place) -> None:
    report = place.run()
    found, tags = read(place.out / "change.tif"), _tags(place.out / "change.tif")
    whole = write_raster(place.root / "before.tif", BEFORE, nodata=0)
    other = write_raster(place.root / "after.tif", AFTER, nodata=0)
    declared = Declared(scale=(0.0001,), offset=(-0.1,))
    plain = SceneOptions(both=declared, execution=ExecutionOptions(batch=4))
    predict_scene_files(place.bundle, whole, other, place.root / "plain.tif", plain, opener=FAKE)
    assert np.array_equal(found, read(place.root / "plain.tif")) and set(np.unique(found)) == {0, 1, 255}
    assert report.nodata_share == pytest.approx(600 / (H * W))
    shown = [message for message in place.logged.messages if message.startswith("before: ")]
    assert shown[0].endswith(
        "before.json (assets red,green,blue): bands red, green, blue; scale 0.0001; offset -0.1; nodata 0 "
        "(from the STAC Item)"
    )
    assert tags["MISGNET_BEFORE_STAC_ITEM"].count("sha256") == 4 and "MISGNET_BEFORE_SHA256" not in tags
    assert "data sha256 " + _sha256(place.root / "dates/after.tif") in tags["MISGNET_AFTER_STAC_ITEM"]


def test_the_items_times_warn_of_exchanged_dates(place: Place) -> None:
    place.options = SceneOptions(after=Declared(assets=COLOURS))
    place.run(place.after, place.before)
    assert any("was taken after AFTER" in message for message in place.logged.messages)


def test_shared_assets_with_other_colours_are_an_error(place: Place) -> None:
    assets = single_band_assets()
    assets["red"]["eo:bands"], assets["blue"]["eo:bands"] = assets["blue"]["eo:bands"], assets["red"]["eo:bands"]
    other = write_item(place.root / "dates/other.json", assets)
    place.options = SceneOptions(both=Declared(assets=COLOURS))
    with pytest.raises(InputError, match=r"--assets red,green,blue are red, green, blue .* but blue, green, red .*"):
        place.run(after=other)


def test_a_stack_is_warped_onto_the_other_date(place: Place) -> None:
    moved = from_origin(PLACE["transform"].c + 0.25, PLACE["transform"].f - 0.25, 0.5, 0.5)
    whole = write_raster(place.root / "whole.tif", AFTER, transform=moved)
    place.options = SceneOptions(after=Declared(assets=COLOURS), before=Declared(scale=(0.0001,), offset=(-0.1,)))
    report = place.run(whole, place.before, align=True)
    assert 0.9 < report.valid_share < 1


@pytest.mark.parametrize("changed", ["item", "file"])
def test_an_interrupted_run_is_not_resumed_with_another_item_or_file(place: Place, changed: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _stopped(place)
    assert progress_folder(place.out / "change.tif").exists()
    if changed == "item":
        write_item(place.before, single_band_assets(), "2023-06-02T10:20:31Z")
    else:
        write_raster(place.root / "dates/green.tif", BEFORE[:1])
    with pytest.raises(UsageError, match="the before raster"):
        place.run()
    place.run(restart=True)


@pytest.mark.parametrize("name", ["before.json", "green.tif", "after.tif"])
def test_a_file_that_changes_during_the_run_is_an_error(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(*_: Any) -> None:
        path = place.root / "dates" / name
        path.write_bytes(path.read_bytes() + b" ")

    monkeypatch.setattr("misgnet_runtime.raster.quicklook.write_quicklook", changing)
    with pytest.raises(InputError, match="was changed while it was read"):
        place.run(quicklook=place.out / "look.png")
    assert not (place.out / "change.tif").exists()


def test_an_output_replaces_no_file_of_an_item(place: Place) -> None:
    for name in ("green.tif", "after.tif"):
        with pytest.raises(UsageError, match="is also an input"):
            place.run(probability=place.root / "dates" / name, force=True)
    with pytest.raises(UsageError, match="is also an input"):
        place.run(stac_item=place.before, force=True)


# --- items on a server


@pytest.fixture
def server(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    pytest.importorskip("urllib3", reason="addresses need the [remote] extra")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with file_server(place.root / "dates") as found:
        yield found


REMOTE = RemoteOptions(remote=True, remote_retries=0)


def test_items_on_a_server_give_the_map_of_local_ones(place: Place, server: FileServer) -> None:
    place.run()
    local = read(place.out / "change.tif")
    addresses = [f"{server.url(name)}?token=secret" for name in ("before.json", "after.json")]
    place.run(*addresses, force=True, remote=REMOTE, stac_item=place.out / "change.json")
    assert np.array_equal(read(place.out / "change.tif"), local)
    tags = _tags(place.out / "change.tif")
    assert tags["MISGNET_BEFORE_STAC_ITEM"].count("etag") == 3 and "item sha256" in tags["MISGNET_BEFORE_STAC_ITEM"]
    links = [link["href"] for link in place.item()["links"]]
    assert links == [server.url("before.json"), server.url("after.json")]
    assert not any("secret" in text for text in (str(place.logged.messages), str(tags), str(place.item())))


def test_items_on_a_server_need_the_option_remote(place: Place, server: FileServer) -> None:
    with pytest.raises(UsageError, match="--remote"):
        place.run(server.url("before.json"))
    assert not server.requests


@pytest.mark.parametrize("name", ["before.json", "green.tif", "after.tif"])
def test_what_changes_on_the_server_during_the_run_is_an_error(
    place: Place, server: FileServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(*_: Any) -> None:
        path = place.root / "dates" / name
        path.write_bytes(path.read_bytes() + b" ")

    monkeypatch.setattr("misgnet_runtime.raster.quicklook.write_quicklook", changing)
    with pytest.raises(InputError, match="changed"):
        place.run(
            server.url("before.json"), server.url("after.json"), remote=REMOTE, quicklook=place.out / "look.png"
        )  # fmt: skip
    assert not (place.out / "change.tif").exists()


# --- items of results


def test_the_item_of_a_result_is_valid(place: Place) -> None:
    products = {"probability": "p.tif", "vector": "maps/v.gpkg", "quicklook": "look.png"}
    item = described(place, cog=True, **{name: place.out / path for name, path in products.items()})
    assert problems(item) == []
    names = {"change": "./change.tif", **{name: f"./{path}" for name, path in products.items()}}
    assert {name: asset["href"] for name, asset in item["assets"].items()} == names
    for asset in item["assets"].values():
        path = place.out / asset["href"]
        assert asset["file:size"] == path.stat().st_size
        assert asset.get("file:checksum") == (None if path.suffix == ".gpkg" else f"1220{_sha256(path)}")
        assert asset["type"].endswith("profile=cloud-optimized") == (path.suffix == ".tif")
    links = [(link["rel"], link["href"], link["type"]) for link in item["links"]]
    assert links == [
        ("derived_from", f"../dates/{name}.json", "application/geo+json") for name in ("before", "after")
    ]  # fmt: skip
    assert pystac.Item.from_dict(item).id == "change"
    for part, field, wrong in (
        (item["properties"], "proj:shape", [H]), (item["properties"], "processing:software", "misgnet-export 1.0"),
        (item["assets"]["change"], "file:size", "many"), (item["assets"]["change"], "raster:bands", [{}]),
    ):  # fmt: skip
        right, part[field] = part[field], wrong
        assert problems(item)
        part[field] = right


def test_the_item_states_how_the_result_was_made(place: Place) -> None:
    item, tags = described(place, threshold=0.25), _tags(place.out / "change.tif")
    properties, change = item["properties"], read(place.out / "change.tif")
    valid = change != 255
    assert properties["misgnet:bundle_sha256"] == tags["MISGNET_BUNDLE_SHA256"]
    assert properties["misgnet:threshold"] == 0.25 and "above 0.25" in properties["processing:lineage"]
    assert properties["misgnet:valid_share"] == pytest.approx(valid.mean())
    assert properties["misgnet:changed_share"] == pytest.approx((change == 1).sum() / valid.sum())
    assert properties["misgnet:engine"] == tags["MISGNET_ENGINE"]
    assert list(properties["processing:software"]) == ["misgnet-export"]
    times = ("2023-06-01T10:20:31.500000Z", "2024-06-01T10:20:31Z")
    assert (properties["start_datetime"], properties["end_datetime"]) == times
    assert properties["datetime"] == times[1]
    band = item["assets"]["change"]["raster:bands"][0]
    assert (band["data_type"], band["nodata"]) == ("uint8", 255)
    assert band["statistics"]["valid_percent"] == pytest.approx(100 * valid.mean())


def test_the_item_states_the_place(place: Place) -> None:
    item = described(place)
    properties = item["properties"]
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32633", [H, W])
    assert properties["proj:transform"] == [0.5, 0, 399_984, 0, -0.5, 4_999_992]
    corners = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [399_984, 399_984 + W / 2], [4_999_992] * 2)
    ring = item["geometry"]["coordinates"][0]
    for longitude, latitude in zip(*corners, strict=True):
        assert min(abs(longitude - x) + abs(latitude - y) for x, y in ring) < 1e-6
    assert item["bbox"] == [pytest.approx(value) for value in (
        min(x for x, _ in ring), min(y for _, y in ring), max(x for x, _ in ring), max(y for _, y in ring)
    )]  # fmt: skip
    assert sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) > 0  # counterclockwise


def test_equal_runs_write_equal_items(place: Place) -> None:
    options: dict[str, Any] = {"vector": place.out / "v.gpkg", "quicklook": place.out / "look.png"}
    first = described(place, **options)
    time.sleep(1.1)  # a GeoPackage records the time
    assert described(place, **options, force=True) == first
    assert not any(key in first["properties"] for key in ("created", "updated"))


def test_files_without_items_are_linked_themselves(place: Place) -> None:
    for name, pixels in (("a", BEFORE), ("b", AFTER)):
        path = write_raster(place.root / f"{name}.tif", pixels)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME="2024:05:01 10:20:31")
    place.options = SceneOptions(both=Declared(scale=(0.0001,)))
    place.run(place.root / "a.tif", place.root / "b.tif", stac_item=place.out / "change.json")
    links = [(link["href"], link["type"]) for link in place.item()["links"]]
    assert links == [(f"../{name}.tif", "image/tiff; application=geotiff") for name in "ab"]


def test_an_unknown_time_or_place_is_refused_before_the_run(place: Place) -> None:
    plain = {"crs": None, "transform": rasterio.Affine.identity()}
    pair = [write_raster(place.root / f"{name}.tif", AFTER) for name in "ab"]
    place.options = SceneOptions(both=Declared(scale=(0.0001,)))
    with pytest.raises(InputError, match=r"acquisition time of AFTER, and .*b.tif does not state it.*TIFFTAG_DATETIME"):
        place.run(*pair, stac_item=place.out / "change.json")
    pair = [write_raster(place.root / f"{name}.tif", AFTER, **plain) for name in "ab"]
    with pytest.raises(InputError, match="requires georeferenced rasters"):
        place.run(*pair, stac_item=place.out / "change.json")
    assert not place.out.exists() or not list(place.out.iterdir())


def test_pystac_is_required(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pystac", None)
    with pytest.raises(UnavailableError, match=r"pip install 'misgnet-export\[stac\]'"):
        described(place)


ACROSS = (179.8129, 8.1233, -179.0905, 9.0357)  # the antimeridian


@pytest.mark.parametrize(
    ("crs", "transform", "kind", "bbox"),
    [
        ("EPSG:4326", from_origin(10, 50, 0.001, 0.001), "Polygon", (10, 49, 11.2, 50)),
        ("EPSG:32660", from_origin(810_000, 1_000_000, 100, 100), "MultiPolygon", ACROSS),
        ("EPSG:32660", from_origin(810_000, 900_000, 100, -100), "MultiPolygon", ACROSS),
    ],
)  # fmt: skip
def test_footprints(crs: str, transform: Any, kind: str, bbox: tuple[float, ...]) -> None:
    grid = Grid(1000, 1200, rasterio.crs.CRS.from_string(crs), transform)
    found = footprint(load_rasterio("a test"), grid)
    assert found.geometry["type"] == kind and found.bbox == pytest.approx(bbox, abs=1e-3)


def _tags(path: Path) -> dict[str, str]:
    with rasterio.open(path) as dataset:
        return dict(dataset.tags())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stopped(place: Place) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    predict_scene_files(
        place.bundle, place.before, place.after, place.out / "change.tif",
        replace(place.options, execution=ExecutionOptions(batch=4)), opener=FAKE, progress=stop,
    )  # fmt: skip

"""Tests STAC Items as dates: chosen assets, what the item states, contradictions, and addresses that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.enums import ColorInterp

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.limits import STAC_ITEM_BYTES
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.reader import open_raster
from misgnet_runtime.raster.remote import RemoteOptions
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.source import LocalFile
from misgnet_runtime.raster.stac.date import ItemDate
from misgnet_runtime.raster.stac.item import parse_item
from misgnet_runtime.raster.stac.locate import is_item, locate_dates, locate_item
from misgnet_runtime.raster.statistics import find_scaling
from support.scenes import write_raster
from support.stac import COLOURS, GEOTIFF, asset, item_json, single_band_assets, three_bands, write_item

OFFLINE, REMOTE = RemoteOptions(), RemoteOptions(remote=True)
PIXELS = np.random.default_rng(0).integers(1000, 9000, (3, 40, 50)).astype(np.uint16)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with three bands together, and each of them in its own file."""
    write_raster(tmp_path / "rgb.tif", PIXELS)
    for colour, band in zip(COLOURS, PIXELS, strict=True):
        write_raster(tmp_path / f"{colour}.tif", band[None])
    return tmp_path


def located(folder: Path, assets: dict[str, Any], *wanted: str, **properties: Any) -> ItemDate:
    return locate_item(str(write_item(folder / "item.json", assets, **properties)), wanted or None, OFFLINE)


def scaling(date: ItemDate, declared: Declared | None = None) -> Scaling:
    with open_raster(date, "before") as raster:
        return find_scaling(raster, declared or Declared())


# --- what is taken from an item


def test_scale_offset_and_bands_of_one_asset_come_from_the_item(files: Path) -> None:
    whole = {"nodata": 0, "data_type": "uint16", "raster:scale": 0.0001, "raster:offset": -0.1}
    for assets in (
        {"data": three_bands("rgb.tif", **whole)},
        {"data": {**asset("rgb.tif"), "eo:bands": [{"common_name": colour} for colour in COLOURS],
                  "raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}] * 3}},
    ):  # fmt: skip
        date = located(files, assets)
        with open_raster(date, "before") as raster:
            assert raster.colours == COLOURS and raster.nodata((1, 2)) == (0, 0)
            found = find_scaling(raster, Declared())
        assert (found.bands, found.scale, found.offset) == ((1, 2, 3), (0.0001,) * 3, (-0.1,) * 3)
        assert found.source == "from the STAC Item"


def test_the_items_names_order_the_bands(files: Path) -> None:
    bands = [{"eo:common_name": colour, "raster:scale": 0.0001} for colour in reversed(COLOURS)]
    assert scaling(located(files, {"data": {**asset("rgb.tif"), "bands": bands}})).bands == (3, 2, 1)


def test_several_assets_are_bands_in_the_order_that_was_asked_for(files: Path) -> None:
    date = located(files, single_band_assets(), "blue", "green", "red")
    with open_raster(date, "before") as raster:
        assert raster.colours == ("blue", "green", "red")
        assert find_scaling(raster, Declared()).bands == (1, 2, 3)


def test_declared_options_win_over_the_item(files: Path) -> None:
    date = located(files, single_band_assets(), *COLOURS)
    found = scaling(date, Declared(scale=(0.001,), bands=(3, 2, 1)))
    assert (found.bands, found.scale, found.source) == ((3, 2, 1), (0.001,) * 3, "declared")


def test_a_scale_of_one_is_not_a_declaration(files: Path) -> None:
    date = located(files, single_band_assets(scale=1, offset=0), *COLOURS)
    with pytest.raises(InputError, match="its conversion to brightness is not declared"):
        scaling(date)


def test_all_bands_need_a_scale_if_one_has_it(files: Path) -> None:
    assets = single_band_assets(scale=0.0001) | {"green": asset("green.tif", "green")}
    with pytest.raises(InputError, match="not all are scaled"):
        scaling(located(files, assets, *COLOURS))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"time": "2023-06-01T10:20:31.024Z"}, "2023-06-01T10:20:31.024000+00:00"),
        ({"time": "2023-06-01T10:20:31.0241234+02:00"}, "2023-06-01T10:20:31.024123+02:00"),
        ({"time": None, "start_datetime": "2023-06-01T00:00:00Z"}, "2023-06-01T00:00:00+00:00"),
    ],
)
def test_acquisition_time_is_the_items(files: Path, times: dict[str, Any], expected: str) -> None:
    found = located(files, {"data": three_bands("rgb.tif")}, **times).acquired
    assert found is not None and found.isoformat() == expected


def test_the_only_geotiff_of_pixel_data_is_taken(files: Path) -> None:
    assets = {
        "thumbnail": {**asset("rgb.tif"), "roles": ["thumbnail"]}, "metadata": {"href": "a.xml", "type": "text/xml"},
        "image": {"href": "rgb.tif"},
    }  # fmt: skip
    date = located(files, assets)
    assert [file.key for file in date.files] == ["image"] and date.files[0].path == files / "rgb.tif"


def test_identity_covers_item_and_files(files: Path) -> None:
    date = located(files, single_band_assets(), *COLOURS)
    state, identity = date.state(), date.identity()
    date.check_unchanged(state, identity)
    assert identity.tag == "STAC_ITEM" and identity.value.count("sha256") == 4
    write_raster(files / "green.tif", PIXELS[:1])
    with pytest.raises(InputError, match="was changed"):
        date.check_unchanged(state, identity)
    write_item(files / "item.json", single_band_assets(), "2024-01-01T00:00:00Z")
    with pytest.raises(InputError, match="was changed"):
        date.require()
    assert date.identity() != identity


# --- errors


def test_an_item_with_several_geotiffs_lists_them(files: Path) -> None:
    with pytest.raises(InputError, match=r"3 GeoTIFF assets .*--assets red,green,blue; .*: red \(red\), green"):
        located(files, single_band_assets())
    with pytest.raises(InputError, match=r"no asset 'nir'; .* red \(red\), green \(green\)"):
        located(files, single_band_assets(), "red", "nir")
    with pytest.raises(InputError, match="is image/jp2, and only GeoTIFFs are read"):
        located(files, {"red": {"href": "red.jp2", "type": "image/jp2"}}, "red")


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"data_type": "int16"}, ("states int16", "contains uint16")),
        ({"nodata": -1}, ("states nodata -1", "which no uint16 can be")),
        ({"nodata": 70_000}, ("states nodata 70000",)),
        ({"scale": 0.01, "unit": "W/m2"}, ("states values in W/m2", "declare --scale")),
    ],
)
def test_statements_that_the_file_contradicts(files: Path, stated: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        scaling(located(files, single_band_assets(**stated), *COLOURS))
    assert all(word in str(error.value) for word in (*words, "asset 'red'"))


def test_file_and_item_that_state_different_values(files: Path) -> None:
    write_raster(files / "rgb.tif", PIXELS, nodata=7, colours=[ColorInterp[c] for c in reversed(COLOURS)])
    with pytest.raises(InputError, match=r"states nodata 0, but .*rgb.tif states 7"):
        scaling(located(files, {"data": three_bands("rgb.tif", nodata=0)}))
    date = located(files, {"data": three_bands("rgb.tif", **{"raster:scale": 0.0001})})
    with pytest.raises(InputError, match=r"band 1 is red according to .*, but blue according to .*rgb.tif.*--bands"):
        scaling(date)
    assert scaling(date, Declared(bands=(1, 2, 3))).bands == (1, 2, 3)
    with rasterio.open(files / "rgb.tif", "r+") as dataset:
        dataset.scales, dataset.colorinterp = (0.5,) * 3, [ColorInterp[colour] for colour in COLOURS]
    with pytest.raises(InputError, match=r"states scale 0.0001 and offset 0 for band 1, but .* states scale 0.5"):
        scaling(date)
    assert scaling(date, Declared(scale=(0.001,))).scale == (0.001,) * 3


def test_lists_of_bands_that_do_not_fit(files: Path) -> None:
    with pytest.raises(InputError, match=r"lists 2 bands, but .*rgb.tif has 3"):
        scaling(located(files, {"data": {**asset("rgb.tif"), "bands": [{}, {}]}}))
    with pytest.raises(InputError, match="lists 1 and 2 bands"):
        located(files, {"data": {**asset("rgb.tif"), "eo:bands": [{}, {}], "raster:bands": [{}]}})
    with pytest.raises(InputError, match=r"states 1.0 and 2.0 for one band"):
        located(files, {"data": {**asset("rgb.tif"), "bands": [{"nodata": 1}], "raster:bands": [{"nodata": 2}]}})


def test_assets_of_another_number_grid_or_type(files: Path) -> None:
    with pytest.raises(UsageError, match=r"--assets names 2 assets .* the network reads 3 bands"):
        scaling(located(files, single_band_assets(), "red", "green"))
    with pytest.raises(InputError, match=r"rgb.tif has 3 bands; give one asset with all bands"):
        scaling(located(files, {**single_band_assets(), "rgb": asset("rgb.tif")}, "red", "rgb"))
    write_raster(files / "green.tif", PIXELS[:1, :20])
    with pytest.raises(InputError, match=r"assets differ in size: .*red.tif is 50 x 40 px .*green.tif is 50 x 20 px"):
        scaling(located(files, single_band_assets(), *COLOURS))
    write_raster(files / "green.tif", PIXELS[:1].astype(np.float32))
    with pytest.raises(InputError, match=r"red.tif contains uint16, .*green.tif contains float32"):
        scaling(located(files, single_band_assets(scale=0.0001), *COLOURS))


@pytest.mark.parametrize(
    ("href", "words"),
    [
        ("https://example.org/a.tif", "may name only local paths"), ("file:///etc/a.tif", "may name only local paths"),
        ("s3://bucket/a.tif", "may name only local paths"),
        ("https://user:secret@example.org/a.tif?sig=secret", "is at https://example.org/a.tif, and"),
    ],
)  # fmt: skip
def test_a_local_item_names_only_local_files(files: Path, href: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        located(files, {"data": three_bands(href)})
    assert "secret" not in str(error.value)


def test_hrefs_of_a_local_item_are_relative_to_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "items").mkdir()
    for href in ("../rgb.tif", str(files / "rgb.tif")):
        date = located(files / "items", {"data": three_bands(href)})
        with open_raster(date, "before") as raster:
            assert raster.dataset.count == 3
    monkeypatch.chdir(files)
    write_item(Path("plain.json"), {"data": three_bands("rgb.tif")})
    locate_item("plain.json", None, OFFLINE).require()
    date = located(files, {"data": three_bands("/vsicurl/https://example.org/rgb.tif")})
    with pytest.raises(InputError, match="does not exist"):
        date.require()


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("./red.tif", "https://h.org/c/items/red.tif"), ("../red.tif?sig=1", "https://h.org/c/red.tif"),
        ("/red.tif", "https://h.org/red.tif"), ("https://other.org/red.tif", "https://other.org/red.tif"),
        ("HTTPS://other.org/red.tif", None), ("http://h.org/red.tif", "may name only https:// addresses"),
        ("s3://bucket/red.tif", "may name only https:// addresses"), ("file:///red.tif", "may name only https://"),
        ("file:/red.tif", "may name only https://"), ("https://user:pw@h.org/red.tif", "user name or a password"),
        ("https://", "not valid"),
    ],
)  # fmt: skip
def test_a_remote_item_names_only_addresses_of_its_scheme(
    monkeypatch: pytest.MonkeyPatch, href: str, expected: str | None
) -> None:
    text = item_json({"red": asset(href, "red")})
    monkeypatch.setattr("misgnet_runtime.raster.stac.locate.read_document", lambda *_: text)
    item = "https://h.org/c/items/scene?token=1"
    if expected is not None and not expected.startswith("https"):
        with pytest.raises(InputError, match=expected) as error:
            locate_item(item, None, REMOTE)
        assert "pw" not in str(error.value)
        return
    date = locate_item(item, None, REMOTE)
    assert expected is None or str(date.files[0]) == expected
    assert str(date) == "https://h.org/c/items/scene (asset red)" and date.paths == ()


def test_an_address_needs_the_option_remote() -> None:
    with pytest.raises(UsageError, match="--remote"):
        locate_item("https://h.org/c/items/scene", None, OFFLINE)


def test_which_texts_are_items() -> None:
    yes = ("a/item.json", "ITEM.GEOJSON", "https://h.org/x/item.json?sig=a.tif",
           "https://h.org/v1/collections/s2/items/S2A_1", "s3://bucket/a/item.json")  # fmt: skip
    no = ("a.tif", "items/a", "https://h.org/items/a.tif", "https://h.org/a.tif?x=.json", "s3://bucket/a.tif")
    assert all(map(is_item, yes)) and not any(map(is_item, no))


def test_assets_are_chosen_of_items_only(files: Path) -> None:
    item = write_item(files / "item.json", single_band_assets())
    plain, some = files / "rgb.tif", Declared(assets=COLOURS, shared=frozenset({"assets"}))
    dates = locate_dates([item, plain], [some, some], OFFLINE)
    assert isinstance(dates[0], ItemDate) and dates[1] == LocalFile(plain)
    assert locate_dates(dates, [some, some], OFFLINE) == dates
    with pytest.raises(UsageError, match="no date is one"):
        locate_dates([plain, str(plain)], [some, some], OFFLINE)
    with pytest.raises(UsageError, match=r"assets red,green,blue are chosen, but .*rgb.tif is not a STAC Item"):
        locate_dates([item, plain], [some, Declared(assets=COLOURS)], OFFLINE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "is not a valid STAC Item"), (b'{"type":"Collection"}', "is not a valid STAC Item"),
        (b"{" * 200_000, "is not a valid STAC Item"), (item_json({"a": {"href": 1}}), "Expected `str`"),
        (item_json({"a": asset("a\nb.tif")}), "is not a valid STAC Item"),
        (item_json({"a": asset("a.tif", nodata="none")}), "is not a valid STAC Item"),
        (item_json({}, "June 2023"), "has an invalid datetime"),
        (item_json({str(n): asset("a.tif") for n in range(513)}), "length <= 512"),
        (item_json({"a": asset("x" * 4_097)}), "is not a valid STAC Item"),
        (b" " * (STAC_ITEM_BYTES + 1), "more than 1 MiB"),
    ],
)  # fmt: skip
def test_invalid_items(content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_item(content, "item.json")


def test_other_fields_of_any_kind_are_ignored() -> None:
    item = json.loads(item_json({"a": {**asset("a.tif"), "title": 5, "proj:shape": {}}}))
    parsed = parse_item(json.dumps({**item, "links": 3, "bbox": "x", "more": [{}]}).encode(), "item.json")
    assert parsed.assets["a"].href == "a.tif" and parsed.assets["a"].type == GEOTIFF


def test_a_missing_item(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"STAC Item .*x.json does not exist"):
        locate_item(str(tmp_path / "x.json"), None, OFFLINE)

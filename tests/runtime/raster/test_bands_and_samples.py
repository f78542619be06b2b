"""Tests of images and tiles of other formats than 8-bit RGB: 1 to 16 bands, 8 or 16 bits, with and without labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

rasterio = pytest.importorskip("rasterio", reason="images of several bands need the [geo] extra")

from misgnet_runtime.errors import InputError
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.raster.display import displayed
from misgnet_runtime.raster.images import image_size, read_image, read_pair
from support.scenes import random_bands, write_raster

GREY8, GREY16 = PixelFormat(1, "uint8", (9,)), PixelFormat(1, "uint16", (9,))
FOUR16, THIRTEEN16 = PixelFormat(4, "uint16", (9,) * 4), PixelFormat(13, "uint16", (9,) * 13)
PLAIN: dict[str, Any] = {"crs": None, "transform": None}  # a TIFF that is not georeferenced


def save(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_set(root: Path, pixels: PixelFormat, *, labelled: bool = True) -> Path:
    for seed, date in enumerate(("A", "B")):
        write_raster(root / date / "x.tif", random_bands(pixels, 40, 50, seed), **PLAIN)
    if labelled:
        save(root / "label/x.png", random_bands(GREY8, 40, 50, 2)[0] // 128 * np.uint8(255))
    return root


@pytest.mark.parametrize("pixels", [GREY8, GREY16, FOUR16, THIRTEEN16, PixelFormat(3, "uint16", (9,) * 3)], ids=str)
@pytest.mark.parametrize("options", [{}, PLAIN], ids=["GeoTIFF", "TIFF"])
def test_tiffs_are_read_as_they_are(tmp_path: Path, pixels: PixelFormat, options: dict[str, Any]) -> None:
    dates = [random_bands(pixels, 30, 41, seed) for seed in (0, 1)]
    paths = [write_raster(tmp_path / f"{i}.tif", date, **options) for i, date in enumerate(dates)]
    for found, date in zip(read_pair(*paths, pixels), dates, strict=True):
        assert found.dtype == pixels.samples
        assert np.array_equal(found, np.moveaxis(date, 0, 2))
    assert image_size(paths[0], pixels) == (30, 41)


@pytest.mark.parametrize("pixels", [GREY8, GREY16], ids=str)
def test_a_png_of_one_band_is_read(tmp_path: Path, pixels: PixelFormat) -> None:
    values = random_bands(pixels, 20, 30)
    found = read_image(save(tmp_path / "x.png", values[0]), pixels)
    assert found.dtype == pixels.samples
    assert np.array_equal(found, np.moveaxis(values, 0, 2))


@pytest.mark.parametrize(
    ("written", "wanted", "words"),
    [
        (FOUR16, PixelFormat(4, "uint8", (9,) * 4), ("uint16", "4 bands of uint8", "gdal_translate -ot Byte")),
        (GREY8, GREY16, ("uint8", "1 band of uint16", "gdal_translate -ot UInt16", "65535")),
        (THIRTEEN16, FOUR16, ("13 bands", "reads 4 bands of uint16", "gdal_translate -b 1 -b 2")),
        (FOUR16, RGB8, ("uint16", "8-bit RGB", "gdal_translate -ot Byte")),
    ],
)
def test_tiffs_of_another_format_are_refused(
    tmp_path: Path, written: PixelFormat, wanted: PixelFormat, words: tuple[str, ...]
) -> None:
    path = write_raster(tmp_path / "x.tif", random_bands(written, 9, 9))
    with pytest.raises(InputError) as caught:
        read_image(path, wanted)
    assert all(word in str(caught.value) for word in (*words, str(path)))


@pytest.mark.parametrize(
    ("name", "values", "pixels", "words"),
    [
        ("x.png", np.zeros((9, 9, 3), np.uint8), FOUR16, ("cannot hold 4 bands of uint16", "GeoTIFF")),
        ("x.jpg", np.zeros((9, 9, 3), np.uint8), GREY8, ("of mode RGB", "1 band of uint8")),
        ("x.png", np.zeros((9, 9), np.uint16), GREY8, ("16-bit grey", "reads 1 band of uint8")),
        ("x.png", np.zeros((9, 9), np.uint8), GREY16, ("8-bit grey", "reads 1 band of uint16")),
    ],
)
def test_pictures_of_another_format_are_refused(
    tmp_path: Path, name: str, values: NDArray[Any], pixels: PixelFormat, words: tuple[str, ...]
) -> None:
    path = save(tmp_path / name, values)
    with pytest.raises(InputError) as caught:
        read_image(path, pixels)
    assert all(word in str(caught.value) for word in (*words, str(path)))


def test_a_date_with_nodata_is_refused_as_an_image(tmp_path: Path) -> None:
    values = random_bands(FOUR16, 9, 9)
    values[:, 2, 3] = 0
    with pytest.raises(InputError, match="nodata; this command needs 4 bands of uint16"):
        read_image(write_raster(tmp_path / "x.tif", values, nodata=0), FOUR16)


def test_tiles_have_the_formats_bands_and_samples(tmp_path: Path) -> None:
    root = write_set(tmp_path, FOUR16)
    tiles = TileSet.open(root, 32, FOUR16)
    whole = np.moveaxis(random_bands(FOUR16, 40, 50, 1), 0, 2)
    joined = np.zeros_like(whole)
    for tile in tiles.tiles():
        assert tile.before.shape == (32, 32, 4)
        joined[tile.ref.cell.owned_in_image()] = tile.after[tile.owned]
    assert np.array_equal(joined, whole)
    assert tiles.labelled


def test_a_set_without_labels_is_read_only_if_allowed(tmp_path: Path) -> None:
    root = write_set(tmp_path, FOUR16, labelled=False)
    with pytest.raises(InputError, match="label does not exist"):
        TileSet.open(root, 32, FOUR16)
    tiles = TileSet.open(root, 32, FOUR16, labels="optional")
    assert not tiles.labelled
    assert not any(tile.label.any() for tile in tiles.tiles())
    assert next(tiles.tiles()).label.shape == (32, 32)


def test_the_digest_of_an_unlabelled_set_depends_on_its_images(tmp_path: Path) -> None:
    root = write_set(tmp_path / "labelled", FOUR16)
    digests = {TileSet.open(root, 32, FOUR16).digest()}
    shutil.rmtree(root / "label")
    digests.add(TileSet.open(root, 32, FOUR16, labels="optional").digest())
    assert digests == digests | {TileSet.open(root, 32, FOUR16, labels="optional").digest()}
    write_raster(root / "A/x.tif", random_bands(FOUR16, 40, 50, 7), **PLAIN)
    digests.add(TileSet.open(root, 32, FOUR16, labels="optional").digest())
    assert len(digests) == 3


def test_a_label_without_partner_is_refused_also_if_labels_are_optional(tmp_path: Path) -> None:
    root = write_set(tmp_path, FOUR16)
    for date in ("A", "B"):
        shutil.copy(root / date / "x.tif", root / date / "y.tif")
    with pytest.raises(InputError, match="no partner"):
        TileSet.open(root, 32, FOUR16, labels="optional")


# --- pictures


def test_8_bit_images_are_displayed_as_they_are() -> None:
    four = np.moveaxis(random_bands(PixelFormat(4, "uint8", (9,) * 4), 8, 9), 0, 2)
    assert np.array_equal(displayed(four, four)[1], four[..., :3])
    grey = np.moveaxis(random_bands(GREY8, 8, 9), 0, 2)
    assert np.array_equal(displayed(grey, grey)[0], np.repeat(grey, 3, axis=2))


def test_16_bit_dates_are_stretched_alike() -> None:
    before = np.linspace(1000, 3000, 400, dtype=np.uint16).reshape(20, 20, 1)
    first, second = displayed(before, before + np.uint16(2000))
    assert first.dtype == second.dtype == np.uint8
    assert first.min() == 0 and second.max() == 255
    assert first.max() <= second.min() + 1  # a brighter date stays brighter


def test_only_valid_pixels_are_stretched() -> None:
    before = np.full((10, 10, 1), 1000, np.uint16)
    before[5:] = 1100
    before[0] = 65535
    valid = np.ones((10, 10), np.bool_)
    valid[0] = False
    shown, _ = displayed(before, before, valid)
    assert shown[3, 3].max() == 0 and shown[7, 7].min() == 255
    assert displayed(before, before, np.zeros_like(valid))[0].shape == (10, 10, 3)

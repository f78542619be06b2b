"""Tests of reading scenes: scaling to 8-bit RGB, nodata, grids, damaged files and offsets between dates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.options import make
from misgnet_runtime.pixels import RGB8
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.reader import Pixels, open_pair
from misgnet_runtime.raster.statistics import find_scaling, phase_shift, residual_shift, spread
from misgnet_runtime.raster.tiling import Span
from support.scenes import scene, write_raster

H, W = 90, 140
BEFORE, AFTER = scene(H, W)
RED_OF_RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def read(
    folder: Path, before: NDArray[Any] = BEFORE, after: NDArray[Any] = AFTER, *, declared: Declared | None = None,
    align: bool = False, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None,
) -> Pixels:  # fmt: skip
    """Writes a pair and reads all its pixels."""
    paths = write_raster(folder / "b.tif", before, **first or {}), write_raster(folder / "a.tif", after, **second or {})
    return read_files(*paths, declared=declared, align=align)


def read_files(before: Path, after: Path, *, declared: Declared | None = None, align: bool = False) -> Pixels:
    declared = declared or Declared()
    with open_pair(before, after, align=align) as pair:
        scalings = find_scaling(pair.before, declared), find_scaling(pair.after, declared)
        return pair.read(scalings, Span(0, pair.grid.height), Span(0, pair.grid.width))


def refused(kind: type[MisgnetError], *words: str, **how: Any) -> None:
    with pytest.raises(kind) as caught:
        read(**how)
    for word in words:
        assert word in str(caught.value)


# --- scaling


def test_8_bit_values_are_unchanged(tmp_path: Path) -> None:
    pixels = read(tmp_path)
    assert np.array_equal(pixels.before, np.moveaxis(BEFORE, 0, 2))
    assert np.array_equal(pixels.after, np.moveaxis(AFTER, 0, 2))
    assert pixels.valid.all() and not pixels.unreadable


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_a_declared_scaling_is_applied_to_every_type(tmp_path: Path, dtype: str) -> None:
    before, after = (image.astype(dtype) * 10 + 7 for image in (BEFORE, AFTER))
    declared = make(Declared, {"scale": "0.000392156862745", "offset": "-0.00274509803922"})  # 1 / 2550, -7 / 2550
    pixels = read(tmp_path, before, after, declared=declared)
    assert np.array_equal(pixels.before, np.moveaxis(BEFORE, 0, 2))
    assert np.array_equal(pixels.after, np.moveaxis(AFTER, 0, 2))


def test_values_beyond_black_and_white_are_clipped(tmp_path: Path) -> None:
    before = np.linspace(-1e30, 1e30, 3 * H * W, dtype=np.float32).reshape(3, H, W)
    pixels = read(tmp_path, before, before, declared=Declared(scale=(1.0,)))
    assert set(np.unique(pixels.before)) <= {0, 255}


def test_bands_are_read_in_the_declared_order(tmp_path: Path) -> None:
    four = [np.concatenate([image[::-1], image[:1]]) for image in (BEFORE, AFTER)]
    pixels = read(tmp_path, *four, declared=make(Declared, {"bands": "3,2,1"}))
    assert np.array_equal(pixels.after, np.moveaxis(AFTER, 0, 2))


def test_percentiles_become_black_and_white(tmp_path: Path) -> None:
    before, after = BEFORE.astype(np.int16) * 20, AFTER.astype(np.int16) * 20
    before[:, :, :30] = -32768
    options = {"nodata": -32768}
    pixels = read(tmp_path, before, after, declared=Declared(stretch=(2.0, 98.0)), first=options, second=options)
    low, high = np.percentile(before[0, :, 30:], (2, 98))
    expected = np.rint(np.clip((before[0, :, 30:] - low) / (high - low), 0, 1) * 255)
    # 8 x 8 windows of 128 px cover this small scene except for a strip at its right edge
    assert np.abs(pixels.before[:, 30:, 0] - expected).max() <= 8


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"before": BEFORE.astype(np.uint16)}, InputError, ("contains uint16", "--scale", "--stretch 2,98")),
        ({"before": BEFORE[:1]}, InputError, ("has 1 band,", "not a label", "--bands 1,1,1")),
        (
            {"before": np.concatenate([BEFORE, BEFORE]).astype(np.uint16)},
            InputError,
            ("has 6 bands; specify", "--bands 3,2,1", "; it also contains uint16", "--stretch 2,98"),
        ),
        ({"before": np.concatenate([BEFORE, BEFORE])}, InputError, ("has 6 bands", "--before-bands")),
        ({"declared": Declared(bands=(1, 2, 9))}, UsageError, ("band 9 was requested", "has 3 bands")),
        ({"before": BEFORE * 0, "declared": Declared(stretch=(2.0, 98.0))}, InputError, ("band 1", "has 0 at")),
        ({"before": BEFORE.astype(np.complex64)}, InputError, ("contains complex64", "real numbers")),
    ],
)
def test_undeclared_bands_and_scalings_are_refused(
    tmp_path: Path, how: dict[str, Any], kind: type[MisgnetError], words: tuple[str]
) -> None:
    refused(kind, *words, folder=tmp_path, **how)


def test_a_stretch_of_a_raster_without_data_is_refused(tmp_path: Path) -> None:
    empty = {"before": np.zeros_like(BEFORE), "first": {"nodata": 0}}
    refused(
        InputError,
        "has no data at the sampled windows",
        folder=tmp_path,
        declared=Declared(stretch=(1.0, 9.0)),
        **empty,
    )


def test_options_of_one_date_override_the_common_ones() -> None:
    common = make(Declared, {"bands": "3,2,1", "scale": "0.1", "offset": "1"})
    assert Declared().over(common) == common
    assert make(Declared, {"offset": "2"}).over(common) == Declared(bands=(3, 2, 1), scale=(0.1,), offset=(2,))
    assert make(Declared, {"stretch": "2,98"}).over(common) == Declared(bands=(3, 2, 1), stretch=(2, 98))
    assert Declared(scale=(2.0,)).over(Declared(stretch=(1, 2))) == Declared(scale=(2.0,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"bands": "1,x"}, "--before-bands is '1,x'; expected 1 to 16 numbers"),
        ({"bands": "0,1,2"}, "counted from 1"),
        ({"bands": "1.5,1,2"}, "counted from 1"),
        ({"scale": "x"}, "--before-scale is 'x'; expected 1 to 16 numbers, for example 0.0001"),
        ({"scale": "nan"}, "--before-scale is 'nan'"),
        ({"offset": ","}, "--before-offset"),
        ({"stretch": "98,2"}, "the lower one first"),
        ({"scale": "1", "stretch": "2,98"}, "--before-stretch determines scale and offset itself"),
    ],
)
def test_invalid_values_of_options_are_refused(words: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(SceneOptions, {f"before_{name}": text for name, text in words.items()}).check(Path("x.tif"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SceneOptions(vector=Path("x.shp")), "--vector is x.shp; choose a name that ends in .gpkg or .geojson or .fgb"),
        (SceneOptions(probability=Path("out.tif")), "two outputs have the same name"),
        (SceneOptions(execution=ExecutionOptions(batch=0)), "--batch is 0"),
        (SceneOptions(min_area=float("nan")), "--min-area is nan"),
    ],
)
def test_invalid_options_are_refused(options: SceneOptions, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options.check(Path("out.tif"))
    assert message in str(caught.value)


# --- nodata


def nodata_area() -> NDArray[np.bool_]:
    area = np.zeros((H, W), np.bool_)
    area[20:60, 30:100] = True
    return area


def masked(image: NDArray[Any], value: float) -> NDArray[Any]:
    return np.where(nodata_area(), np.array(value, image.dtype), image)


REAL = Declared(scale=(1 / 255,))
ALPHA = np.full((1, H, W), 77, np.uint8)
MISSING: dict[str, dict[str, Any]] = {
    "nodata": {"before": masked(BEFORE, 9), "first": {"nodata": 9}},
    "nodata of the second": {"after": masked(AFTER, 9), "second": {"nodata": 9}},
    "nodata in one band of floats": {
        "before": np.concatenate([BEFORE[:2].astype(np.float32), masked(BEFORE[2:].astype(np.float32), -1)]),
        "first": {"nodata": -1}, "declared": REAL,
    },
    "NaN": {"after": masked(AFTER.astype(np.float32), np.nan), "declared": REAL},
    "NaN as nodata": {
        "after": masked(AFTER.astype(np.float32), np.nan), "second": {"nodata": np.nan}, "declared": REAL,
    },
    "Inf": {"after": masked(AFTER.astype(np.float32), -np.inf), "declared": REAL},
    "alpha": {"before": np.concatenate([BEFORE, masked(ALPHA, 0)]), "first": {"colours": RED_OF_RGBA}},
    "mask": {"before": BEFORE, "first": {"mask": ~nodata_area()}},
}  # fmt: skip


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("case", MISSING)
def test_nodata_of_either_date_is_neutral_in_both(tmp_path: Path, case: str, align: bool) -> None:
    pixels = read(tmp_path, align=align, **MISSING[case])
    assert np.array_equal(pixels.valid, ~nodata_area())
    for image, stored in ((pixels.before, BEFORE), (pixels.after, AFTER)):
        assert (image[nodata_area()] == RGB8.neutral).all()
        assert np.array_equal(image[~nodata_area()], np.moveaxis(stored, 0, 2)[~nodata_area()])


def test_the_nodata_value_in_one_8_bit_band_is_a_colour(tmp_path: Path) -> None:
    before = BEFORE.copy()
    before[0] = 0
    assert read(tmp_path, before, first={"nodata": 0}).valid.all()


# --- grids


MOVED = from_origin(399_984.5, 4_999_992, 0.5, 0.5)
GRIDS: dict[str, tuple[dict[str, Any], str]] = {
    "swapped": ({"after": AFTER.transpose(0, 2, 1)}, f"differ in size: before is {W} x {H} px"),
    "crs": ({"second": {"crs": "EPSG:32634"}}, "different coordinate systems"),
    "offset": ({"second": {"transform": MOVED}}, "offset by half a pixel or more"),
    "resolution": ({"second": {"transform": from_origin(399_984, 4_999_992, 0.51, 0.51)}}, "from (399984, 4999992)"),
    "not georeferenced": ({"second": {"crs": None, "transform": None}}, "are not both georeferenced"),
}


@pytest.mark.parametrize("case", GRIDS)
def test_different_grids_are_refused_and_both_are_shown(tmp_path: Path, case: str) -> None:
    how, words = GRIDS[case]
    refused(InputError, words, "before is", "after is", folder=tmp_path, **how)


def test_two_rasters_that_are_not_georeferenced_have_the_same_grid(tmp_path: Path) -> None:
    options = {"crs": None, "transform": None}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        assert read(tmp_path, first=options, second=options).valid.all()


def test_align_warps_after_onto_the_grid_of_before(tmp_path: Path) -> None:
    after = np.full_like(AFTER, 0)
    after[:, 10:50, 20:60] = 200
    pixels = read(tmp_path, after=after, align=True, second={"transform": from_origin(399_994, 4_999_987, 0.5, 0.5)})
    assert (pixels.after[22:58, 42:78] == 200).all()  # 20 px to the right, 10 down
    assert not pixels.valid[:10].any() and not pixels.valid[:, :20].any() and pixels.valid[10:, 20:].all()


def test_align_requires_an_overlap(tmp_path: Path) -> None:
    for options, words in (({"transform": from_origin(900_000, 4_999_992, 0.5, 0.5)}, "do not overlap"),
                         ({"crs": None, "transform": None}, "requires two georeferenced rasters")):  # fmt: skip
        refused(InputError, words, folder=tmp_path, align=True, second=options)


# --- damaged and disguised files


def test_a_vrt_under_a_rasters_name_is_refused(tmp_path: Path) -> None:
    real = write_raster(tmp_path / "real.tif", BEFORE)
    band = "".join(
        f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename>{real}</SourceFilename>'
        f"<SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
        for b in (1, 2, 3)
    )
    (tmp_path / "fake.tif").write_text(f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}">{band}</VRTDataset>')
    with pytest.raises(InputError, match=r"fake\.tif cannot be opened as a GeoTIFF"):
        read_files(real, tmp_path / "fake.tif")


def test_truncated_blocks_are_unreadable(tmp_path: Path) -> None:
    before = write_raster(tmp_path / "b.tif", BEFORE)
    after = write_raster(tmp_path / "a.tif", AFTER, compress="none")
    size = 32 * 32 * 3
    after.write_bytes(after.read_bytes()[: -2 * size])  # the last two blocks of the last row
    pixels = read_files(before, after)
    assert pixels.unreadable == {("after", 64, 96, 26, 32), ("after", 64, 128, 26, 12)}
    lost = np.zeros((H, W), np.bool_)
    lost[64:, 96:] = True
    assert np.array_equal(pixels.valid, ~lost)
    assert np.array_equal(pixels.after[~lost], np.moveaxis(AFTER, 0, 2)[~lost])


@pytest.mark.parametrize("content", [b"", b"II*\0", b"not a raster"])
def test_files_that_are_not_rasters_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.tif cannot be opened"):
        read_files(tmp_path / "x.tif", tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"gone\.tif does not exist"):
        read_files(tmp_path / "gone.tif", tmp_path / "x.tif")


# --- statistics before a run


def test_windows_are_spread_over_the_scene() -> None:
    windows = spread(1000, 300, 3, 256)
    assert [(r.start, c.start) for r, c in windows] == [(0, 0), (372, 0), (744, 0)]
    assert spread(20, 10, 3, 256) == [(Span(0, 20), Span(0, 10))]


def texture(seed: int) -> NDArray[np.uint8]:
    """Returns smooth blobs of a few pixels, uint8 (600, 600, 3)."""
    noise = np.random.default_rng(seed).random((600, 600))
    for axis in (0, 1):
        noise = sum(np.roll(noise, shift, axis) for shift in range(-3, 4))
    scaled = (noise - noise.min()) / (noise.max() - noise.min())
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-20, 11)])
def test_an_offset_between_dates_is_found(tmp_path: Path, shift: tuple[int, int]) -> None:
    image = texture(1)
    moved = np.roll(image, shift, (0, 1))
    assert phase_shift(image[:256, :256], moved[:256, :256])[:2] == shift
    paths = (write_raster(tmp_path / f"{i}.tif", np.moveaxis(part, 2, 0)) for i, part in enumerate((image, moved)))
    with open_pair(*paths, align=False) as pair:
        scalings = find_scaling(pair.before, Declared()), find_scaling(pair.after, Declared())
        assert residual_shift(pair, scalings) == shift


def test_images_of_different_areas_have_no_offset(tmp_path: Path) -> None:
    paths = (write_raster(tmp_path / f"{i}.tif", np.moveaxis(texture(i), 2, 0)) for i in (1, 2))
    with open_pair(*paths, align=False) as pair:
        scalings = find_scaling(pair.before, Declared()), find_scaling(pair.after, Declared())
        assert residual_shift(pair, scalings) is None

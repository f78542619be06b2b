"""Tests of the offset between two dates: exact to a fraction of a pixel, robust, and refused where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
ndimage = pytest.importorskip("scipy.ndimage", reason="registration needs the [register] extra")
pytest.importorskip("skimage", reason="registration needs the [register] extra")

from rasterio.transform import from_origin

from misgnet_runtime.errors import InputError
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.reader import move_after, open_pair
from misgnet_runtime.raster.registration import Registration, estimate_offset
from misgnet_runtime.raster.statistics import find_scaling
from misgnet_runtime.raster.tiling import Span
from support.bundles import FORMATS
from support.ground import ground, pair_of
from support.scenes import PLACE, write_raster

PLAIN: dict[str, Any] = {"crs": None, "transform": None}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def register(
    folder: Path, before: NDArray[Any], after: NDArray[Any], *, align: bool = False, pixels: PixelFormat = RGB8,
    first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, within: tuple[Span, Span] | None = None,
) -> tuple[Registration, NDArray[Any], NDArray[np.bool_]]:  # fmt: skip
    """Returns the offset, AFTER's pixels after registration, (h, w, C), and which of them have data."""
    paths = write_raster(folder / "b.tif", before, **first or {}), write_raster(folder / "a.tif", after, **second or {})
    with open_pair(*paths, align=align, pixels=pixels) as pair:
        scalings = find_scaling(pair.before, Declared()), find_scaling(pair.after, Declared())
        whole = Span(0, pair.grid.height), Span(0, pair.grid.width)
        found = estimate_offset(pair, scalings, within or whole)
        with move_after(pair, found.rows, found.columns) as moved:
            image, valid, _ = moved.after.image(scalings[1], *whole)
    return found, image, valid


def close(found: Registration, shift: tuple[float, float], tolerance: float = 0.1) -> bool:
    return bool(np.hypot(found.rows - shift[0], found.columns - shift[1]) <= tolerance)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, -0.25), (-12.3, 4.7), (40.4, -31.6)])
@pytest.mark.parametrize("place", [PLACE, PLAIN], ids=["georeferenced", "plain"])
def test_a_known_offset_is_found_and_removed(tmp_path: Path, shift: tuple[float, float], place: dict[str, Any]) -> None:
    before, after = pair_of(512, shift)
    found, moved, valid = register(tmp_path, before, after, first=place, second=place)
    assert close(found, shift) and found.inliers == found.windows >= 9 and found.residual < 0.2
    assert valid[60:-60, 60:-60].all()
    now, then = (moved[60:-60, 60:-60, 0].astype(float), before[0, 60:-60, 60:-60].astype(float))
    assert np.corrcoef(now.ravel(), then.ravel())[0, 1] > 0.98
    if max(map(abs, shift)) > 1:
        assert np.corrcoef(after[0, 60:-60, 60:-60].ravel(), then.ravel())[0, 1] < 0.9


def test_pixels_that_after_does_not_cover_have_no_data(tmp_path: Path) -> None:
    _, moved, valid = register(tmp_path, *pair_of(512, (-12.3, 4.7)), first=PLAIN, second=PLAIN)
    assert not valid[:12].any() and valid[13:, :506].all() and not valid[:, -4:].any()
    assert moved.shape == (512, 512, 3)


def test_an_offset_far_beyond_a_window_of_the_fine_search_is_found(tmp_path: Path) -> None:
    found, _, _ = register(tmp_path, *pair_of(1024, (180.2, -150.6)))
    assert close(found, (180.2, -150.6))


def test_half_of_the_scene_may_have_changed(tmp_path: Path) -> None:
    before, after = pair_of(768, (-12.3, 4.7))
    after[:, :, :384] = np.rint(ground(768, seed=9)[:, :384]).astype(np.uint8)
    found, _, _ = register(tmp_path, before, after)
    assert close(found, (-12.3, 4.7))


def test_clouds_over_a_third_of_the_scene_do_not_matter(tmp_path: Path) -> None:
    before, after = pair_of(768, (-12.3, 4.7))
    clouds = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal((768, 768)), 25)
    after[:, clouds > np.quantile(clouds, 0.68)] = 250
    others = ndimage.gaussian_filter(np.random.default_rng(6).standard_normal((768, 768)), 25)
    before[:, others > np.quantile(others, 0.9)] = 245
    found, _, _ = register(tmp_path, before, after)
    assert close(found, (-12.3, 4.7))


@pytest.mark.parametrize("name", ["test_19", "train_1"])
def test_windows_with_several_peaks_do_not_tip_the_offset(tmp_path: Path, reference: Path, name: str) -> None:
    """Real pairs, years apart, in whose windows houses lean: here the mode alone was up to 0.36 px off."""
    folder = reference / "data" / "LEVIR-CD" / "train"
    if not folder.exists():
        pytest.skip("the reference folder has no LEVIR-CD")
    before, after = (
        np.moveaxis(np.asarray(PIL.Image.open(folder / date / f"{name}.png").convert("RGB")), 2, 0) for date in "AB"
    )
    moved = np.clip(np.rint(ndimage.shift(after.astype(float), (0, -12.3, 4.7), order=3, mode="nearest")), 0, 255)
    inner = np.s_[:, 32:-32, 32:-32]  # without pixels that the shift made up
    here, there = (
        register(tmp_path, before[inner], image.astype(np.uint8)[inner], first=PLAIN, second=PLAIN)[0]
        for image in (after, moved)
    )
    assert abs(there.rows - here.rows + 12.3) <= 0.1 and abs(there.columns - here.columns - 4.7) <= 0.1


def test_areas_without_data_do_not_pull_the_offset_to_zero(tmp_path: Path) -> None:
    before, after = pair_of(640, (-12.3, 4.7))
    holes = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal((640, 640)), 15)
    for image in (before, after):
        np.clip(image, 1, 255, out=image)
        image[:, holes > np.quantile(holes, 0.75)] = 0
    found, _, _ = register(tmp_path, before, after, first={"nodata": 0}, second={"nodata": 0})
    assert close(found, (-12.3, 4.7))


@pytest.mark.parametrize("pixels", FORMATS, ids=lambda pixels: f"{pixels.bands}-{pixels.samples}")
def test_other_bands_and_16_bit_samples_are_registered(tmp_path: Path, pixels: PixelFormat) -> None:
    before, after = (
        np.repeat(image[:1].astype(pixels.samples) * (pixels.largest // 255), pixels.bands, axis=0)
        for image in pair_of(384, (-7.3, 4.7))
    )
    found, moved, valid = register(tmp_path, before, after, pixels=pixels)
    assert close(found, (-7.3, 4.7)) and moved.shape[2] == pixels.bands and valid[20:-20, 20:-20].all()


@pytest.mark.parametrize("size", [128, 200])
def test_small_scenes_are_registered(tmp_path: Path, size: int) -> None:
    found, _, _ = register(tmp_path, *pair_of(size, (-3.3, 4.7)), first=PLAIN, second=PLAIN)
    assert close(found, (-3.3, 4.7), 0.2)


def test_registration_and_alignment_combine_in_one_warp(tmp_path: Path) -> None:
    """AFTER covers a part of BEFORE, with pixels twice as large, and its tags are wrong by 12.4 and -4.8 px."""
    before, _ = pair_of(800, (0, 0))
    part = before[:, 100:740, 60:700].astype(np.float64)
    coarse = part.reshape(3, 320, 2, 320, 2).mean(axis=(2, 4)).astype(np.uint8)
    corner = from_origin(399_984 + 60 / 2 - 2.4, 4_999_992 - 100 / 2 - 6.2, 1, 1)
    found, moved, valid = register(
        tmp_path, before, coarse, align=True, second={"transform": corner}, within=(Span(98, 760), Span(55, 705))
    )
    assert close(found, (12.4, -4.8), 0.15)
    now, then = (moved[120:720, 80:680, 0].astype(float), before[0, 120:720, 80:680].astype(float))
    assert valid[120:720, 80:680].all() and np.corrcoef(now.ravel(), then.ravel())[0, 1] > 0.96  # blurred by its pixels


def test_a_date_in_another_coordinate_system_is_moved_on_the_grid_of_before(tmp_path: Path) -> None:
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    before, after = pair_of(640, (-12.3, 4.7))
    there, width, height = calculate_default_transform(
        PLACE["crs"], "EPSG:32634", 640, 640, 399_984, 4_999_672, 400_304, 4_999_992, resolution=0.5
    )
    other = np.zeros((3, height, width), np.uint8)
    reproject(
        np.clip(after, 1, 255), other, src_crs=PLACE["crs"], src_transform=PLACE["transform"], dst_crs="EPSG:32634",
        dst_transform=there, resampling=Resampling.cubic,
    )  # fmt: skip
    second = {"crs": "EPSG:32634", "transform": there, "nodata": 0}
    found, moved, _ = register(tmp_path, before, other, align=True, second=second)
    assert close(found, (-12.3, 4.7), 0.15)
    now, then = (moved[100:500, 100:500, 0].astype(float), before[0, 100:500, 100:500].astype(float))
    assert np.corrcoef(now.ravel(), then.ravel())[0, 1] > 0.97


# --- refused


def refused(folder: Path, before: NDArray[Any], after: NDArray[Any]) -> str:
    with pytest.raises(InputError) as caught:
        register(folder, before, after)
    return str(caught.value)


def test_a_rotation_is_refused_with_the_vectors(tmp_path: Path) -> None:
    before, _ = pair_of(768, (0, 0))
    after = np.stack([ndimage.rotate(band.astype(float), 1.5, reshape=False, mode="reflect") for band in before])
    message = refused(tmp_path, before, np.clip(after, 0, 255).astype(np.uint8))
    assert "the windows disagree" in message and "rotation" in message and message.count(" at ") >= 5


def test_another_scale_is_refused(tmp_path: Path) -> None:
    large = ground(900)
    after = ndimage.zoom(large, 1.02, order=3)[: large.shape[0], : large.shape[1]]
    before, after = (np.repeat(np.clip(x, 0, 255).astype(np.uint8)[None, :768, :768], 3, 0) for x in (large, after))
    assert "the windows disagree" in refused(tmp_path, before, after)


def test_different_ground_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, pair_of(512, (0, 0))[0], pair_of(512, (0, 0), seed=7)[0])
    assert "too few windows" in message or "disagree" in message


def test_flat_and_tiny_images_are_refused(tmp_path: Path) -> None:
    flat = np.full((3, 512, 512), 90, np.uint8)
    assert "too few windows have texture" in refused(tmp_path, flat, flat)
    before, after = pair_of(100, (1, 1))
    assert "at least 128 px per side" in refused(tmp_path, before, after)

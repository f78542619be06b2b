"""Tests of metadata about pixels (colours, scales, orientation, grids): it is honoured or refused, never ignored."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine

from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import InputError
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.dataset import TileSet, load_source
from misgnet_runtime.raster.images import image_size, read_image
from misgnet_runtime.raster.reader import open_raster
from support.bundles import FLOAT, make_bundle, write_image
from support.commands import exit_code
from support.scenes import PLACE, read, scene, write_raster

H, W = 96, 80
BEFORE, AFTER = scene(H, W)
ORDERS = {name: ColorInterp[name] for name in ("red", "green", "blue", "gray", "undefined", "nir")}


class Workspace:
    """A bundle, two dates and the command line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.before, self.after, self.out = root / "before.tif", root / "after.tif", root / "out.tif"
        write_raster(self.before, BEFORE)

    def run(self, *more: str, before: Path | None = None, after: Path | None = None, out: Path | None = None) -> str:
        """Runs the command, which must succeed, and returns its stderr."""
        code, error = self.call(*more, before=before, after=after, out=out)
        assert code == 0, error
        return error

    def refused(self, *words: str, more: tuple[str, ...] = (), after: Path | None = None, code: int = 4) -> None:
        """Checks that a run exits with ``code`` and an error line that contains ``words``, without an output."""
        found, error = self.call(*more, after=after)
        line = error.splitlines()[-1]
        assert found == code and not self.out.exists(), error
        assert all(word in line for word in words), line

    def call(self, *more: str, before: Path | None = None, after: Path | None = None, out: Path | None = None) -> Any:
        dates = map(str, (before or self.before, after or self.after))
        line = ("predict", str(self.bundle), *dates, "-o", str(out or self.out), "--force", *more)
        code = exit_code(cli.main, "misgnet-run", *line)
        return code, self._capsys.readouterr().err

    def changed(self) -> NDArray[Any]:
        return read(self.out)


@pytest.fixture
def workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workspace:
    return Workspace(tmp_path, capsys)


def colours(*names: str) -> list[ColorInterp]:
    return [ORDERS[name] for name in names]


# --- bands that are red, green and blue


def test_bands_are_chosen_by_the_colours_in_the_file(workspace: Workspace) -> None:
    write_raster(workspace.after, AFTER)
    workspace.run()
    wanted = workspace.changed()
    write_raster(workspace.after, AFTER[::-1], colours=colours("blue", "green", "red"))
    error = workspace.run()
    assert "after: bands 3,2,1" in error and np.array_equal(workspace.changed(), wanted)


def test_rgb_bands_are_found_among_more_bands(workspace: Workspace) -> None:
    write_raster(
        workspace.after, np.concatenate([AFTER[::-1], AFTER[:1]]), colours=colours("blue", "green", "red", "nir")
    )
    assert "after: bands 3,2,1" in workspace.run()


@pytest.mark.parametrize("stated", [("nir", "red", "green"), ("red", "undefined", "blue"), ("blue", "gray", "gray")])
def test_colours_that_are_not_rgb_are_not_guessed(workspace: Workspace, stated: tuple[str, ...]) -> None:
    write_raster(workspace.after, AFTER, colours=colours(*stated))
    workspace.refused("after.tif", ", ".join(stated), "--after-bands")


def test_one_declaration_for_files_with_different_colours_is_refused(workspace: Workspace) -> None:
    write_raster(workspace.after, AFTER[::-1], colours=colours("blue", "green", "red"))
    workspace.refused("blue, green, red", "--after-bands 3,2,1", more=("--bands", "1,2,3"))
    error = workspace.run("--bands", "1,2,3", "--after-bands", "3,2,1")
    assert "warning" not in error


def test_a_declaration_that_contradicts_the_file_warns(workspace: Workspace) -> None:
    write_raster(workspace.after, AFTER[::-1], colours=colours("blue", "green", "red"))
    error = workspace.run("--after-bands", "1,2,3")
    assert "warning: after.tif: band 1 is used as red, but the file's metadata say blue" in error
    write_raster(workspace.after, AFTER)
    assert "warning: before.tif: band 3 is used as red" in workspace.run("--bands", "3,2,1")


# --- meaning of values


def test_values_with_few_bits_are_scaled_to_8_bits(workspace: Workspace) -> None:
    write_raster(workspace.after, AFTER // 16, nbits=4)
    assert "(4-bit)" in workspace.run()
    wanted = np.abs(BEFORE.astype(float) - AFTER // 16 * 17).mean(0) / 255 > 0.5
    assert np.array_equal(workspace.changed(), wanted)


def tagged(path: Path, pixels: NDArray[Any], scale: float, offset: float) -> None:
    write_raster(path, pixels)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (scale,) * 3, (offset,) * 3


def test_scale_and_offset_tags_are_not_ignored(workspace: Workspace) -> None:
    tagged(workspace.after, AFTER, 2.0, -10.0)
    workspace.refused("after.tif", "scale 2,2,2 and offset -10,-10,-10", "--after-", "--scale")
    workspace.run("--after-scale", "0.00392156862745098")


def test_one_scale_for_files_with_different_offsets_is_refused(workspace: Workspace) -> None:
    for path, offset in ((workspace.before, 0.0), (workspace.after, -0.1)):
        tagged(path, (BEFORE if path == workspace.before else AFTER).astype(np.int16), 0.0001, offset)
    scale = ("--scale", "0.0039")
    workspace.refused("offset 0,0,0", "offset -0.1,-0.1,-0.1", "--after-offset", more=scale)
    workspace.run(*scale, "--after-scale", "0.0039", "--after-offset", "0.01")
    workspace.run("--stretch", "2,98")


def test_a_stretch_of_inverted_values_is_refused(workspace: Workspace) -> None:
    tagged(workspace.after, AFTER.astype(np.int16), -1.0, 0.0)
    workspace.refused("scale -1,-1,-1", "would invert its brightness", more=("--stretch", "2,98"))


def with_palette(path: Path) -> None:
    write_raster(path, AFTER[:1], photometric="PALETTE")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {n: (n, 0, 0, 255) for n in range(256)})


PHOTOMETRIC: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "CIELAB": (lambda p: write_raster(p, AFTER, photometric="CIELAB", compress=None), ("L*a*b*", "RGB")),
    "ICCLAB": (lambda p: write_raster(p, AFTER, photometric="ICCLAB"), ("L*a*b*",)),
    "CMYK": (lambda p: write_raster(p, np.concatenate([AFTER, AFTER[:1]]), photometric="CMYK"), ("CMYK",)),
    "MINISWHITE": (lambda p: write_raster(p, AFTER, photometric="MINISWHITE"), ("0 is white", "--scale")),
    "palette": (with_palette, ("palette", "gdal_translate -expand rgb")),
}


@pytest.mark.parametrize("case", PHOTOMETRIC)
def test_other_colour_models_are_refused(workspace: Workspace, case: str) -> None:
    write, words = PHOTOMETRIC[case]
    write(workspace.after)
    workspace.refused("after.tif", *words)


def test_all_missing_declarations_of_both_dates_are_one_message(workspace: Workspace) -> None:
    for path in (workspace.before, workspace.after):
        write_raster(path, np.concatenate([AFTER, AFTER[:1]]).astype(np.uint16))
    workspace.refused("before.tif, like ", "after.tif, has 4 bands; specify", "; it also contains uint16, ")
    write_raster(workspace.before, BEFORE)
    workspace.refused(
        "after.tif has 4 bands; specify", "--bands 3,2,1", "; it also contains uint16, ", "--stretch 2,98"
    )
    workspace.refused("after.tif contains uint16, ", more=("--after-bands", "3,2,1"))


@pytest.mark.parametrize("pixels", [RGB8, PixelFormat(4, "uint16")])
def test_advice_for_other_colour_models_suits_the_network(tmp_path: Path, pixels: PixelFormat) -> None:
    """A program tags any four bands as CMYK; then only the tag is wrong."""
    values = np.concatenate([AFTER, AFTER[:1]]).astype(pixels.samples)
    path = write_raster(tmp_path / "x.tif", values, photometric="CMYK")
    with pytest.raises(InputError) as caught, open_raster(path, "before", pixels=pixels):
        pass
    message = str(caught.value)
    assert f"contains CMYK inks, and the network reads {pixels}; " in message
    assert ("convert it to 8-bit RGB" in message) is pixels.is_rgb8
    assert ("gdal_translate -co PHOTOMETRIC=MINISBLACK" in message) is not pixels.is_rgb8


def test_ycbcr_is_converted_by_gdal(workspace: Workspace) -> None:
    grey = np.repeat(np.full((1, H, W), 200, np.uint8), 3, axis=0)
    write_raster(workspace.after, grey, photometric="YCBCR", compress="jpeg")
    workspace.run()
    assert np.array_equal(workspace.changed(), np.abs(BEFORE.astype(float) - 200).mean(0) / 255 > 0.5)


# --- grids


def test_an_orientation_tag_is_refused(workspace: Workspace) -> None:
    image = Image.fromarray(np.moveaxis(AFTER, 0, 2))
    for path in (workspace.before, workspace.after):
        image.save(path, tiffinfo={274: 6 if path == workspace.after else 1})
    workspace.refused("orientation 6", "after.tif")


def test_ground_control_points_and_rpcs_are_refused(workspace: Workspace) -> None:
    corners = [GroundControlPoint(row, column, column, -row) for row, column in ((0, 0), (0, W), (H, 0))]
    ones = [1.0] * 20
    rpcs = RPC(height_off=0, height_scale=1, lat_off=0, lat_scale=1, line_den_coeff=ones, line_num_coeff=ones,
               line_off=0, line_scale=1, long_off=0, long_scale=1, samp_den_coeff=ones, samp_num_coeff=ones,
               samp_off=0, samp_scale=1)  # fmt: skip
    for words, write in (
        ("ground control points", lambda d: setattr(d, "gcps", (corners, rasterio.CRS.from_epsg(4326)))),
        ("RPCs", lambda d: setattr(d, "rpcs", rpcs)),
    ):
        for path in (workspace.before, workspace.after):
            write_without_transform(path, BEFORE, write)
        workspace.refused("before.tif", words, "gdalwarp")


def write_without_transform(path: Path, pixels: NDArray[Any], write: Callable[[Any], object]) -> None:
    path.unlink(missing_ok=True)
    with rasterio.open(path, "w", driver="GTiff", height=H, width=W, count=3, dtype="uint8") as dataset:
        dataset.write(pixels)
        write(dataset)


SHEARED = Affine(0.5, 0.1, 400_000, 0.1, -0.5, 5_000_000)


def test_transforms_are_compared_without_a_coordinate_system(workspace: Workspace) -> None:
    write_raster(workspace.before, BEFORE, crs=None, transform=SHEARED)
    write_raster(workspace.after, AFTER, crs=None, transform=SHEARED * Affine.translation(30, 0))
    workspace.refused("offset by half a pixel or more", "without a coordinate system")
    write_raster(workspace.after, AFTER, crs=None, transform=SHEARED)
    workspace.run()
    with rasterio.open(workspace.out) as dataset:
        assert dataset.transform.almost_equals(SHEARED) and dataset.crs is None


def test_a_coordinate_system_of_only_one_date_is_refused(workspace: Workspace) -> None:
    write_raster(workspace.after, AFTER, crs=None)
    workspace.refused("are not both georeferenced", "without a coordinate system")


SOUTH_UP = PLACE["transform"] * Affine.translation(0, H) * Affine.scale(1, -1)


def test_a_mirror_image_is_refused_and_can_be_aligned(workspace: Workspace) -> None:
    write_raster(workspace.after, AFTER[:, ::-1], transform=SOUTH_UP)
    workspace.refused("mirror images", "south up", "--align")
    workspace.run("--align")
    aligned = workspace.changed()
    write_raster(workspace.after, AFTER)
    workspace.run()
    inner = (slice(2, -2), slice(2, -2))
    assert np.array_equal(workspace.changed()[inner], aligned[inner])


def test_two_south_up_dates_have_the_same_grid(workspace: Workspace) -> None:
    write_raster(workspace.before, BEFORE[:, ::-1], transform=SOUTH_UP)
    write_raster(workspace.after, AFTER[:, ::-1], transform=SOUTH_UP)
    workspace.run()
    with rasterio.open(workspace.out) as dataset:
        assert dataset.transform.almost_equals(SOUTH_UP)
    south = workspace.changed()
    write_raster(workspace.before, BEFORE)
    write_raster(workspace.after, AFTER)
    workspace.run()
    assert np.array_equal(workspace.changed(), south[::-1])


def test_several_images_in_one_file_are_refused(workspace: Workspace) -> None:
    first, second = (Image.fromarray(np.moveaxis(image, 0, 2)) for image in (BEFORE, AFTER))
    for path in (workspace.before, workspace.after):
        first.save(path, save_all=True, append_images=[second])
    workspace.refused("before.tif", "2 images")
    png = workspace.root / "animated.png"
    first.save(png, save_all=True, append_images=[second])
    workspace.before, workspace.out = png, workspace.root / "out.png"
    workspace.refused("animated.png", "2 images", after=png)


# --- images


FORMS = [(".jpg", {"quality": 100, "subsampling": 0}), (".png", {}), (".tif", {})]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "options"), FORMS)
def test_images_are_rotated_by_their_exif_orientation(
    tmp_path: Path, suffix: str, options: dict[str, Any], orientation: int
) -> None:
    rows, columns = np.mgrid[:40, :64]
    upright = np.stack([rows * 4, columns * 3, (rows + columns) * 2], 2).astype(np.uint8)
    path = tmp_path / f"image{suffix}"
    stored = Image.fromarray(upright)
    if orientation in TURNS:
        stored = stored.transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(path, exif=exif, **options)
    found = read_image(path)
    assert image_size(path) == found.shape[:2] == upright.shape[:2]
    assert np.abs(found.astype(int) - upright).max() <= 8


# The transposition that undoes each orientation, as defined in TIFF 6.0.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def test_exif_after_a_pngs_pixels_is_applied(tmp_path: Path) -> None:
    path, exif = write_image(tmp_path / "image.png", np.zeros((20, 30, 3), np.uint8)), Image.Exif()
    exif[274] = 6
    body = exif.tobytes()[6:] if exif.tobytes().startswith(b"Exif") else exif.tobytes()
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert read_image(path).shape == (30, 20, 3) and image_size(path) == (30, 20)


def test_images_with_different_orientations_form_a_pair(workspace: Workspace) -> None:
    first, second = (Image.fromarray(np.moveaxis(image, 0, 2)) for image in (BEFORE, AFTER))
    paths = [workspace.root / name for name in ("before.png", "turned.png", "upright.png")]
    exif = Image.Exif()
    exif[274] = 3
    first.save(paths[0])
    second.transpose(Image.Transpose.ROTATE_180).save(paths[1], exif=exif)
    second.save(paths[2])
    masks = []
    for after in paths[1:]:
        out = workspace.root / "mask.png"
        workspace.run(before=paths[0], after=after, out=out)
        masks.append(np.asarray(Image.open(out)))
    assert np.array_equal(*masks) and masks[0].any()


# --- other readers of rasters


def test_raster_tiles_follow_the_same_rules(tmp_path: Path) -> None:
    write_raster(tmp_path / "A" / "t.tif", BEFORE[::-1], colours=colours("blue", "green", "red"))
    write_raster(tmp_path / "B" / "t.tif", AFTER)
    write_image(tmp_path / "label" / "t.png", np.zeros((H, W), np.uint8))
    source = TileSet.open(tmp_path, 64).sources[0]
    assert np.array_equal(load_source(source)[0], np.moveaxis(BEFORE, 0, 2))
    write_raster(tmp_path / "B" / "t.tif", AFTER, transform=SOUTH_UP)
    with pytest.raises(InputError, match="mirror images"):
        load_source(source)
    write_raster(tmp_path / "B" / "t.tif", AFTER)
    for transform, problem in ((PLACE["transform"], None), (SOUTH_UP, "mirror images")):
        label = write_raster(tmp_path / "label" / "t.tif", np.zeros((1, H, W), np.uint8), transform=transform)
        with pytest.raises(InputError, match=problem) if problem else nullcontext():
            load_source(replace(source, label=label))
    write_raster(tmp_path / "A" / "t.tif", np.zeros_like(BEFORE), nodata=0)
    write_raster(tmp_path / "B" / "t.tif", AFTER)
    with pytest.raises(InputError, match="nodata"):
        load_source(source)

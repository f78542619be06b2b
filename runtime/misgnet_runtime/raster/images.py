"""Reads and checks images and change labels, and writes masks."""

from __future__ import annotations

import filecmp
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.errors import InputError, UnreadableError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.image_limits import check_parts
from misgnet_runtime.raster.tiff import DATE_TIME, ORIENTATION, is_tiff, read_header
from misgnet_runtime.raster.tiff_blocks import read_blocks
from misgnet_runtime.storage.files import is_not_regular_file

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
_FORMATS = ("PNG", "TIFF", "JPEG")  # the only decoders used: Pillow has dozens, and passes PostScript to Ghostscript
_DECODE_ERRORS = (  # Pillow's decoders raise these on damaged files
    OSError, SyntaxError, ValueError, MemoryError, EOFError, LookupError, TypeError, ArithmeticError,
    AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_WIDTH, _HEIGHT = 256, 257  # TIFF tags
_EXIF, _TAKEN = 34665, 36867  # EXIF's own directory, and DateTimeOriginal in it
_GREY = {"uint8": ("L",), "uint16": ("I;16", "I;16B", "I")}  # modes; Pillow before 11.3 reads a 16-bit PNG as "I"
_TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange height and width


def read_image(path: Path, pixels: PixelFormat = RGB8) -> Image:
    """Reads an image of a format as (H, W, C), rotated by its EXIF orientation; drops an opaque alpha channel.

    PNG and JPEG files hold 8-bit RGB; a PNG also one band of 8 or 16 bits. A TIFF that is a raster (see
    :func:`is_raster`), and every TIFF of another format than 8-bit RGB, is read as one date of a scene, without
    scaling.

    Raises:
        InputError: The file is not such an image.
        UnavailableError: The file has to be read as a raster, and rasterio is not installed.
    """
    if _read_as_raster(path, pixels):
        from misgnet_runtime.raster.geotiff_images import read_date

        return read_date(path, pixels)
    with _in_memory(f"image {path}"):
        _check_holds(pixels, f"image {path} is a PNG or JPEG")
        return _samples(_decode(path, wide=not pixels.is_rgb8), pixels, f"image {path}")


def from_pillow(image: PIL.Image.Image, pixels: PixelFormat, name: str) -> Image:
    """Returns the samples of an open Pillow image as (H, W, C), by the rules of :func:`read_image` for its file.

    ``name`` describes it in messages. Raises InputError if it has another format, or its file cannot be decoded.
    """
    with _in_memory(name):
        _check_holds(pixels, f"{name} is a Pillow image")
        return _samples(_turned(image, name, wide=not pixels.is_rgb8), pixels, name)


def is_raster(path: Path) -> bool:
    """Returns whether a file is a TIFF with raster tags, such as georeferencing, a nodata value or a scale.

    Raises:
        InputError: The file is a TIFF whose directories cannot be read.
    """
    return is_tiff(path) and bool(read_header(path).raster_properties)


def _read_as_raster(path: Path, pixels: PixelFormat) -> bool:
    """Returns whether rasterio reads a file: Pillow reads neither several bands nor 16 bits of most TIFFs."""
    return is_raster(path) if pixels.is_rgb8 else is_tiff(path)


def _check_holds(pixels: PixelFormat, what: str) -> None:
    if not (pixels.is_rgb8 or pixels.bands == 1):
        raise InputError(f"{what}, which cannot hold {pixels}; write the bands of each date to one GeoTIFF")


def _samples(image: PIL.Image.Image, pixels: PixelFormat, name: str) -> Image:
    """Returns the samples of a decoded image as (H, W, C); raises InputError if it has another format."""
    return _rgb(image, name) if pixels.is_rgb8 else _grey(image, pixels, name)


def _grey(image: PIL.Image.Image, pixels: PixelFormat, name: str) -> Image:
    if image.mode not in _GREY[pixels.samples] or image.has_transparency_data:
        raise InputError(f"{name} is {_kind(image)}, and the network reads {pixels}{_advice(pixels)}")
    return np.asarray(image)[..., None].astype(pixels.samples, copy=False)


def _rgb(image: PIL.Image.Image, name: str) -> Image:
    if image.mode not in ("RGB", "RGBA", "P"):
        label = "; pass the image, not a label or a mask, or convert it" * (image.mode in ("1", "L", "LA"))
        raise InputError(f"{name} is {_kind(image)}, and the network reads 8-bit RGB{label or _advice(RGB8)}")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InputError(
            f"{name} has transparent pixels, and the network reads 8-bit RGB without nodata; remove the alpha channel, "
            "or pass GeoTIFFs with a mask or a nodata value"
        )
    return np.asarray(image.convert("RGB"))


_KINDS = {"1": "black and white", "L": "8-bit grey", "LA": "8-bit grey with alpha", "P": "a palette image"}


def _kind(image: PIL.Image.Image) -> str:
    grey = "16-bit grey" if image.mode.startswith("I") else f"of mode {image.mode}"
    kind = _KINDS.get(image.mode, grey)
    return f"{kind} with transparency" if image.has_transparency_data and "alpha" not in kind else kind


def _advice(pixels: PixelFormat) -> str:
    return f"; convert it to {pixels} without transparency, as the images that the network was trained on"


def read_pair(before: Path, after: Path, pixels: PixelFormat = RGB8) -> tuple[Image, Image]:
    """Reads both dates as (H, W, C); raises as :func:`read_image`, and InputError if sizes or grids differ."""
    if any(_read_as_raster(path, pixels) for path in (before, after)):
        from misgnet_runtime.raster.geotiff_images import read_dates

        return read_dates(before, after, pixels)
    first, second = read_image(before, pixels), read_image(after, pixels)
    if first.shape != second.shape:
        raise InputError(
            f"{before} is {first.shape[1]} x {first.shape[0]} px, {after} is {second.shape[1]} x "
            f"{second.shape[0]} px; both must have the same size and grid"
        )
    return first, second


def read_label(path: Path, date: Path | None = None) -> Mask:
    """Reads a change label as bool (H, W).

    For a palette image, the colours count if they are black and white, else the palette indices.

    Args:
        path: The label.
        date: The image it belongs to; if both are rasters, their grids must be equal.

    Raises:
        InputError: The values are neither 0 and 255 nor 0 and 1, or the grids differ.
    """
    if date is not None and is_raster(path) and is_raster(date):
        from misgnet_runtime.raster.geotiff_images import check_label

        check_label(date, path)
    with _in_memory(f"image {path}"):
        return _label(path)


def _label(path: Path) -> Mask:
    image = _decode(path)
    values = _one_channel(path, image)
    if image.mode == "P" and not _is_binary(values):
        values = np.asarray(image)
    if not _is_binary(values):
        found = np.unique(values)
        shown = ", ".join(str(v) for v in found[:6]) + (", ..." if len(found) > 6 else "")
        raise InputError(f"label {path} has the values {shown}; a label must have 0 and 255, or 0 and 1")
    return np.asarray(values != 0, np.bool_)


def _one_channel(path: Path, image: PIL.Image.Image) -> NDArray[Any]:
    """Returns the grey values (H, W) of an image of any mode; raises InputError for a colour image."""
    if image.mode == "LA":
        image = image.getchannel("L")
    if len(image.getbands()) == 1 and image.mode != "P":
        return np.asarray(image)
    pixels = np.asarray(image.convert("RGB"))
    if image.mode != "P" and not (pixels == pixels[..., :1]).all():
        raise InputError(f"label {path} is a colour image; a label must have one channel of 0 and 255, or 0 and 1")
    return np.asarray(pixels.max(2))


def _is_binary(values: NDArray[Any]) -> bool:
    found = set(np.unique(values).tolist())
    return found <= {0, 255} or found <= {0, 1}


def image_size(path: Path, pixels: PixelFormat = RGB8) -> tuple[int, int]:
    """Returns height and width in pixels from the file's header, with the EXIF orientation applied.

    Raises as :func:`read_image`, which reads images of the format ``pixels``.
    """
    if _read_as_raster(path, pixels):
        from misgnet_runtime.raster.geotiff_images import size_of

        return size_of(path)
    with _opened(path) as image:
        if image.format == "TIFF":  # Pillow 11.2 and later already applies the orientation to the size
            header = read_header(path)
            height, width = header.number(_HEIGHT, image.height), header.number(_WIDTH, image.width)
            return (width, height) if header.number(ORIENTATION, 1) in _TRANSPOSED else (height, width)
        transposed = _exif(path, image).get(ORIENTATION, 1) in _TRANSPOSED
        return (image.width, image.height) if transposed else (image.height, image.width)


def image_time(path: Path, pixels: PixelFormat = RGB8) -> datetime | None:
    """Returns when an image was taken, from its EXIF or TIFF tags (default zone: UTC), or None.

    ``pixels`` is the format that :func:`read_image` reads.
    """
    from misgnet_runtime.raster.metadata import parse_time

    if _read_as_raster(path, pixels):
        return parse_time(read_header(path).text(DATE_TIME))
    with _opened(path) as image, _unwarned():
        exif = _exif(path, image)
        found = [_taken(exif), exif.get(DATE_TIME)]
        found += [read_header(path).text(DATE_TIME)] if image.format == "TIFF" else []
    return next((time for text in found if isinstance(text, str) and (time := parse_time(text))), None)


def _taken(exif: PIL.Image.Exif) -> object:
    """Returns EXIF's DateTimeOriginal; a damaged EXIF directory is ignored, since nothing else is read from it."""
    try:
        with _unwarned():
            return exif.get_ifd(_EXIF).get(_TAKEN) if _EXIF in exif else None
    except _DECODE_ERRORS:
        return None


def same_bytes(first: Path, second: Path) -> bool:
    """Returns whether two existing files are the same file or have equal content."""
    return first.samefile(second) or filecmp.cmp(first, second, shallow=False)


def check_mask_name(path: Path) -> None:
    """Raises UsageError if a mask's file name has another extension than .png."""
    if path.suffix.lower() not in ("", ".png"):
        raise UsageError(
            f"masks are written as PNG, but {path.name} has another extension; choose a name ending in .png"
        )


def write_mask(path: Path, mask: Mask, tags: Mapping[str, str] | None = None) -> None:
    """Writes bool (H, W) as an 8-bit PNG with the values 0 and 255, and ``tags`` as its texts."""
    texts = PngInfo()
    for name, text in (tags or {}).items():
        texts.add_itxt(name, text)
    PIL.Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path, format="PNG", pnginfo=texts)


def read_mask_tags(path: Path) -> dict[str, str]:
    """Returns the texts of a PNG; raises InputError if it cannot be read."""
    with _opened(path) as image:
        return {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}


def _decode(path: Path, *, wide: bool = True) -> PIL.Image.Image:
    """Decodes an image. Raises InputError for 16-bit colour, which Pillow would reduce to 8 bits, unless ``wide``."""
    with _opened(path) as image:
        if (count := _count(path, image)) > 1:
            raise InputError(f"image {path} contains {count} images; write the one to use to its own file")
        if image.format == "TIFF":
            _check_blocks(path)
        return _turned(image, f"image {path}", wide=wide)


def _turned(image: PIL.Image.Image, name: str, *, wide: bool) -> PIL.Image.Image:
    """Decodes an open image and applies its EXIF orientation; see :func:`_decode`."""
    if not wide and any(";16" in str(part) for part in getattr(image, "tile", ())):
        raise InputError(
            f"{name} has 16 bits per channel, and the network reads 8-bit RGB; convert it as the images that the "
            "network was trained on, or pass GeoTIFFs with --scale or --stretch"
        )
    try:
        with _unwarned():
            image.load()
            return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS as error:
        raise InputError(f"{name} is damaged or truncated: {error}") from error


def _check_blocks(path: Path) -> None:
    """Raises UnreadableError if a TIFF is truncated or unfinished: Pillow reads a strip without an offset at byte 0."""
    layer = read_blocks(path).image
    if count := int((layer.absent | layer.outside).sum()):
        raise UnreadableError(
            f"image {path} has {plural(count, 'unreadable block')} of {layer.absent.size:,}: the file is truncated or "
            "unfinished; fetch it again"
        )


def _count(path: Path, image: ImageFile.ImageFile) -> int:
    """Returns the number of images in a file: of a TIFF without overviews, or of an animated PNG; 1 for a JPEG.

    Further images in a JPEG are previews of the first one.
    """
    if image.format == "TIFF":
        return read_header(path).pages
    return int(getattr(image, "n_frames", 1)) if image.format == "PNG" else 1


def _exif(path: Path, image: ImageFile.ImageFile) -> PIL.Image.Exif:
    """Returns the EXIF of an image, without decoding pixels if the EXIF precedes them in the file."""
    try:
        with _unwarned():
            if image.format == "PNG" and not _exif_follows(path):
                return PIL.Image.Image.getexif(image)  # PngImageFile.getexif would decode all pixels first
            return image.getexif()
    except _DECODE_ERRORS as error:
        raise InputError(f"image {path} cannot be read: {error}") from error


def _exif_follows(path: Path) -> bool:
    """Returns whether a PNG has EXIF, or text that may contain it, after its pixels."""
    pixels = False
    with path.open("rb") as file:
        file.seek(8)
        while len(chunk := file.read(8)) == 8 and chunk[4:] != b"IEND":
            pixels = pixels or chunk[4:] == b"IDAT"
            if pixels and chunk[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(chunk[:4], "big") + 4, 1)
    return False


def _opened(path: Path) -> ImageFile.ImageFile:
    if is_not_regular_file(path):
        raise InputError(f"image {path} cannot be read: not a regular file")
    try:
        check_parts(path)
        with _unwarned():
            return PIL.Image.open(path, formats=_FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise InputError(f"image {path} is too large to be read whole: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist") from error
    except EOFError as error:
        raise InputError(f"image {path} is damaged or truncated: {error}") from error
    except _DECODE_ERRORS as error:
        raise InputError(f"image {path} cannot be read: {error}") from error


@contextmanager
def _in_memory(name: str) -> Iterator[None]:
    """Raises InputError if memory runs out: conversions may take four times the memory that Pillow limits."""
    try:
        yield
    except MemoryError:
        raise InputError(f"{name} does not fit into the available memory; cut it into tiles") from None


@contextmanager
def _unwarned() -> Iterator[None]:
    """Suppresses Pillow's warnings about large images, which are allowed here, and about damage to metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

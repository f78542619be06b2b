"""Images and labels from files, checked: 8-bit RGB, and labels that say changed or not."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.files import is_no_file

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
_FORMATS = ("PNG", "TIFF", "JPEG")  # whatever the name says: Pillow knows dozens, and gives PostScript to Ghostscript
_DECODE_ERRORS = (  # what Pillow's readers raise on damaged files
    OSError, SyntaxError, ValueError, MemoryError, EOFError, LookupError, TypeError, ArithmeticError,
    AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
RgbImage = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def read_image(path: Path) -> RgbImage:
    """An 8-bit RGB image as uint8 (H, W, 3). InputError for anything else; an opaque alpha is dropped."""
    with _in_memory(path):
        return _rgb(path)


def _rgb(path: Path) -> RgbImage:
    image = _decode(path, wide=False)
    if image.mode not in ("RGB", "RGBA", "P"):
        raise InputError(f"image {path} has Pillow mode '{image.mode}'; this command needs 8-bit RGB")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InputError(f"image {path} has transparent pixels; this command needs 8-bit RGB without nodata")
    return np.asarray(image.convert("RGB"))


def read_pair(before: Path, after: Path) -> tuple[RgbImage, RgbImage]:
    """Both dates as uint8 (H, W, 3); InputError where their sizes differ, or as :func:`read_image`."""
    first, second = read_image(before), read_image(after)
    if first.shape != second.shape:
        raise InputError(
            f"{before} is {first.shape[1]} x {first.shape[0]} px, {after} is {second.shape[1]} x "
            f"{second.shape[0]} px; a pair has one size and one grid"
        )
    return first, second


def read_label(path: Path) -> Mask:
    """A change label as bool (H, W). InputError unless its values are 0 and 255, or 0 and 1.

    A palette counts by its colours where these are black and white, else by its numbers.
    """
    with _in_memory(path):
        return _label(path)


def _label(path: Path) -> Mask:
    image = _decode(path)
    values = _one_channel(path, image)
    if image.mode == "P" and not _is_binary(values):
        values = np.asarray(image)
    if not _is_binary(values):
        found = np.unique(values)
        shown = ", ".join(str(v) for v in found[:6]) + (", ..." if len(found) > 6 else "")
        raise InputError(f"label {path} has the values {shown}; a label has 0 and 255, or 0 and 1")
    return np.asarray(values != 0, np.bool_)


def _one_channel(path: Path, image: Image.Image) -> NDArray[Any]:
    """Grey values (H, W) of any mode; InputError for a colour image."""
    if image.mode == "LA":
        image = image.getchannel("L")
    if len(image.getbands()) == 1 and image.mode != "P":
        return np.asarray(image)
    pixels = np.asarray(image.convert("RGB"))
    if image.mode != "P" and not (pixels == pixels[..., :1]).all():
        raise InputError(f"label {path} is a colour image; a label has one channel of 0 and 255, or 0 and 1")
    return np.asarray(pixels.max(2))


def _is_binary(values: NDArray[Any]) -> bool:
    found = set(np.unique(values).tolist())
    return found <= {0, 255} or found <= {0, 1}


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the file's header, in pixels."""
    with _opened(path) as image:
        return image.height, image.width


def check_mask_name(path: Path) -> None:
    """UsageError where the name of a mask's file promises something else than PNG."""
    if path.suffix.lower() not in ("", ".png"):
        raise UsageError(f"masks are written as PNG, and {path.name} says otherwise; choose a name that ends in .png")


def write_mask(path: Path, mask: Mask) -> None:
    """Write bool (H, W) as an 8-bit PNG with 0 and 255."""
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path, format="PNG")


def _decode(path: Path, *, wide: bool = True) -> Image.Image:
    """The pixels; Pillow would reduce 16-bit colour to 8 bits silently, InputError unless ``wide``."""
    with _opened(path) as image:
        if not wide and any(";16" in str(part) for part in image.tile):
            raise InputError(f"image {path} has 16 bits per channel; this command needs 8-bit RGB")
        try:
            with _unwarned():
                image.load()
        except _DECODE_ERRORS as error:
            raise InputError(f"image {path} is damaged or truncated: {error}") from error
        return image.copy()


def _opened(path: Path) -> ImageFile.ImageFile:
    if is_no_file(path):
        raise InputError(f"image {path} cannot be read: it is no file")
    try:
        with _unwarned():
            return Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"image {path} is too large to be read whole: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist") from error
    except _DECODE_ERRORS as error:
        raise InputError(f"image {path} cannot be read: {error}") from error


@contextmanager
def _in_memory(path: Path) -> Iterator[None]:
    """Pixels are read within Pillow's limit, and may be converted to four times that."""
    try:
        yield
    except MemoryError:
        raise InputError(f"image {path} does not fit into the memory that is left; cut it into tiles") from None


@contextmanager
def _unwarned() -> Iterator[None]:
    """Pillow warns of large images, which are read, and of damage, which either is an error or harms no pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

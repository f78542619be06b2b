"""Images and labels from files, checked: 8-bit RGB, and labels that say changed or not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from misgnet_runtime.errors import InputError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
RgbImage = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def read_image(path: Path) -> RgbImage:
    """An 8-bit RGB image as uint8 (H, W, 3). InputError for anything else; an opaque alpha is dropped."""
    image = _decode(path)
    if image.mode == "RGBA" and image.getextrema()[3] != (255, 255):
        raise InputError(f"image {path} has transparent pixels; this command needs 8-bit RGB without nodata")
    if image.mode not in ("RGB", "RGBA", "P"):
        raise InputError(f"image {path} has Pillow mode '{image.mode}'; this command needs 8-bit RGB")
    return np.asarray(image.convert("RGB"))


def read_label(path: Path) -> Mask:
    """A change label as bool (H, W). InputError unless its values are 0 and 255, or 0 and 1."""
    image = _decode(path)
    if image.mode in ("RGB", "RGBA"):
        pixels = np.asarray(image)[..., :3]
        if not (pixels == pixels[..., :1]).all():
            raise InputError(f"label {path} is a colour image; a label has one channel of 0 and 255, or 0 and 1")
        values: NDArray[Any] = pixels[..., 0]
    else:
        values = np.asarray(image)
    found = np.unique(values)
    if not (set(found.tolist()) <= {0, 255} or set(found.tolist()) <= {0, 1}):
        shown = ", ".join(str(v) for v in found[:6]) + (", ..." if len(found) > 6 else "")
        raise InputError(f"label {path} has the values {shown}; a label has 0 and 255, or 0 and 1")
    return values != 0


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the file's header, in pixels."""
    with _opened(path) as image:
        return image.height, image.width


def write_mask(path: Path, mask: Mask) -> None:
    """Write bool (H, W) as an 8-bit PNG with 0 and 255."""
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path, format="PNG")


def _decode(path: Path) -> Image.Image:
    with _opened(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, MemoryError) as error:
            raise InputError(f"image {path} is damaged or truncated: {error}") from error
        return image.copy()


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except Image.DecompressionBombError as error:
        raise InputError(f"image {path} is too large to be read whole: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from error

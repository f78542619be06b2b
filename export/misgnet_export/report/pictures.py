"""Selects tiles to show, and draws where float mask, engine mask and label differ."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from misgnet_runtime.accuracy.parity import EngineParity, TileParity
from misgnet_runtime.callables import Image, Mask

Kind = Literal["worst", "typical"]

# The kinds of pixels of a difference image, in the order of their codes. The colours differ in lightness as well as in
# hue, so that they can be distinguished with red-green or blue-yellow colour blindness.
LEGEND: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("both correct: unchanged", (18, 18, 22)),
    ("both correct: changed", (255, 255, 255)),
    ("both wrong", (88, 88, 94)),
    ("only engine wrong: false alarm", (245, 105, 0)),
    ("only engine wrong: missed change", (40, 110, 235)),
    ("only engine correct", (20, 205, 140)),
)
_UNCHANGED, _CHANGED, _BOTH_WRONG, _FALSE_ALARM, _MISSED, _NEWLY_RIGHT = range(len(LEGEND))


def difference_codes(label: Mask, reference: Mask, engine: Mask) -> NDArray[np.uint8]:
    """Returns the index into ``LEGEND`` of every pixel: uint8 (H, W) from three bool (H, W)."""
    was_right, is_right = reference == label, engine == label
    kinds = [was_right & is_right & ~label, was_right & is_right, was_right & engine, was_right, is_right]
    codes = [_UNCHANGED, _CHANGED, _FALSE_ALARM, _MISSED, _NEWLY_RIGHT]
    return np.select(kinds, codes, _BOTH_WRONG).astype(np.uint8)


def difference_image(label: Mask, reference: Mask, engine: Mask) -> Image:
    """Returns the codes in the colours of ``LEGEND``: uint8 (H, W, 3) from three bool (H, W)."""
    return np.array([colour for _, colour in LEGEND], np.uint8)[difference_codes(label, reference, engine)]


def png_data_uri(array: Image | Mask) -> str:
    """Returns a lossless ``data:`` address of uint8 (H, W, 3) or bool (H, W)."""
    return _data_uri(PIL.Image.fromarray(array), "png", optimize=True)


def jpeg_data_uri(array: Image, quality: int = 88) -> str:
    """Returns a smaller, lossy ``data:`` address of uint8 (H, W, 3); for photographs, never for masks."""
    return _data_uri(PIL.Image.fromarray(array), "jpeg", quality=quality, optimize=True)


def data_uri(file: bytes, kind: str) -> str:
    """Returns the ``data:`` address of an image file's bytes; ``kind``: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"


def pick_tiles(parity: EngineParity, worst: int, typical: int) -> list[tuple[str, Kind]]:
    """Returns names of tiles to show, each once; the choice is deterministic.

    First come up to ``worst`` tiles with the most differing pixels, then up to ``typical`` others: of the remaining
    tiles whose label contains change, ordered by differing pixels, those in the middle. There may be fewer of either.
    """
    ordered = sorted(parity.tiles, key=lambda tile: (-tile.differing, tile.name))
    bad = [tile for tile in ordered if tile.differing][: max(0, worst)]
    others = [tile for tile in ordered if tile not in bad and _changed(tile)]
    middle = (len(others) - 1) / 2
    nearest = sorted(range(len(others)), key=lambda i: (abs(i - middle), i))[: max(0, typical)]
    shown: list[tuple[str, Kind]] = [(tile.name, "worst") for tile in bad]
    return shown + [(others[i].name, "typical") for i in sorted(nearest)]


def _changed(tile: TileParity) -> bool:
    tp, _, fn, _ = tile.reference
    return tp + fn > 0


def _data_uri(image: PIL.Image.Image, kind: str, **options: bool | int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind.upper(), **options)
    return data_uri(buffer.getvalue(), kind)

"""Makes the pictures of the page: both dates, the change over them, and a pair for each of the largest areas."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import PIL.Image

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.jobs.scene.report.page import Picture
from misgnet_runtime.raster.changes import Change
from misgnet_runtime.raster.display import Stretch
from misgnet_runtime.raster.drawing import CHANGE_RED, FILL, enlarged, hatched, outline_of
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.overview import Overview, SceneReader, step_for
from misgnet_runtime.raster.tiling import Span

MOST_PIXELS = 2048  # longest side of both dates
MOST_BYTES = 8_000_000  # of the page
_TEXTS = 200_000  # bytes left for everything but pictures
_OVERLAY_PIXELS = 1024  # longest side up to which the overlay of a small scene is enlarged
_THUMBNAIL = 128  # longest side of a thumbnail
_AROUND, _LEAST = 1.5, 48  # side of a thumbnail's window by that of the area, and in pixels at least
_QUALITIES = (88, 78, 65, 50, 35, 20, 10)  # of JPEG; the first that fits is taken


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """All pictures of a page."""

    size: tuple[int, int]  # width and height of both dates, in pixels
    rows: Span  # of the scene, in both dates
    columns: Span
    step: int  # pixels of the scene per pixel
    before: Picture
    after: Picture
    overlay: Picture
    changes: list[tuple[Picture, Picture]]
    has_nodata: bool


def make_pictures(reader: SceneReader, overview: Overview, changes: list[Change]) -> Pictures:
    """Returns the pictures of an overview and of ``changes``; encoded, they leave room for the texts of the page."""
    stretch = Stretch.of(overview.before, overview.after, overview.valid)
    overlay = _overlay(overview.changed)
    thumbnails = [_thumbnails(reader, change, stretch) for change in changes]
    room = (MOST_BYTES - _TEXTS) * 3 // 4 - len(overlay.data)  # base64 takes 4 bytes for 3
    room -= sum(len(picture.data) for pair in thumbnails for picture in pair)
    dates = tuple(hatched(stretch.apply(image), overview.valid) for image in (overview.before, overview.after))
    before, after = _fitting((dates[0], dates[1]), room)
    height, width = overview.valid.shape
    return Pictures(
        size=(width, height), rows=overview.rows, columns=overview.columns, step=overview.step, before=before,
        after=after, overlay=overlay, changes=thumbnails, has_nodata=not overview.valid.all(),
    )  # fmt: skip


def _fitting(images: tuple[Image, Image], room: int) -> tuple[Picture, Picture]:
    """Encodes both dates with the best quality at which they have at most ``room`` bytes, or with the lowest."""
    before, after = images
    for quality in _QUALITIES:
        pair = _jpeg(before, quality), _jpeg(after, quality)
        if sum(len(picture.data) for picture in pair) <= room:
            break
    return pair


def _overlay(changed: Mask) -> Picture:
    """Returns changed areas, bool (h, w), in red on nothing: a translucent fill and an opaque outline."""
    mask = enlarged(changed, max(1, _OVERLAY_PIXELS // max(changed.shape)))
    codes = mask.astype(np.uint8)
    codes[outline_of(mask, 1 if max(mask.shape) <= 1.5 * _OVERLAY_PIXELS else 2)] = 2
    image = PIL.Image.fromarray(codes).convert("P")
    image.putpalette((0, 0, 0, *CHANGE_RED, *CHANGE_RED))
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True, bits=2, transparency=bytes((0, round(255 * FILL), 255)))
    return Picture(data.getvalue(), "png")


def _thumbnails(reader: SceneReader, change: Change, stretch: Stretch) -> tuple[Picture, Picture]:
    """Returns both dates around a changed area, with its outline."""
    grid = reader.pair.grid
    left, top, right, bottom = (int(edge) for edge in change.outline.bounds)
    side = max(_LEAST, round(_AROUND * max(right - left, bottom - top)))
    rows, columns = _around(top, bottom, side, grid.height), _around(left, right, side, grid.width)
    window = reader.read(rows, columns, step_for(rows, columns, _THUMBNAIL))
    factor = max(1, _THUMBNAIL // max(window.valid.shape))
    valid = enlarged(window.valid, factor)
    outline = outline_of(_inside(change, window, valid.shape, factor))
    shown = (hatched(enlarged(stretch.apply(image), factor), valid) for image in (window.before, window.after))
    before, after = (np.where(outline[..., None], np.array(CHANGE_RED, np.uint8), image) for image in shown)
    return _jpeg(before, 75), _jpeg(after, 75)


def _inside(change: Change, window: Overview, shape: tuple[int, ...], factor: int) -> Mask:
    """Returns the pixels of a window, enlarged to ``shape``, that belong to a changed area."""
    rasterio = load_rasterio("a scene")
    scale = window.step / factor  # Affine's own operator is * or @, depending on its version
    place = rasterio.Affine(scale, 0, window.columns.start, 0, scale, window.rows.start)
    mask = rasterio.features.geometry_mask([change.outline], shape, place, all_touched=True, invert=True)
    return np.asarray(mask, np.bool_)


def _around(start: int, stop: int, side: int, length: int) -> Span:
    """Returns ``side`` pixels of an axis around a span, moved and shortened so that they lie within the scene."""
    first = max(0, min((start + stop - side) // 2, length - side))
    return Span(first, min(first + side, length))


def _jpeg(image: Image, quality: int) -> Picture:
    data = io.BytesIO()
    PIL.Image.fromarray(image).save(data, format="JPEG", quality=quality, optimize=True)
    return Picture(data.getvalue(), "jpeg")

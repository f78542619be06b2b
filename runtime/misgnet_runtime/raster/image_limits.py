"""Checks the parts and metadata of an image file before Pillow reads it, because Pillow limits only pixels.

Pillow visits chunks, segments and tags one by one, keeps most of them, and decodes every scan of a JPEG: a small or
sparse file can demand unlimited time and memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from misgnet_runtime.limits import (
    IMAGE_EXTRA_BYTES,
    IMAGE_PARTS,
    JPEG_SCANS,
    TIFF_TAGS,
    TIFF_TILE_PIXELS,
    TIFF_TILED_PIXELS,
)
from misgnet_runtime.raster.tiff import TYPE_SIZES

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # JPEG markers except stuffing, padding and restarts
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)
_GAP = 1 << 16  # bytes between a JPEG's segments
_PART = 1 << 16
_TRUNCATED = "its end marker is missing; fetch the file again"
_ROUNDING = 16  # pixels: the sides of tiles are multiples of it
_SIDES = (256, 257, 322, 323)  # TIFF tags: width and height of the image, and of a tile
_OFFSETS = (273, 324)  # TIFF tags: offsets of all strips, or of all tiles


def check_parts(path: Path) -> None:
    """Checks the structure of an image file.

    Raises:
        ValueError: The image has more parts, or more bytes of metadata, than any legitimate image.
        EOFError: A PNG or JPEG has no end marker. Pillow would decode the zeros of an unfinished copy to grey or black.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        for magic, check in _CHECKS.items():
            if start.startswith(magic):
                check(file)


def _check_png(file: BinaryIO) -> None:
    count = extra = 0
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        count, extra = count + 1, extra + (length if head[4:] != b"IDAT" else 0)
        _check(count, extra)
        if head[4:] == b"IEND":
            return
        file.seek(length + 4, 1)
    raise EOFError(_TRUNCATED)


def _check_jpeg(file: BinaryIO) -> None:
    file.seek(2)
    count = extra = scans = gaps = 0
    while (found := _next_marker(file)) and found[0] != _END:
        marker, skipped = found
        gaps += skipped if not scans else 0
        if marker in _ALONE:
            continue
        length = int.from_bytes(file.read(2), "big")
        file.seek(max(0, length - 2), 1)
        count, scans, extra = count + 1, scans + (marker == _SCAN), extra + length
        _check(count, extra + gaps)
        if scans > JPEG_SCANS or gaps > _GAP:
            excess = f"more than {JPEG_SCANS} scans" if scans > JPEG_SCANS else "bytes between its segments"
            raise ValueError(f"it has {excess}; save it again")
    if not found:
        raise EOFError(_TRUNCATED)


def _next_marker(file: BinaryIO) -> tuple[int, int] | None:
    """Reads up to the next marker; returns it and the number of bytes skipped, or None at the end of the file."""
    last, skipped = b"", 0
    while part := file.read(_PART):
        data = last + part
        if found := _MARKER.search(data):
            file.seek(found.end() - len(data), 1)
            return found[1][0], skipped + found.start() - len(last)
        skipped, last = skipped + len(part), data[-1:]
    return None


def _check_tiff(file: BinaryIO) -> None:
    """Checks the first directory, which is the only one that Pillow reads here."""
    file.seek(0)
    head = file.read(16)
    order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
    word, entry = ("Q", struct.Struct(order + "HHQ8s")) if big else ("I", struct.Struct(order + "HHI4s"))
    try:
        file.seek(struct.unpack_from(order + word, head, 8 if big else 4)[0])
        (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    except (struct.error, OverflowError) as error:
        raise ValueError(f"it is truncated: {error}") from error
    if count > TIFF_TAGS:
        raise ValueError(f"it has {count} tags, and the limit is {TIFF_TAGS}")
    table = file.read(count * entry.size)
    parts = extra = 0
    sides: dict[int, int] = {}
    for tag, kind, number, value in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        parts, extra = max(parts, number if tag in _OFFSETS else 0), extra + number * TYPE_SIZES.get(kind, 0)
        if tag in _SIDES:
            size = TYPE_SIZES.get(kind, 0)
            side = int.from_bytes(value[:size], "little" if order == "<" else "big")
            sides[tag] = max(side, sides.get(tag, 0))
    _check(parts, extra)
    _check_tiles(*(sides.get(tag, 0) for tag in _SIDES))


def _check_tiles(width: int, height: int, tile_width: int, tile_height: int) -> None:
    """Checks the size of tiles: each is decoded whole, also if only a small part lies within the image."""
    if not tile_width or not tile_height:
        return
    pixels = -(-width // tile_width) * tile_width * -(-height // tile_height) * tile_height
    if pixels > TIFF_TILED_PIXELS:
        raise ValueError(f"its tiles have {pixels} pixels, and the limit is {TIFF_TILED_PIXELS}; save it again")
    fits = tile_width < width + _ROUNDING and tile_height < height + _ROUNDING
    if not fits and tile_width * tile_height > TIFF_TILE_PIXELS:
        raise ValueError(f"its tiles of {tile_width} x {tile_height} px are larger than the image; save it again")


def _check(parts: int, extra: int) -> None:
    if parts > IMAGE_PARTS:
        raise ValueError(f"it has more than {IMAGE_PARTS} chunks, segments, strips or tiles; save it again")
    if extra > IMAGE_EXTRA_BYTES:
        raise ValueError(f"it has more than {IMAGE_EXTRA_BYTES} bytes of metadata; save it without metadata")


_CHECKS: dict[bytes, Callable[[BinaryIO], None]] = {
    b"\x89PNG\r\n\x1a\n": _check_png,
    b"\xff\xd8\xff": _check_jpeg,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _check_tiff),
}

"""Where a TIFF says that its blocks lie, checked against the file's size: before, and without, any decoder.

Classic TIFF and BigTIFF of both byte orders, strips and tiles, one plane or several, and internal masks. No count in
the file is trusted: memory is bounded by :data:`MOST_BLOCKS`, and a million blocks take some 50 ms.

TIFF Revision 6.0 (1992), sections 2, 8 and 15; the BigTIFF design of libtiff (2007).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, UnreadableError
from misgnet_runtime.limits import GEOTIFF_BLOCKS

MOST_BLOCKS = GEOTIFF_BLOCKS  # of all planes of a file together
_MOST_DIRECTORIES, _MOST_ENTRIES = 1 << 16, 1 << 12
_PART = 1 << 20  # entries of a table that are read at once
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = (1, 3, 4, 9, 13, 16, 17, 18)  # types that hold whole numbers; negative ones count as huge
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_YCBCR = 6
(
    _SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _ROWS, _STRIP_SIZES, _PLANES,
    _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES,
) = 254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325  # fmt: skip
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """The blocks of an image or of its mask, each ``block_height`` x ``block_width`` pixels; flags are (P, R, C).

    ``absent``: a block's offset or length is 0, as a writer that was killed leaves it, or a sparse one;
    ``outside``: it does not lie within the file.
    """

    block_height: int
    block_width: int
    absent: Flags
    outside: Flags


@dataclass(frozen=True)
class TiffBlocks:
    """The first image of a file and its internal masks; ``planes``: 1 where all bands of a pixel are in one block."""

    height: int
    width: int
    planes: int
    image: Layer
    masks: tuple[Layer, ...]


@dataclass(frozen=True)
class _Entry:
    kind: int
    count: int
    at: int


_Directory = dict[int, _Entry]


def may_be_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does, or is too short to say; InputError where it cannot be read."""
    with _opened(path) as file:
        start = file.read(4)
    return any(known.startswith(start) for known in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def read_blocks(path: Path) -> TiffBlocks:
    """What a TIFF's directories say of its blocks.

    Raises UnreadableError where a directory or a tag's value lies beyond the end of the file, InputError where the
    directories are no such thing.
    """
    with _opened(path) as file:
        return _Reader(file, path).blocks()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"raster {path} cannot be read: {error.strerror}") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = file.seek(0, os.SEEK_END)
        start = self._bytes(0, 8, "header")
        self._order = "<" if start[:2] == b"II" else ">"
        self._big = start[2:4] in (b"+\0", b"\0+")
        self._word = 8 if self._big else 4  # bytes of an offset, a count and a value that needs no place of its own

    def blocks(self) -> TiffBlocks:
        directories = self._directories()
        image = next(directories, None)
        if image is None:
            raise self._damaged("it has no directory")
        height, width = self._number(image, _HEIGHT), self._number(image, _WIDTH)
        if not (height and width):
            raise self._damaged("its image has no size")
        masks = tuple(self._layer(found) for found in directories if self._is_mask(found, height, width))
        layer = self._layer(image)
        return TiffBlocks(height, width, len(layer.absent), layer, masks)

    def _is_mask(self, found: _Directory, height: int, width: int) -> bool:
        """Whether a directory is the mask of all of the first image, not of an overview."""
        size = self._number(found, _HEIGHT), self._number(found, _WIDTH)
        return self._number(found, _SUBFILE) & (_MASK | _REDUCED) == _MASK and size == (height, width)

    def _directories(self) -> Iterator[_Directory]:
        seen: set[int] = set()
        at = self._unpack(8 if self._big else 4, "Q" if self._big else "L", "header")
        while at:
            if at in seen or len(seen) == _MOST_DIRECTORIES:
                raise self._damaged(f"its directories have no end (byte {at:,})")
            seen.add(at)
            found, at = self._directory(at)
            yield found

    def _directory(self, at: int) -> tuple[_Directory, int]:
        """Its entries by tag, and where the next one lies."""
        count = self._unpack(at, "Q" if self._big else "H", "directory")
        if count > _MOST_ENTRIES:
            raise self._damaged(f"its directory at byte {at:,} has {count:,} entries")
        start, form = at + (8 if self._big else 2), f"{self._order}HH{'Q' if self._big else 'L'}"
        step = 4 + 2 * self._word
        content = self._bytes(start, count * step, "directory")
        found: _Directory = {}
        for place in range(0, count * step, step):
            tag, kind, values = struct.unpack_from(form, content, place)
            inline = values * _SIZES.get(kind, 0) <= self._word
            value = start + place + 4 + self._word
            if not inline:
                value = struct.unpack_from(form[0] + form[-1], content, place + 4 + self._word)[0]
            found.setdefault(tag, _Entry(kind, values, value))
        return found, self._unpack(start + count * step, "Q" if self._big else "L", "directory")

    def _layer(self, found: _Directory) -> Layer:
        """Raises UnreadableError where a tag's value lies beyond the end."""
        for tag, entry in found.items():
            if entry.at + entry.count * _SIZES.get(entry.kind, 0) > self._size:
                raise self._cut_off(f"tag {tag}")
        height, width = self._number(found, _HEIGHT), self._number(found, _WIDTH)
        tiled = _TILE_WIDTH in found or _TILE_HEIGHT in found
        block_height = self._number(found, _TILE_HEIGHT) if tiled else min(self._number(found, _ROWS, height), height)
        block_width = self._number(found, _TILE_WIDTH) if tiled else width
        if not (block_height and block_width):
            raise self._damaged("its blocks have no size")
        planes = self._number(found, _SAMPLES, 1) if self._number(found, _PLANES, 1) == 2 else 1
        shape = planes, -(-height // block_height), -(-width // block_width)
        if (count := shape[0] * shape[1] * shape[2]) > MOST_BLOCKS:
            raise InputError(
                f"raster {self._path} has {count:,} blocks, and {MOST_BLOCKS:,} are the most; write it in larger "
                "blocks (gdal_translate -co TILED=YES), or cut it into parts"
            )
        most = self._plain_bytes(found, (block_height, block_width), tiled, height)
        absent, outside = self._flags(found, count, most, shape[1:])
        return Layer(block_height, block_width, absent.reshape(shape), outside.reshape(shape))

    def _plain_bytes(
        self, found: _Directory, block: tuple[int, int], tiled: bool, height: int
    ) -> tuple[int, int] | None:
        """Bytes of a block that is not compressed, and of one in the last row of blocks; None where they are unknown.

        Some writers give the last strip the length of a whole one.
        """
        if self._number(found, _COMPRESSION, 1) != 1 or self._number(found, _PHOTOMETRIC) == _YCBCR:
            return None
        samples = 1 if self._number(found, _PLANES, 1) == 2 else self._number(found, _SAMPLES, 1)
        row = -(-block[1] * samples * self._number(found, _BITS, 1) // 8)
        last = block[0] if tiled else height - (height - 1) // block[0] * block[0]
        return row * block[0], row * last

    def _flags(
        self, found: _Directory, count: int, plain: tuple[int, int] | None, shape: tuple[int, ...]
    ) -> tuple[Flags, Flags]:
        """Of each block: whether it is absent, and whether it lies outside of the file."""
        offsets, sizes = found.get(_TILES, found.get(_STRIPS)), found.get(_TILE_SIZES, found.get(_STRIP_SIZES))
        if offsets is None:
            raise self._damaged("it does not say where its blocks lie")
        absent, outside = np.ones(count, np.bool_), np.zeros(count, np.bool_)
        end = np.uint64(self._size)
        for start in range(0, min(count, offsets.count), _PART):
            part = slice(start, min(start + _PART, count, offsets.count))
            at = self._values(offsets, part)
            size = self._lengths(sizes, part, plain, shape)
            absent[part] = (at == 0) | (size == 0)
            outside[part] = ~absent[part] & ((at >= end) | (size > end - np.minimum(at, end)))
        return absent, outside

    def _lengths(
        self, sizes: _Entry | None, part: slice, plain: tuple[int, int] | None, shape: tuple[int, ...]
    ) -> NDArray[np.uint64]:
        """Bytes of each block; at most what it needs where it is not compressed, 1 where nothing says."""
        number = part.stop - part.start
        if plain is None:
            needed = None
        else:
            row = np.arange(part.start, part.stop) // shape[1] % shape[0]
            needed = np.where(row == shape[0] - 1, plain[1], plain[0]).astype(np.uint64)
        if sizes is None:
            return np.ones(number, np.uint64) if needed is None else needed
        found = np.zeros(number, np.uint64)
        if sizes.count > part.start:
            there = self._values(sizes, slice(part.start, min(part.stop, sizes.count)))
            found[: len(there)] = there
        return found if needed is None else np.minimum(found, needed)

    def _values(self, entry: _Entry, part: slice) -> NDArray[np.uint64]:
        if entry.kind not in _WHOLE:
            raise self._damaged(f"a table of its blocks has type {entry.kind}")
        size = _SIZES[entry.kind]
        content = self._bytes(entry.at + part.start * size, (part.stop - part.start) * size, "table of blocks")
        return np.frombuffer(content, f"{self._order}u{size}").astype(np.uint64)

    def _number(self, found: _Directory, tag: int, without: int = 0) -> int:
        entry = found.get(tag)
        if entry is None or not entry.count:
            return without
        return int(self._values(entry, slice(0, 1))[0])

    def _unpack(self, at: int, form: str, what: str) -> int:
        number: int = struct.unpack(self._order + form, self._bytes(at, struct.calcsize(self._order + form), what))[0]
        return number

    def _bytes(self, at: int, count: int, what: str) -> bytes:
        if at + count > self._size:
            raise self._cut_off(what)
        try:
            self._file.seek(at)
            content = self._file.read(count)
        except (OSError, OverflowError) as error:
            raise InputError(f"raster {self._path} cannot be read: {error}") from error
        if len(content) < count:
            raise self._cut_off(what)
        return content

    def _cut_off(self, what: str) -> UnreadableError:
        return UnreadableError(
            f"raster {self._path} is truncated: its {what} lies beyond the end of the file ({self._size:,} bytes); "
            "fetch the file again"
        )

    def _damaged(self, why: str) -> InputError:
        return InputError(f"raster {self._path} is damaged or no TIFF: {why}; fetch the file again")

"""Checks the offsets and lengths of a TIFF's blocks against the file's size, before any decoder opens the file.

Supports classic TIFF and BigTIFF in both byte orders, strips and tiles, one plane or several, and internal masks. No
count in the file is trusted: memory is bounded by :data:`MOST_BLOCKS`, and a million blocks take about 50 ms.

TIFF Revision 6.0 (1992), sections 2, 8 and 15; the BigTIFF design of libtiff (2007).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import GEOTIFF_BLOCKS
from misgnet_runtime.raster.tiff import MASK, REDUCED, SUBFILE, TYPE_SIZES, Directory, Entry, TiffReader, opened
from misgnet_runtime.raster.tiling import Span

MOST_BLOCKS = GEOTIFF_BLOCKS  # of all planes together
_PART = 1 << 20  # entries of a table read at once
_YCBCR = 6
(
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _ROWS, _STRIP_SIZES, _PLANES,
    _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES,
) = 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325  # fmt: skip
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """The blocks of an image or of its mask; flags have the shape (planes, rows, columns) of blocks."""

    block_height: int  # pixels
    block_width: int  # pixels
    absent: Flags  # offset or length is 0: a sparse file, or a writer that was killed
    outside: Flags  # not within the file
    # First byte of each block, and the one after its last: uint64 (2, planes, rows, columns); None: not requested.
    positions: NDArray[np.uint64] | None = None

    def ranges(self, planes: Sequence[int], rows: Span, columns: Span) -> list[tuple[int, int]]:
        """Returns the byte ranges of the blocks that contain a window's pixels, where :attr:`positions` are known."""
        if self.positions is None:
            return []
        down = slice(rows.start // self.block_height, -(-rows.stop // self.block_height))
        across = slice(columns.start // self.block_width, -(-columns.stop // self.block_width))
        present = ~(self.absent | self.outside)[planes, down, across]
        starts, stops = self.positions[:, planes, down, across]
        return list(zip(starts[present].tolist(), stops[present].tolist(), strict=True))


@dataclass(frozen=True)
class TiffBlocks:
    """The blocks of a file's first image and of its internal masks."""

    height: int  # pixels
    width: int  # pixels
    planes: int  # 1: a block contains all bands
    image: Layer
    masks: tuple[Layer, ...]

    def ranges(self, bands: Iterable[int], rows: Span, columns: Span) -> list[tuple[int, int]]:
        """Returns the byte ranges of a window's blocks of ``bands`` (from 1) and masks; empty if not requested."""
        planes = [band - 1 for band in bands] if self.planes > 1 else [0]
        found = self.image.ranges(planes, rows, columns)
        for mask in self.masks:
            found += mask.ranges([0], rows, columns)
        return found


def read_blocks(path: Path) -> TiffBlocks:
    """Reads the blocks from a TIFF's directories.

    Raises:
        UnreadableError: A directory or a tag's value is beyond the end of the file.
        InputError: The directories are invalid.
    """
    with opened(path) as file:
        return blocks_of(file, path)


def blocks_of(file: BinaryIO, name: object, *, positions: bool = False) -> TiffBlocks:
    """Same as :func:`read_blocks`, of an open file whose text ``name`` appears in messages.

    With ``positions``, they are kept as well: 16 bytes for each block.
    """
    return _BlockReader(file, name).blocks(positions)


class _BlockReader(TiffReader):
    def blocks(self, positions: bool = False) -> TiffBlocks:
        self._keep = positions
        directories = self.directories()
        image = next(directories, None)
        if image is None:
            raise self.damaged("it has no directory")
        height, width = self.number(image, _HEIGHT), self.number(image, _WIDTH)
        if not (height and width):
            raise self.damaged("its image has no size")
        masks = tuple(self._layer(found) for found in directories if self._is_mask(found, height, width))
        layer = self._layer(image)
        return TiffBlocks(height, width, len(layer.absent), layer, masks)

    def _is_mask(self, found: Directory, height: int, width: int) -> bool:
        """Returns whether a directory is the mask of the first image, not of an overview."""
        size = self.number(found, _HEIGHT), self.number(found, _WIDTH)
        return self.number(found, SUBFILE) & (MASK | REDUCED) == MASK and size == (height, width)

    def _layer(self, found: Directory) -> Layer:
        """Reads the blocks of a directory; raises UnreadableError if a tag's value is beyond the end of the file."""
        for tag, entry in found.items():
            if entry.at + entry.count * TYPE_SIZES.get(entry.kind, 0) > self.size:
                raise self.cut_off(f"tag {tag}")
        height, width = self.number(found, _HEIGHT), self.number(found, _WIDTH)
        tiled = _TILE_WIDTH in found or _TILE_HEIGHT in found
        block_height = self.number(found, _TILE_HEIGHT) if tiled else min(self.number(found, _ROWS, height), height)
        block_width = self.number(found, _TILE_WIDTH) if tiled else width
        if not (block_height and block_width):
            raise self.damaged("its blocks have no size")
        planes = self.number(found, _SAMPLES, 1) if self.number(found, _PLANES, 1) == 2 else 1
        shape = planes, -(-height // block_height), -(-width // block_width)
        if (count := shape[0] * shape[1] * shape[2]) > MOST_BLOCKS:
            raise InputError(
                f"raster {self.name} has {count:,} blocks, and the limit is {MOST_BLOCKS:,}; write it in larger "
                "blocks (gdal_translate -co TILED=YES), or cut it into parts"
            )
        most = self._plain_bytes(found, (block_height, block_width), tiled, height)
        positions = np.zeros((2, count), np.uint64) if self._keep else None
        absent, outside = self._flags(found, positions, count, most, shape[1:])
        return Layer(
            block_height, block_width, absent.reshape(shape), outside.reshape(shape),
            None if positions is None else positions.reshape(2, *shape),
        )  # fmt: skip

    def _plain_bytes(
        self, found: Directory, block: tuple[int, int], tiled: bool, height: int
    ) -> tuple[int, int] | None:
        """Returns the bytes of an uncompressed block, and of one in the last row of blocks; None if compressed.

        Needed because some writers give the last strip the length of a whole one.
        """
        if self.number(found, _COMPRESSION, 1) != 1 or self.number(found, _PHOTOMETRIC) == _YCBCR:
            return None
        samples = 1 if self.number(found, _PLANES, 1) == 2 else self.number(found, _SAMPLES, 1)
        row = -(-block[1] * samples * self.number(found, _BITS, 1) // 8)
        last = block[0] if tiled else height - (height - 1) // block[0] * block[0]
        return row * block[0], row * last

    def _flags(
        self, found: Directory, positions: NDArray[np.uint64] | None, count: int, plain: tuple[int, int] | None,
        shape: tuple[int, ...],
    ) -> tuple[Flags, Flags]:  # fmt: skip
        """Returns, for each block, whether it is absent and whether it is outside of the file; fills ``positions``."""
        offsets, sizes = found.get(_TILES, found.get(_STRIPS)), found.get(_TILE_SIZES, found.get(_STRIP_SIZES))
        if offsets is None:
            raise self.damaged("it has no offsets of its blocks")
        absent, outside = np.ones(count, np.bool_), np.zeros(count, np.bool_)
        end = np.uint64(self.size)
        for start in range(0, min(count, offsets.count), _PART):
            part = slice(start, min(start + _PART, count, offsets.count))
            at = self.values(offsets, part)
            size = self._lengths(sizes, part, plain, shape)
            absent[part] = (at == 0) | (size == 0)
            outside[part] = ~absent[part] & ((at >= end) | (size > end - np.minimum(at, end)))
            if positions is not None:
                positions[:, part] = at, at + size
        return absent, outside

    def _lengths(
        self, sizes: Entry | None, part: slice, plain: tuple[int, int] | None, shape: tuple[int, ...]
    ) -> NDArray[np.uint64]:
        """Returns the bytes of each block: at most its uncompressed size, if known; 1 if the file has no lengths."""
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
            stored = self.values(sizes, slice(part.start, min(part.stop, sizes.count)))
            found[: len(stored)] = stored
        return found if needed is None else np.minimum(found, needed)

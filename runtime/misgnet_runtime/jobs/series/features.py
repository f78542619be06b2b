"""Reads and writes files of one date's features, so that a date is encoded once and compared with many.

The file begins with a record for each tile of the layout, row by row, all of equal size (:func:`record_type`): each
feature as float16, then a bit mask of the tile's pixels with data. Then follow a JSON footer, which describes the
records and holds each record's CRC-32; the footer's SHA-256 (32 bytes); its length (8 bytes); and 8 bytes that name
the format. All numbers are little-endian. Records are memory-mapped a few at a time, so memory use does not grow with
the scene.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import TensorEntry
from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import GateFailed, InputError
from misgnet_runtime.limits import FEATURES_FOOTER_BYTES
from misgnet_runtime.storage.files import is_not_regular_file
from misgnet_runtime.storage.jsonl import difference
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Positive, Struct

FORMAT = 1
SUFFIX = ".features"
_MAGIC = b"MISGFEAT"
_TAIL = 32 + 8 + len(_MAGIC)
_VALID = "pixels with data"
Block = tuple[Count, Count, Count, Count]


class Footer(Struct, frozen=True):
    """Describes the records of a file."""

    format: int
    settings: dict[str, str]  # input, bundle and options; the keys appear in messages
    tile: Positive  # width and height of a tile in pixels
    rows: list[Count]  # first pixel row of each row of tiles
    columns: list[Count]  # first pixel column of each column of tiles
    features: list[TensorEntry]  # as stated in the bundle
    holes: list[Block]  # unreadable blocks of the raster: first row, first column, height, width
    crc32: list[Count]  # of each record


@dataclass(frozen=True)
class FeatureFile:
    """A complete file of features."""

    path: Path
    footer: Footer
    sha256: str  # of the footer, whose checksums cover the rest of the file

    def read(self, tiles: range) -> NDArray[Any]:
        """Returns the records of neighbouring tiles; raises InputError if one does not match its checksum."""
        try:
            records = np.memmap(self.path, self.record, "r", shape=(len(self.footer.crc32),))
            found = np.array(records[tiles.start : tiles.stop])
        except (OSError, ValueError) as error:
            raise InputError(f"features {self.path} can no longer be read: {error}; encode the raster again") from error
        for index, tile in enumerate(tiles):
            if zlib.crc32(found[index : index + 1].view(np.uint8).data) != self.footer.crc32[tile]:
                raise InputError(
                    f"features {self.path} are damaged: tile {tile} does not match its checksum; remove the file and "
                    "encode the raster again"
                )
        return found

    @property
    def record(self) -> np.dtype[np.void]:
        return record_type(self.footer.features, self.footer.tile)

    def misfit(self, asked: Footer) -> str | None:
        """Returns how the file differs from ``asked``, a footer without unreadable blocks and checksums; None if equal.

        The text states both values of the settings that differ.
        """
        changes = difference(self.footer.settings, asked.settings)
        if changes is None and msgspec.structs.replace(self.footer, holes=[], crc32=[]) != asked:
            return "other tiles, by another version of this program"
        return changes


def record_type(features: Sequence[TensorEntry], tile: int) -> np.dtype[np.void]:
    """Returns the type of a tile's record: its features in order, float16, and a bit per pixel, row by row."""
    values = [(feature.name, "<f2", tuple(feature.shape[1:])) for feature in features]
    return np.dtype([*values, (_VALID, "u1", (-(-tile * tile // 8),))])


def pack(record: np.dtype[np.void], features: Sequence[NDArray[np.float32]], valid: Mask) -> NDArray[Any]:
    """Returns records (B,) of tiles with float32 features (B, ...) and masks of pixels with data, bool (B, T, T).

    Raises:
        GateFailed: A feature is NaN, Inf or exceeds float16.
    """
    packed = np.zeros(len(valid), record)
    packed[_VALID] = np.packbits(valid.reshape(len(valid), -1), axis=1)
    for name, values in zip(names_of(record), features, strict=True):
        with np.errstate(over="ignore"):
            packed[name] = values
        if not np.isfinite(packed[name]).all():
            highest = float(np.abs(values).max())
            raise GateFailed(
                f"the encoder's {name} reaches {highest:g}, but features are stored as float16, up to "
                f"{np.finfo(np.float16).max:g}; compare these dates with misgnet-run predict"
            )
    return packed


def names_of(record: np.dtype[np.void]) -> list[str]:
    """Returns the names of a record's features, in order."""
    return [name for name in record.names or () if name != _VALID]


def valid_pixels(records: NDArray[Any], tile: int) -> Mask:
    """Returns masks of the tiles' pixels with data, bool (B, T, T)."""
    bits = np.unpackbits(records[_VALID], axis=1, count=tile * tile)
    return bits.reshape(-1, tile, tile).view(np.bool_)


def footer_bytes(footer: Footer) -> bytes:
    """Returns the bytes that follow the records of a complete file."""
    content = msgspec.json.encode(footer)
    return content + hashlib.sha256(content).digest() + len(content).to_bytes(8, "little") + _MAGIC


def open_features(path: Path) -> FeatureFile:
    """Opens a file of features and checks its footer; the records are checked when they are read.

    Raises:
        InputError: The file is missing, not a file of features, truncated, damaged, or of another version.
    """
    if is_not_regular_file(path):
        raise InputError(f"features {path}: not a regular file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            content, digest = _read_footer(file, size, path)
    except OSError as error:
        raise InputError(f"features {path} cannot be read: {error.strerror}") from error
    footer = _decode(content, path)
    tiles = len(footer.rows) * len(footer.columns)
    try:
        records = tiles * record_type(footer.features, footer.tile).itemsize
    except (ValueError, TypeError, OverflowError) as error:  # raised by NumPy for invalid shapes and names
        raise InputError(f"features {path} have an invalid footer: {error}; encode the raster again") from error
    if len(footer.crc32) != tiles or size != records + len(content) + _TAIL:
        raise InputError(
            f"features {path} are damaged: their size does not match their footer; encode the raster again"
        )
    return FeatureFile(path, footer, digest)


def _read_footer(file: Any, size: int, path: Path) -> tuple[bytes, str]:
    """Returns the footer's bytes and their SHA-256."""
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[32:40], "little")
    if tail[40:] != _MAGIC or length > min(size - _TAIL, FEATURES_FOOTER_BYTES):
        raise InputError(f"{path} is not a file of features, or is truncated; encode the raster again")
    file.seek(size - _TAIL - length)
    content = file.read(length)
    if hashlib.sha256(content).digest() != tail[:32]:
        raise InputError(
            f"features {path} are damaged: their footer does not match its checksum; encode the raster again"
        )
    return content, tail[:32].hex()


class _Version(msgspec.Struct):
    format: int


def _decode(content: bytes, path: Path) -> Footer:
    try:
        if (version := msgspec.json.decode(content, type=_Version).format) != FORMAT:
            raise InputError(
                f"features {path} have format {version}, this version reads {FORMAT}; encode the raster again"
            )
        return msgspec.json.decode(content, type=Footer)
    except JSON_ERRORS as error:
        raise InputError(f"features {path} have an invalid footer: {error}; encode the raster again") from error

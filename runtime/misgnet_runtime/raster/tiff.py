"""Reads the directories and tags of a TIFF file without decoding pixels, and without Pillow or GDAL.

Supports classic TIFF and BigTIFF in both byte orders. TIFF Revision 6.0 (1992), section 2; the BigTIFF design of
libtiff (2007).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, UnreadableError
from misgnet_runtime.limits import GEOTIFF_DIRECTORIES
from misgnet_runtime.storage.files import is_file

ORIENTATION, PHOTOMETRIC, DATE_TIME = 274, 262, 306
# Tags that make a TIFF a raster instead of a picture: those of GeoTIFF, of sensor models (RPC), and of GDAL.
RASTER_TAGS = {
    33550: "a pixel scale", 33922: "tie points", 34264: "a transform", 34735: "a coordinate system",
    50844: "RPC coefficients", 42112: "GDAL metadata", 42113: "a nodata value",
}  # fmt: skip
MOST_DIRECTORIES = GEOTIFF_DIRECTORIES  # images, overviews and masks of one file
_ASCII, _MOST_TEXT, _MOST_NUMBERS = 2, 4096, 64  # type of text tags; limits of the bytes and numbers kept of a tag
_HEADER = 8  # bytes before the first directory
SUBFILE, _OLD_SUBFILE = 254, 255
REDUCED, MASK = 1, 4  # bits of NewSubfileType
# Bytes of a value by its type; types of whole numbers, where negative numbers are read as huge ones.
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE_TYPES = (1, 3, 4, 9, 13, 16, 17, 18)
_MOST_READ, _MOST_ENTRIES = 1 << 16, 1 << 12  # directories of a file, entries of a directory

Values = tuple[int, ...] | str | None


@dataclass(frozen=True)
class Entry:
    """A tag's entry in a directory."""

    kind: int  # type of the values
    count: int  # number of values
    at: int  # byte offset of the first value


Directory = dict[int, Entry]


@dataclass(frozen=True)
class TiffHeader:
    """The tags of a file's first directory, and the number of its images and masks."""

    tags: dict[int, Values]  # whole numbers or text; None: values of another type, or too many
    pages: int  # directories with full-size images, including the first one
    masks: int  # directories with transparency masks

    def number(self, tag: int, default: int) -> int:
        """Returns the first number of a tag, or ``default`` if the file has none."""
        values = self.tags.get(tag)
        return values[0] if isinstance(values, tuple) and values else default

    def text(self, tag: int) -> str | None:
        """Returns the text of a tag, or None."""
        values = self.tags.get(tag)
        return values if isinstance(values, str) else None

    @property
    def raster_properties(self) -> list[str]:
        """The properties that make the file a raster, for a message; empty for a picture."""
        return [words for tag, words in RASTER_TAGS.items() if tag in self.tags] + ["a mask"] * (self.masks > 0)


def is_tiff(path: Path) -> bool:
    """Returns whether a file starts like a TIFF; False if it cannot be read or is not a regular file."""
    try:
        if not is_file(path) or path.stat().st_size < _HEADER:
            return False
        with opened(path) as file:
            return may_be_tiff(file)
    except (InputError, OSError):
        return False


def may_be_tiff(file: BinaryIO) -> bool:
    """Returns whether an open file starts like a TIFF or is too short to decide."""
    start = file.read(4)
    return any(known.startswith(start) for known in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def read_header(path: Path) -> TiffHeader:
    """Reads the directories of a TIFF file.

    Raises:
        InputError: The file cannot be read, is not a TIFF, is incomplete, or has too many directories.
    """
    with path.open("rb") as file:
        return header_of(file, path)


def header_of(file: BinaryIO, name: object) -> TiffHeader:
    """Same as :func:`read_header`, of an open file whose text ``name`` appears in messages."""
    return _HeaderReader(file, name).header()


def opened(path: Path) -> BinaryIO:
    """Opens a file for reading; raises InputError if that fails."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"raster {path} cannot be read: {error.strerror}") from error


class TiffReader:
    """Reads the directories of an open file and the values of their entries. No count in the file is trusted.

    Raises UnreadableError for data beyond the end of the file, and InputError if the file is not a TIFF.
    """

    def __init__(self, file: BinaryIO, name: object) -> None:
        self._file, self.name = file, name
        self.size = file.seek(0, os.SEEK_END)
        start = self.bytes_at(0, 8, "header")
        self._order = "<" if start[:2] == b"II" else ">"
        self._big = start[2:4] in (b"+\0", b"\0+")
        self._word = 8 if self._big else 4  # bytes of an offset, of a count, and of values stored in the entry itself

    def directories(self) -> Iterator[Directory]:
        """Yields the file's directories in order."""
        visited: set[int] = set()
        at = self._unpack(8 if self._big else 4, "Q" if self._big else "L", "header")
        while at:
            if at in visited or len(visited) == _MOST_READ:
                raise self.damaged(f"its list of directories does not end (byte {at:,})")
            visited.add(at)
            found, at = self._directory(at)
            yield found

    def _directory(self, at: int) -> tuple[Directory, int]:
        """Returns the entries of a directory by tag, and the offset of the next directory."""
        count = self._unpack(at, "Q" if self._big else "H", "directory")
        if count > _MOST_ENTRIES:
            raise self.damaged(f"its directory at byte {at:,} has {count:,} entries")
        start, form = at + (8 if self._big else 2), f"{self._order}HH{'Q' if self._big else 'L'}"
        step = 4 + 2 * self._word
        content = self.bytes_at(start, count * step, "directory")
        found: Directory = {}
        for position in range(0, count * step, step):
            tag, kind, values = struct.unpack_from(form, content, position)
            inline = values * TYPE_SIZES.get(kind, 0) <= self._word
            value = start + position + 4 + self._word
            if not inline:
                value = struct.unpack_from(form[0] + form[-1], content, position + 4 + self._word)[0]
            found.setdefault(tag, Entry(kind, values, value))
        return found, self._unpack(start + count * step, "Q" if self._big else "L", "directory")

    def values(self, entry: Entry, part: slice) -> NDArray[np.uint64]:
        """Reads the values ``part`` of an entry of whole numbers."""
        if entry.kind not in _WHOLE_TYPES:
            raise self.damaged(f"a table of its blocks has type {entry.kind}")
        size = TYPE_SIZES[entry.kind]
        content = self.bytes_at(entry.at + part.start * size, (part.stop - part.start) * size, "table of blocks")
        return np.frombuffer(content, f"{self._order}u{size}").astype(np.uint64)

    def number(self, found: Directory, tag: int, default: int = 0) -> int:
        """Returns the first value of a tag, or ``default`` if the directory has none."""
        entry = found.get(tag)
        if entry is None or not entry.count:
            return default
        return int(self.values(entry, slice(0, 1))[0])

    def _unpack(self, at: int, form: str, what: str) -> int:
        number: int = struct.unpack(self._order + form, self.bytes_at(at, struct.calcsize(self._order + form), what))[0]
        return number

    def bytes_at(self, at: int, count: int, what: str) -> bytes:
        """Reads ``count`` bytes at offset ``at``; ``what`` names them in messages."""
        if at + count > self.size:
            raise self.cut_off(what)
        try:
            self._file.seek(at)
            content = self._file.read(count)
        except (OSError, OverflowError) as error:
            raise InputError(f"raster {self.name} cannot be read: {error}") from error
        if len(content) < count:
            raise self.cut_off(what)
        return content

    def cut_off(self, what: str) -> UnreadableError:
        return UnreadableError(
            f"raster {self.name} is truncated: its {what} is beyond the end of the file ({self.size:,} bytes); "
            "fetch the file again"
        )

    def damaged(self, why: str) -> InputError:
        return InputError(f"raster {self.name} is damaged or not a TIFF: {why}; fetch the file again")


class _HeaderReader(TiffReader):
    def header(self) -> TiffHeader:
        found = list(islice(self.directories(), MOST_DIRECTORIES + 1))
        if len(found) > MOST_DIRECTORIES:
            raise InputError(f"{self.name} has more than {MOST_DIRECTORIES:,} directories; check whether it is damaged")
        if not found:
            raise self.damaged("it has no directory")
        kinds = [self._kind(directory) for directory in found]
        tags = {tag: self._kept(entry) for tag, entry in found[0].items()}
        pages = sum(not kind & (REDUCED | MASK) for kind in kinds)
        return TiffHeader(tags, max(pages, 1), sum(bool(kind & MASK) for kind in kinds))

    def _kind(self, found: Directory) -> int:
        """Returns the bits of NewSubfileType, or of the older SubfileType, where 2 is a reduced image."""
        if SUBFILE in found:
            return self.number(found, SUBFILE)
        return REDUCED if self.number(found, _OLD_SUBFILE) == 2 else 0

    def _kept(self, entry: Entry) -> Values:
        if entry.kind == _ASCII and entry.count <= _MOST_TEXT:
            return self.bytes_at(entry.at, entry.count, "text").split(b"\0")[0].decode("latin-1")
        if entry.kind in _WHOLE_TYPES and entry.count <= _MOST_NUMBERS:
            return tuple(int(value) for value in self.values(entry, slice(0, entry.count)))
        return None

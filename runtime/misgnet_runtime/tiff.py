"""The tags of a TIFF file, read without decoding a pixel, and without Pillow or GDAL."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from misgnet_runtime.errors import InputError
from misgnet_runtime.files import is_file

ORIENTATION, PHOTOMETRIC, DATE_TIME = 274, 262, 306
# What makes a TIFF a raster and not a picture: the tags of GeoTIFF, of sensor models (RPC), and those of GDAL.
RASTER_TAGS = {
    33550: "a pixel scale", 33922: "tie points", 34264: "a transform", 34735: "a coordinate system",
    50844: "RPC coefficients", 42112: "GDAL metadata", 42113: "a nodata value",
}  # fmt: skip
MOST_DIRECTORIES = 1024  # images, overviews and masks of one file; a real one has about 30
MOST_ENTRIES = 4096  # tags of one directory; a real one has about 30
_MOST_TEXT, _MOST_NUMBERS = 4096, 64  # of a tag whose value is kept
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_SUBFILE, _OLD_SUBFILE = 254, 255
_REDUCED, _MASK = 1, 4

Values = tuple[int, ...] | str | None


@dataclass(frozen=True)
class TiffHeader:
    """A file's first directory by tag, and its others by what they are.

    Attributes:
        tags: Whole numbers or text of each tag of the first directory; None for values of another kind or size.
        pages: Directories that hold an image of their own, the first one included.
        masks: Directories that hold a transparency mask.
    """

    tags: dict[int, Values]
    pages: int
    masks: int

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag, ``default`` where the file has none."""
        values = self.tags.get(tag)
        return values[0] if isinstance(values, tuple) and values else default

    def text(self, tag: int) -> str | None:
        """The text of a tag, None where the file has none."""
        values = self.tags.get(tag)
        return values if isinstance(values, str) else None

    @property
    def raster_words(self) -> list[str]:
        """What makes the file a raster, for a message; empty for a picture."""
        return [words for tag, words in RASTER_TAGS.items() if tag in self.tags] + ["a mask"] * (self.masks > 0)


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does; False where it cannot be read, or is not a regular file."""
    try:
        if not is_file(path):
            return False
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except (OSError, ValueError):
        return False


def read_header(path: Path) -> TiffHeader:
    """Read the directories of a TIFF file.

    Raises:
        InputError: The file cannot be read, is not a TIFF, or has too many directories or tags.
    """
    try:
        with path.open("rb") as file:
            directories = list(_directories(file, path))
    except (OSError, struct.error) as error:
        raise InputError(f"{path} is not a complete TIFF file: {error}") from error
    kinds = [_kind(tags) for tags in directories]
    return TiffHeader(directories[0], sum(not kind & (_REDUCED | _MASK) for kind in kinds) or 1,
                      sum(bool(kind & _MASK) for kind in kinds))  # fmt: skip


def _kind(tags: dict[int, Values]) -> int:
    """The bits of NewSubfileType; the older SubfileType says 2 for a reduced image."""
    old = tags.get(_OLD_SUBFILE)
    if _SUBFILE not in tags and isinstance(old, tuple) and old:
        return _REDUCED if old[0] == 2 else 0
    found = tags.get(_SUBFILE)
    return found[0] if isinstance(found, tuple) and found else 0


def _directories(file: BinaryIO, path: Path) -> Iterator[dict[int, Values]]:
    start = file.read(4)
    order, big = ("<" if start[:2] == b"II" else ">"), start[2:] in (b"+\0", b"\0+")
    if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise InputError(f"{path} is not a TIFF file")
    offset, seen = _one(file, order + ("4xQ" if big else "I")), set[int]()
    while offset and offset not in seen:
        if len(seen) == MOST_DIRECTORIES:
            raise InputError(f"{path} has more than {MOST_DIRECTORIES:,} directories; is the file damaged?")
        seen.add(offset)
        file.seek(offset)
        yield _directory(file, order, big, path)
        try:
            offset = _one(file, order + ("Q" if big else "I"))
        except struct.error:  # the last directory is at the end of a file that was cut off: readers ignore that
            return


def _directory(file: BinaryIO, order: str, big: bool, path: Path) -> dict[int, Values]:
    count = _one(file, order + ("Q" if big else "H"))
    if count > MOST_ENTRIES:
        raise InputError(f"{path} has {count:,} tags in a directory, and {MOST_ENTRIES:,} are the most")
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    table = file.read(count * entry.size)
    after = file.tell()
    found = {tag: _values(file, order, big, *value) for tag, *value in entry.iter_unpack(table)}
    file.seek(after)
    return found


def _values(file: BinaryIO, order: str, big: bool, kind: int, count: int, inline: bytes) -> Values:
    size = _SIZES.get(kind, 1) * count
    if count > (_MOST_TEXT if kind == 2 else _MOST_NUMBERS) or (kind != 2 and kind not in _CODES):
        return None
    data = inline[:size]
    if size > len(inline):
        file.seek(struct.unpack(order + ("Q" if big else "I"), inline)[0])
        data = file.read(size)
    if kind == 2:
        return data.split(b"\0")[0].decode("latin-1")
    return struct.unpack(f"{order}{count}{_CODES[kind]}", data)


def _one(file: BinaryIO, form: str) -> int:
    """The next whole number of a file; struct.error at its end."""
    value = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return int(value)

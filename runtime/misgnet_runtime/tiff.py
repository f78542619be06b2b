"""What the tags of a TIFF file say of it, read without decoding a pixel, and without Pillow or GDAL."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from misgnet_runtime.errors import InputError
from misgnet_runtime.files import is_file
from misgnet_runtime.limits import GEOTIFF_DIRECTORIES
from misgnet_runtime.scenes import tiff_blocks

ORIENTATION, PHOTOMETRIC, DATE_TIME = 274, 262, 306
# What makes a TIFF a raster and not a picture: the tags of GeoTIFF, of sensor models (RPC), and those of GDAL.
RASTER_TAGS = {
    33550: "a pixel scale", 33922: "tie points", 34264: "a transform", 34735: "a coordinate system",
    50844: "RPC coefficients", 42112: "GDAL metadata", 42113: "a nodata value",
}  # fmt: skip
MOST_DIRECTORIES = GEOTIFF_DIRECTORIES  # images, overviews and masks of one file
_ASCII, _MOST_TEXT, _MOST_NUMBERS = 2, 4096, 64  # a type of tags; bytes and numbers of a value that is kept
_HEADER = 8  # bytes before the first directory
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
        return is_file(path) and path.stat().st_size >= _HEADER and tiff_blocks.may_be_tiff(path)
    except (InputError, OSError):
        return False


def read_header(path: Path) -> TiffHeader:
    """Read the directories of a TIFF file.

    Raises:
        InputError: The file cannot be read, is not a TIFF or not a complete one, or has too many directories.
    """
    with path.open("rb") as file:
        return _Reader(file, path).header()


class _Reader(tiff_blocks._Reader):
    def header(self) -> TiffHeader:
        found = list(islice(self._directories(), MOST_DIRECTORIES + 1))
        if len(found) > MOST_DIRECTORIES:
            raise InputError(f"{self._path} has more than {MOST_DIRECTORIES:,} directories; is the file damaged?")
        if not found:
            raise self._damaged("it has no directory")
        kinds = [self._kind(directory) for directory in found]
        tags = {tag: self._kept(entry) for tag, entry in found[0].items()}
        pages = sum(not kind & (_REDUCED | _MASK) for kind in kinds)
        return TiffHeader(tags, max(pages, 1), sum(bool(kind & _MASK) for kind in kinds))

    def _kind(self, found: tiff_blocks._Directory) -> int:
        """The bits of NewSubfileType; the older SubfileType says 2 for a reduced image."""
        if _SUBFILE in found:
            return self._number(found, _SUBFILE)
        return _REDUCED if self._number(found, _OLD_SUBFILE) == 2 else 0

    def _kept(self, entry: tiff_blocks._Entry) -> Values:
        if entry.kind == _ASCII and entry.count <= _MOST_TEXT:
            return self._bytes(entry.at, entry.count, "text").split(b"\0")[0].decode("latin-1")
        if entry.kind in tiff_blocks._WHOLE and entry.count <= _MOST_NUMBERS:
            return tuple(int(value) for value in self._values(entry, slice(0, entry.count)))
        return None

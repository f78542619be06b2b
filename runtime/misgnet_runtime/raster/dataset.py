"""Tile pairs in ``A/ B/ label/`` folders; larger images are cut into tiles as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from misgnet_runtime.callables import Mask, RgbImage
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.images import SUFFIXES, image_size, read_label, read_pair
from misgnet_runtime.raster.tiling import Cell, cover, cut
from misgnet_runtime.storage.snapshot import Snapshot

Images = tuple[RgbImage, RgbImage, Mask]


@dataclass
class _Seen:
    """What a source held when it was first read.

    ``size``: height and width by the headers; ``files``: SHA-256 of both dates' bytes together, and of the label's;
    ``dates``: SHA-256 of each date's pixels, once they were asked for.
    """

    size: tuple[int, int] | None = None
    files: tuple[str, str] | None = None
    dates: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """One image pair on disk, and its label where there is one. It holds the same bytes whenever it is read."""

    name: str
    before: Path
    after: Path
    label: Path | None
    seen: _Seen = field(default_factory=_Seen, repr=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.before, self.after, self.label) if path is not None)

    def size(self) -> tuple[int, int]:
        """As :func:`common_size`, kept from the first time."""
        if self.seen.size is None:
            self.seen.size = common_size(self)
        return self.seen.size


@dataclass(frozen=True)
class TileRef:
    """One tile of a source; nothing is read yet."""

    source: Source
    cell: Cell

    @property
    def name(self) -> str:
        """Source name, row and column of the tile's first pixel: ``test_35@256,0``."""
        return f"{self.source.name}@{self.cell.rows.start},{self.cell.columns.start}"


@dataclass(frozen=True)
class Tile:
    """Pixels of one tile: uint8 (T, T, 3) of both dates, and of the label bool (T, T)."""

    ref: TileRef
    before: RgbImage
    after: RgbImage
    label: Mask

    @property
    def owned(self) -> tuple[slice, slice]:
        """Where the tile's own pixels lie; the others belong to a neighbour or are padding."""
        return self.ref.cell.owned_in_tile()


class TileSet(Sequence[TileRef]):
    """All tiles of a folder, in the order of the names. Reading keeps one image pair in memory."""

    def __init__(self, root: Path, refs: tuple[TileRef, ...], tile: int) -> None:
        self.root = root
        self.tile = tile
        self._refs = refs

    @classmethod
    def open(cls, root: Path, tile: int = 256) -> TileSet:
        """Find the pairs of ``root`` and check names and sizes.

        Raises InputError that names the folder or file: a folder or a partner is missing, sizes differ,
        a header cannot be read.
        """
        refs = [TileRef(source, cell) for source in find_sources(root) for cell in cover(*source.size(), tile)]
        return cls(root, tuple(refs), tile)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's two overloads
        return self._refs[index]

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(dict.fromkeys(ref.source for ref in self._refs))

    def subset(self, indices: Sequence[int]) -> TileSet:
        """The tiles at ``indices``, in the order of the folder, so that each image is read once."""
        return TileSet(self.root, tuple(self._refs[i] for i in sorted(indices)), self.tile)

    def spread(self, count: int) -> TileSet:
        """At most ``count`` tiles, evenly spread over the set."""
        if len(self) <= count:
            return self
        return self.subset([i * len(self) // count for i in range(count)])

    def tiles(self) -> Iterator[Tile]:
        """Read the tiles one by one."""
        return (read_tile(ref) for ref in self._refs)

    def batches(self, size: int) -> Iterator[list[Tile]]:
        """Read the tiles in batches of ``size``; the last one may be smaller."""
        for start in range(0, len(self._refs), size):
            yield [read_tile(ref) for ref in self._refs[start : start + size]]

    def digest(self) -> str:
        """SHA-256 over the files' bytes and the tiles' names: the identity of what was measured on.

        These are the bytes that the tiles were decoded from, whatever the files hold by now.
        """
        total = hashlib.sha256()
        for source in self.sources:
            pair, label = _files_digests(source)
            total.update(pair.encode() + bytes.fromhex(label))
        for ref in self._refs:
            total.update(ref.name.encode() + b"\n")
        return total.hexdigest()


def read_tile(ref: TileRef) -> Tile:
    """Read one tile; InputError names the file that cannot be read or whose label has other values."""
    before, after, label = read_source(ref.source)
    return Tile(ref, cut(before, ref.cell), cut(after, ref.cell), cut(label, ref.cell))


def stack(tiles: Sequence[Tile]) -> tuple[RgbImage, RgbImage]:
    """uint8 (B, T, T, 3) of both dates."""
    return np.stack([t.before for t in tiles]), np.stack([t.after for t in tiles])


def load_source(source: Source) -> Images:
    """Both dates uint8 (H, W, 3) and the label bool (H, W) of a whole pair; InputError names a bad file."""
    before, after = read_pair(source.before, source.after)
    label = np.zeros(before.shape[:2], np.bool_) if source.label is None else read_label(source.label, source.before)
    if source.label is not None:
        _check_size(source.label, label.shape, source.before, before.shape[:2])
    return before, after, label


@lru_cache(maxsize=1)
def read_source(source: Source) -> Images:
    """As :func:`load_source`; the last pair is kept, since its tiles are read one after the other.

    Raises InputError where the files hold other bytes than when the source was first read: what is measured on a set
    of tiles, and named by its digest, is measured on one and the same set.
    """
    snapshot = Snapshot(source.paths)
    images = load_source(source)
    found = snapshot.sha256(source.before, source.after), snapshot.sha256(source.label) if source.label else ""
    snapshot.check()
    if source.seen.files not in (None, found) or images[0].shape[:2] != source.size():
        raise InputError(
            f"the files of the image pair {source.before} changed while they were in use; leave them as they are and "
            "run the same command again"
        )
    source.seen.files = found
    return images


def _files_digests(source: Source) -> tuple[str, str]:
    if source.seen.files is None:
        read_source(source)
    assert source.seen.files is not None
    return source.seen.files


def find_sources(root: Path, *, labelled: bool = True) -> list[Source]:
    """The image pairs of ``root`` by name; without ``labelled`` no folder ``label/`` is asked for.

    Raises InputError as :meth:`TileSet.open`.
    """
    return find_pairs(root / "A", root / "B", root / "label" if labelled else None)


def find_pairs(before: Path, after: Path, label: Path | None = None) -> list[Source]:
    """The images of two folders, and their labels where there is a folder of them, that have equal names.

    Raises InputError where a folder is missing or empty, or an image has no partner.
    """
    folders = [folder for folder in (before, after, label) if folder is not None]
    parts = [_images_by_stem(folder) for folder in folders]
    for folder, files in zip(folders, parts, strict=True):
        for stem, path in parts[0].items():
            if stem not in files:
                raise InputError(f"{path} has no partner in {folder}")
        for stem, path in files.items():
            if stem not in parts[0]:
                raise InputError(f"{path} has no partner in {before}")
    labels = parts[2] if label is not None else {}
    return [Source(s, p, parts[1][s], labels.get(s)) for s, p in sorted(parts[0].items())]


def _images_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(
            f"folder {folder} does not exist; images of a pair have equal names, each date in a folder of its own"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if not path.name.isprintable() and any("\ud800" <= character <= "\udfff" for character in path.name):
            raise InputError(f"the name of {str(path)!a} is not UTF-8; rename the file")
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} have the same name; which one is meant is not clear")
        found[path.stem] = path
    if not found:
        raise InputError(f"folder {folder} holds no images ({', '.join(SUFFIXES)})")
    return found


def common_size(source: Source) -> tuple[int, int]:
    """Height and width of a pair and its label, from the headers; InputError where they differ."""
    size = image_size(source.before)
    for path in source.paths[1:]:
        _check_size(path, image_size(path), source.before, size)
    return size


def _check_size(path: Path, size: tuple[int, ...], before: Path, wanted: tuple[int, ...]) -> None:
    if size != wanted:
        raise InputError(
            f"{path} is {size[1]} x {size[0]} px, {before} is {wanted[1]} x {wanted[0]} px; a pair has one size"
        )

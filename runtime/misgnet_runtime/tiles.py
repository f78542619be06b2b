"""Tile pairs in ``A/ B/ label/`` folders; larger images are cut into tiles as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from misgnet_runtime.errors import InputError
from misgnet_runtime.images import SUFFIXES, Mask, RgbImage, image_size, read_label, read_pair
from misgnet_runtime.tiling import Cell, cover, cut


@dataclass(frozen=True)
class Source:
    """One image pair on disk, and its label where there is one."""

    name: str
    before: Path
    after: Path
    label: Path | None


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
        refs = [TileRef(source, cell) for source in find_sources(root) for cell in cover(*common_size(source), tile)]
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
        """SHA-256 over the files' bytes and the tiles' names: the identity of what was measured on."""
        total = hashlib.sha256()
        for source in self.sources:
            total.update(source_digest(source).encode())
            if source.label is not None:
                total.update(hashlib.sha256(source.label.read_bytes()).digest())
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


@lru_cache(maxsize=4096)
def source_digest(source: Source) -> str:
    """SHA-256 over the bytes of both dates: equal images have equal digests, whatever their names."""
    total = hashlib.sha256()
    for path in (source.before, source.after):
        total.update(path.read_bytes())
    return total.hexdigest()


def check_disjoint(first: TileSet, second: TileSet, roles: tuple[str, str]) -> None:
    """InputError where an image pair is in both sets: what is judged must not have been decided on."""
    digests = {source_digest(source): source for source in first.sources}
    for source in second.sources:
        if twin := digests.get(source_digest(source)):
            raise InputError(
                f"the image pair {source.before} of the {roles[1]} set is also in the {roles[0]} set "
                f"({twin.before}); give each set images of its own"
            )


def load_source(source: Source) -> tuple[RgbImage, RgbImage, Mask]:
    """Both dates uint8 (H, W, 3) and the label bool (H, W) of a whole pair; InputError names a bad file."""
    before, after = read_pair(source.before, source.after)
    label = np.zeros(before.shape[:2], np.bool_) if source.label is None else read_label(source.label, source.before)
    return before, after, label


@lru_cache(maxsize=1)
def read_source(source: Source) -> tuple[RgbImage, RgbImage, Mask]:
    """As :func:`load_source`; the last pair is kept, since its tiles are read one after the other."""
    return load_source(source)


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
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} have the same name; which one is meant is not clear")
        found[path.stem] = path
    if not found:
        raise InputError(f"folder {folder} holds no images ({', '.join(SUFFIXES)})")
    return found


def common_size(source: Source) -> tuple[int, int]:
    """Height and width of a pair and its label, from the headers; InputError where they differ."""
    size = image_size(source.before)
    for path in (source.after, source.label):
        if path is not None and image_size(path) != size:
            found = image_size(path)
            raise InputError(
                f"{path} is {found[1]} x {found[0]} px, {source.before} is {size[1]} x {size[0]} px; "
                "a pair has one size"
            )
    return size

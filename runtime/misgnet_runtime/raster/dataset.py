"""Reads labelled tile pairs from ``A/ B/ label/`` directories; larger images are cut into tiles as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.errors import InputError
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.images import SUFFIXES, image_size, read_label, read_pair
from misgnet_runtime.raster.tiling import Cell, cover, cut
from misgnet_runtime.storage.snapshot import Snapshot

Images = tuple[Image, Image, Mask]
# Whether each image needs a label; without labels, "optional" accepts the folder, and "ignored" does not look for them.
Labels = Literal["required", "optional", "ignored"]


@dataclass
class _Observed:
    """The content of a source when it was first read; None: not read yet."""

    size: tuple[int, int] | None = None  # height and width in the headers
    files: tuple[str, str] | None = None  # SHA-256 of both dates' bytes together, and of the label's bytes
    dates: tuple[str, str] | None = None  # SHA-256 of each date's pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """One image pair on disk and its label, if any. Reading fails if the files changed since they were first read."""

    name: str
    before: Path
    after: Path
    label: Path | None
    pixels: PixelFormat = RGB8  # of both dates
    observed: _Observed = field(default_factory=_Observed, repr=False, init=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.before, self.after, self.label) if path is not None)

    def size(self) -> tuple[int, int]:
        """Returns :func:`common_size` of the files, cached."""
        if self.observed.size is None:
            self.observed.size = common_size(self)
        return self.observed.size


@dataclass(frozen=True)
class TileRef:
    """Refers to one tile of a source, which is not read yet."""

    source: Source
    cell: Cell

    @property
    def name(self) -> str:
        """The source's name, and row and column of the tile's first pixel: ``test_35@256,0``."""
        return f"{self.source.name}@{self.cell.rows.start},{self.cell.columns.start}"


@dataclass(frozen=True)
class Tile:
    """The pixels of one tile."""

    ref: TileRef
    before: Image  # (T, T, C)
    after: Image  # (T, T, C)
    label: Mask  # bool (T, T); all False if the source has no label

    @property
    def owned(self) -> tuple[slice, slice]:
        """Slices of the pixels that this tile owns; the others belong to a neighbour or are padding."""
        return self.ref.cell.owned_in_tile()


class TileSet(Sequence[TileRef]):
    """All tiles of a directory, in the order of their names. Reading holds one image pair in memory."""

    def __init__(self, root: Path, refs: tuple[TileRef, ...], tile: int) -> None:
        self.root = root
        self.tile = tile
        self._refs = refs

    @classmethod
    def open(cls, root: Path, tile: int = 256, pixels: PixelFormat = RGB8, *, labels: Labels = "required") -> TileSet:
        """Finds the image pairs of ``root`` and checks their names and sizes.

        Args:
            root: A directory with ``A/``, ``B/`` and ``label/``.
            tile: Side of a tile, T.
            pixels: The format that the images are read in; it must be theirs.
            labels: "optional" accepts a directory without ``label/``, whose labels are then all False.

        Raises:
            InputError: A directory or a partner image is missing, sizes differ, or a header cannot be read.
        """
        sources = find_sources(root, pixels, labels=labels)
        refs = [TileRef(source, cell) for source in sources for cell in cover(*source.size(), tile)]
        return cls(root, tuple(refs), tile)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's two overloads
        return self._refs[index]

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(dict.fromkeys(ref.source for ref in self._refs))

    @property
    def pixels(self) -> PixelFormat:
        """The format of the tiles' images."""
        return self._refs[0].source.pixels if self._refs else RGB8

    @property
    def labelled(self) -> bool:
        """Whether the tiles have labels; without, F1 cannot be measured."""
        return all(ref.source.label is not None for ref in self._refs)

    def subset(self, indices: Sequence[int]) -> TileSet:
        """Returns the tiles at ``indices``, in the order of the directory, so that each image is read once."""
        return TileSet(self.root, tuple(self._refs[i] for i in sorted(indices)), self.tile)

    def spread(self, count: int) -> TileSet:
        """Returns at most ``count`` tiles, evenly spread over the set."""
        if len(self) <= count:
            return self
        return self.subset([i * len(self) // count for i in range(count)])

    def tiles(self) -> Iterator[Tile]:
        """Reads the tiles one by one."""
        return (read_tile(ref) for ref in self._refs)

    def batches(self, size: int) -> Iterator[list[Tile]]:
        """Reads the tiles in batches of ``size``; the last batch may be smaller."""
        for start in range(0, len(self._refs), size):
            yield [read_tile(ref) for ref in self._refs[start : start + size]]

    def digest(self) -> str:
        """Returns the SHA-256 over the files' bytes and the tiles' names, which identifies the set in measurements.

        The bytes are those that the tiles were decoded from, also if the files changed since.
        """
        total = hashlib.sha256()
        for source in self.sources:
            pair, label = _files_digests(source)
            total.update(pair.encode() + bytes.fromhex(label))
        for ref in self._refs:
            total.update(ref.name.encode() + b"\n")
        return total.hexdigest()


def read_tile(ref: TileRef) -> Tile:
    """Reads one tile; raises InputError if a file cannot be read or the label has invalid values."""
    before, after, label = read_source(ref.source)
    return Tile(ref, cut(before, ref.cell), cut(after, ref.cell), cut(label, ref.cell))


def stack(tiles: Sequence[Tile]) -> tuple[Image, Image]:
    """Returns both dates of ``tiles`` as (B, T, T, C)."""
    return np.stack([t.before for t in tiles]), np.stack([t.after for t in tiles])


def load_source(source: Source) -> Images:
    """Reads a whole pair: both dates (H, W, C), and the label bool (H, W); raises InputError for a bad file.

    The label of a source without a label is all False.
    """
    before, after = read_pair(source.before, source.after, source.pixels)
    label = np.zeros(before.shape[:2], np.bool_) if source.label is None else read_label(source.label, source.before)
    if source.label is not None:
        _check_size(source.label, label.shape, source.before, before.shape[:2])
    return before, after, label


@lru_cache(maxsize=1)
def read_source(source: Source) -> Images:
    """Same as :func:`load_source`; caches the last pair, since its tiles are read in succession.

    Raises InputError if the files changed since the source was first read: all measurements that carry the digest of a
    set must use the same pixels.
    """
    snapshot = Snapshot(source.paths)
    images = load_source(source)
    found = snapshot.sha256(source.before, source.after), snapshot.sha256(source.label) if source.label else ""
    snapshot.check()
    if source.observed.files not in (None, found) or images[0].shape[:2] != source.size():
        raise InputError(
            f"the files of the image pair {source.before} changed while they were in use; do not modify them, and "
            "rerun the command"
        )
    source.observed.files = found
    return images


def _files_digests(source: Source) -> tuple[str, str]:
    if source.observed.files is None:
        read_source(source)
    assert source.observed.files is not None
    return source.observed.files


def find_sources(root: Path, pixels: PixelFormat = RGB8, *, labels: Labels = "required") -> list[Source]:
    """Returns the image pairs of ``root``, sorted by name, with their labels in ``label/`` according to ``labels``.

    Raises InputError if a directory is missing or empty, or an image has no partner.
    """
    _check_root(root)
    label = root / "label"
    used = labels == "required" or (labels == "optional" and label.exists())
    return find_pairs(root / "A", root / "B", label if used else None, pixels)


def _check_root(root: Path) -> None:
    """Raises InputError for the folder above those of the splits, as downloads and misgnet prepare make it."""
    if (root / "A").is_dir() or not root.is_dir():
        return
    if splits := sorted(folder.name for folder in root.iterdir() if (folder / "A").is_dir()):
        raise InputError(
            f"directory {root} has no A/, but its {', '.join(splits)} have one; pass one of these, such as "
            f"{root / splits[0]}"
        )


def find_pairs(before: Path, after: Path, label: Path | None = None, pixels: PixelFormat = RGB8) -> list[Source]:
    """Returns the images of two directories, and of the directory ``label`` if given, matched by name.

    ``pixels`` is the format that the dates are read in. Raises InputError if a directory is missing or empty, or an
    image has no partner.
    """
    for one, other in (before, after), (after, before):
        if one.is_dir() and other.is_file():
            kinds = ("directory", "file") if one is before else ("file", "directory")
            raise InputError("BEFORE is a {} but AFTER is a {}; pass two files or two directories".format(*kinds))
    folders = [folder for folder in (before, after, label) if folder is not None]
    parts = [_images_by_stem(folder, is_label=folder is label) for folder in folders]
    for folder, files in zip(folders[1:], parts[1:], strict=True):
        _check_partners(parts[0], files, folder)
        _check_partners(files, parts[0], before)
    labels = parts[2] if label is not None else {}
    return [
        Source(name=name, before=path, after=parts[1][name], label=labels.get(name), pixels=pixels)
        for name, path in sorted(parts[0].items())
    ]


def _check_partners(files: Mapping[str, Path], others: Mapping[str, Path], folder: Path) -> None:
    """Raises InputError if one of ``files`` has no partner among ``others``, the files of ``folder``."""
    if not (alone := [path for stem, path in files.items() if stem not in others]):
        return
    more = f" ({len(alone):,} of {len(files):,} files have none)" if len(alone) > 1 else ""
    raise InputError(
        f"{alone[0]} has no partner in {folder}{more}; files of a pair have equal names, and {folder} has "
        f"{', '.join(path.name for path in [*others.values()][:3])}{', ...' * (len(others) > 3)}"
    )


def _images_by_stem(folder: Path, *, is_label: bool = False) -> dict[str, Path]:
    if not folder.is_dir():
        need = "each date needs its own directory, with equal file names in both"
        if is_label:
            need = "scores need a label of each pair, an image of the pair's name with 0 and 255"
        raise InputError(f"directory {folder} does not exist; {need}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if not path.name.isprintable() and any("\ud800" <= character <= "\udfff" for character in path.name):
            raise InputError(f"the name of {str(path)!a} is not UTF-8; rename the file")
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} have the same name; remove or rename one of them")
        found[path.stem] = path
    if not found:
        raise InputError(f"directory {folder} contains no images ({', '.join(SUFFIXES)})")
    return found


def common_size(source: Source) -> tuple[int, int]:
    """Returns height and width of a pair and its label from the headers; raises InputError if they differ."""
    size = image_size(source.before, source.pixels)
    _check_size(source.after, image_size(source.after, source.pixels), source.before, size)
    if source.label is not None:
        _check_size(source.label, image_size(source.label), source.before, size)
    return size


def _check_size(path: Path, size: tuple[int, ...], before: Path, wanted: tuple[int, ...]) -> None:
    if size != wanted:
        raise InputError(
            f"{path} is {size[1]} x {size[0]} px, {before} is {wanted[1]} x {wanted[0]} px; both must have the same "
            "size"
        )

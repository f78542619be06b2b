"""Finds the image pairs of LEVIR-CD and SYSU-CD, whose downloads are already split into folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from misgnet.datasets.record import SCHEMA, Dataset, Header
from misgnet.datasets.split import SPLITS
from misgnet.datasets.units import Plan, Skipped, TilePixels
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import Source
from misgnet_runtime.raster.images import SUFFIXES, image_size, read_label, read_pair
from misgnet_runtime.raster.tiling import Cell, cover, cut


@dataclass(frozen=True)
class Layout:
    """Folder layout and published size of a data set."""

    title: str
    parts: tuple[str, str, str]  # folders of the earlier date, the later date and the label
    official: dict[str, int]  # published number of pairs by split

    def __str__(self) -> str:
        return f"{self.title} has the folders {{{','.join(SPLITS)}}}/{{{','.join(self.parts)}}}/ with equal file names"


LAYOUTS: dict[Dataset, Layout] = {
    "levir": Layout("LEVIR-CD", ("A", "B", "label"), {"train": 445, "val": 64, "test": 128}),
    "sysu": Layout("SYSU-CD", ("time1", "time2", "label"), {"train": 12000, "val": 4000, "test": 4000}),
}
_TILE_NAME = re.compile(r"(.+)_\d{5,}_\d{5,}")


@dataclass(frozen=True)
class PairUnit:
    """One image pair of a data set."""

    split: str  # published split
    source: Source
    label: Path
    tile: int  # side of a tile, pixels

    @property
    def key(self) -> str:
        return f"{self.split}/{self.source.name}"

    @property
    def sources(self) -> tuple[Path, ...]:
        return self.source.before, self.source.after, self.label

    def read(self) -> list[TilePixels]:
        """Returns the tiles of the pair in row-major order; raises InputError with the name of a faulty file."""
        before, after = read_pair(self.source.before, self.source.after)
        label = read_label(self.label, self.source.before)
        height, width = label.shape
        if label.shape != before.shape[:2]:
            raise InputError(
                f"{self.label} is {width} x {height} px, {self.source.before} is "
                f"{before.shape[1]} x {before.shape[0]} px; a pair and its label must have the same size"
            )
        cells = cover(height, width, self.tile)
        names = tile_names(self.source.name, cells)
        return [
            TilePixels(self.split, name, cut(before, cell), cut(after, cell), cut(label, cell))
            for name, cell in zip(names, cells, strict=True)
        ]


def tile_names(stem: str, cells: list[Cell]) -> list[str]:
    """Returns ``stem`` for a single tile, else a name for each tile that ends with the row and column of its corner."""
    if len(cells) == 1:
        return [stem]
    return [f"{stem}_{cell.rows.start:05d}_{cell.columns.start:05d}" for cell in cells]


def plan_pairs(dataset: Dataset, source: Path, tile: int) -> Plan:
    """Finds all pairs in ``source`` by file name, without reading the images.

    Raises InputError if a folder or the partner of an image is missing, or if two files would produce tiles of the
    same name.
    """
    layout = LAYOUTS[dataset]
    _check_folders(source, layout)
    units: list[PairUnit] = []
    skipped = _unknown_entries(source, SPLITS)
    for split in SPLITS:
        files = {part: _images(source / split / part, skipped) for part in layout.parts}
        skipped += _unknown_entries(source / split, layout.parts)
        _check_partners(source / split, files)
        before, after, label = files.values()
        sources = [Source(name=name, before=before[name], after=after[name], label=None) for name in sorted(before)]
        pairs = [PairUnit(split, source, label[source.name], tile) for source in sources]
        _check_tile_names(pairs)
        units += pairs
    found = {split: sum(unit.split == split for unit in units) for split in SPLITS}
    return Plan(
        header=Header(format=SCHEMA.format, dataset=dataset, tile=tile, splits=found),
        units=tuple(units),
        found=found,
        official=layout.official,
        skipped=tuple(skipped),
    )


def _check_folders(source: Path, layout: Layout) -> None:
    for folder in (source, *(source / split for split in SPLITS)):
        wanted = SPLITS if folder == source else layout.parts
        lacking = [name for name in wanted if not (folder / name).is_dir()]
        if lacking:
            raise InputError(
                f"{folder} does not contain {', '.join(f'{name}/' for name in lacking)}; {layout}; {describe(folder)}"
            )


def describe(folder: Path) -> str:
    """Returns the content of ``folder`` and advice about it, for a message."""
    inside = _listed(folder)
    names = [path.name + ("/" if path.is_dir() else "") for path in inside]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    packed = [path.name for path in inside if path.suffix.lower() in (".zip", ".rar", ".7z", ".gz", ".tar", ".tgz")]
    nested = [path for path in inside if all((path / split).is_dir() for split in SPLITS)]
    advice = f"; unpack {', '.join(packed)} first" if packed else f"; did you mean {nested[0]}?" if nested else ""
    return f"found: {shown or 'nothing'}{advice}"


def _unknown_entries(folder: Path, known: Iterable[str]) -> list[Skipped]:
    return [Skipped(p, "not part of the data set") for p in _listed(folder) if p.name not in known]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"folder {folder} cannot be listed: {error.strerror}") from error


def _images(folder: Path, skipped: list[Skipped]) -> dict[str, Path]:
    """Returns the images of ``folder`` by stem, and adds all other entries to ``skipped``."""
    found: dict[str, Path] = {}
    for path in _listed(folder):
        if reason := _reason_to_skip(path):
            skipped.append(Skipped(path, reason))
            continue
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} would produce tiles of the same name; remove one of them")
        found[path.stem] = path
    if not found:
        raise InputError(f"folder {folder} contains no images ({', '.join(SUFFIXES)}); {describe(folder)}")
    return found


def _reason_to_skip(path: Path) -> str | None:
    """Returns the reason to skip a file, or None for an image; raises InputError if its name is not UTF-8."""
    if path.name.startswith("."):
        return "a hidden file"
    if path.suffix.lower() not in SUFFIXES:
        return "a folder" if path.is_dir() else f"not an image by its name ({', '.join(SUFFIXES)})"
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name of {str(path)!a} is not UTF-8; rename the file") from error
    return None


def _check_partners(folder: Path, files: Mapping[str, Mapping[str, Path]]) -> None:
    for part, images in files.items():
        for other, partners in files.items():
            alone = sorted(images.keys() - partners.keys())
            if alone:
                others = plural(len(alone) - 1, "other image")
                more = f"; {others} of {part} also have none" if len(alone) > 1 else ""
                raise InputError(f"{folder / part / images[alone[0]].name} has no partner in {folder / other}{more}")


def _check_tile_names(pairs: list[PairUnit]) -> None:
    """Raises InputError if two images would produce tiles of the same name.

    This happens only for a small image a_00000_00256 and a large image a, so only headers of such images are read.
    """
    by_stem = {pair.source.name: pair for pair in pairs}
    for stem, pair in by_stem.items():
        match = _TILE_NAME.fullmatch(stem)
        other = by_stem.get(match[1]) if match else None
        if other is not None and set(_names(pair)) & set(_names(other)):
            raise InputError(
                f"{pair.source.before} and {other.source.before} would produce tiles of the same name; rename one"
            )


def _names(pair: PairUnit) -> list[str]:
    return tile_names(pair.source.name, cover(*image_size(pair.source.before), pair.tile))

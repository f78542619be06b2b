"""Prepares a data set: finds its image pairs or strips, writes the missing tiles and reports the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from misgnet.datasets.layouts import plan_pairs
from misgnet.datasets.rasters import Role, find_rasters
from misgnet.datasets.record import RECORD, SCHEMA, START_OVER, Dataset, Done, Header, Record, open_record
from misgnet.datasets.scene import check_label, open_scene, strips
from misgnet.datasets.split import SPLITS, Edges, assign_splits, grid
from misgnet.datasets.units import Plan, Skipped, Unit
from misgnet.datasets.writing import PARTS, TileWriter, digest_on_disk, tile_writer
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.storage.atomic import replace_folder
from misgnet_runtime.storage.snapshot import Snapshot

_WHU_SIZE, _WHU_TILE = (15354, 32570), 256
_WHU_COUNTS = {"train": 6096, "val": 762, "test": 762}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options of :func:`prepare`; ``seed``, ``edges`` and the rasters apply only to WHU-CD."""

    tile: int = 256  # side of a tile in pixels, a multiple of 32
    seed: int = 0  # of the random split
    edges: Edges = "keep"  # whether tiles of which less than half is scene go to train ("keep") or are omitted ("drop")
    before: Path | None = None  # raster of the earlier date; None: found by its name
    after: Path | None = None  # raster of the later date; None: found by its name
    label: Path | None = None  # raster with the change label; None: found by its name
    force: bool = False  # prepare all tiles again

    @property
    def rasters(self) -> dict[Role, Path]:
        """Returns the given rasters by role."""
        named: dict[Role, Path | None] = {"before": self.before, "after": self.after, "label": self.label}
        return {role: path for role, path in named.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Result for one split."""

    name: str
    found: int  # image pairs, or tiles of the scene that were drawn at random
    official: int | None  # published number of image pairs or tiles
    tiles: int
    written: int  # tiles of which a file was missing or different
    changed: float  # share of changed pixels, 0 to 1

    @property
    def kept(self) -> int:
        """Returns the number of tiles that existed already."""
        return self.tiles - self.written


@dataclass(frozen=True)
class PrepareReport:
    """Result of :func:`prepare`."""

    dataset: Dataset
    splits: tuple[SplitReport, ...]
    edge_tiles: int  # tiles at the edge of the scene, which are all in train
    skipped: tuple[Skipped, ...]
    foreign: tuple[Path, ...]  # files among the tiles that are not in the record


@dataclass(frozen=True)
class _Outcome:
    done: Done
    new: frozenset[str] = frozenset()  # keys of tiles that were written


def prepare(
    dataset: Dataset,
    source: Path,
    output: Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Cuts a downloaded data set into tiles; tiles that exist already are checked and kept.

    Args:
        dataset: Name of the data set.
        source: Folder with the unpacked download.
        output: Folder for the tiles.
        options: Options (default: those of :class:`PrepareOptions`).
        progress: Called with the number of finished image pairs (or strips of the scene) and their total number.

    Returns:
        The number of pairs and tiles by split, and the files that were skipped.

    Raises:
        UsageError: If an option is invalid or ``output`` is not suitable.
        InputError: If the source is incomplete, damaged or has changed since the last run, or the disk is full.
            Finished tiles are kept.
        UnavailableError: If rasterio is needed and not installed.
    """
    options = options or PrepareOptions()
    _check_options(dataset, options)
    _check_paths(source, output, options)
    if options.force:
        with _open_plan(dataset, source, options) as plan, replace_folder(output) as folder:
            return _run(plan, folder, progress)
    with _open_plan(dataset, source, options) as plan:
        return _run(plan, output, progress)


def _check_options(dataset: Dataset, options: PrepareOptions) -> None:
    if options.tile % 32 or not 32 <= options.tile <= 4096:
        raise UsageError(f"--tile is {options.tile}; it must be a multiple of 32 from 32 to 4096")
    if options.seed < 0:
        raise UsageError(f"--seed is {options.seed}; it must be 0 or more")
    if dataset != "whu" and options.rasters:
        raise UsageError(f"--{next(iter(options.rasters))} names a raster; only whu has rasters, {dataset} has none")


def _check_paths(source: Path, output: Path, options: PrepareOptions) -> None:
    target, origin = output.resolve(), source.resolve()
    if target == origin or origin in target.parents:
        raise UsageError(f"output {output} is inside the source {source}; choose another -o")
    for path in (origin, *(raster.resolve() for raster in options.rasters.values())):
        if target in path.parents:
            raise UsageError(f"output {output} contains the source {path}; choose another -o")
    if output.exists() and not output.is_dir():
        raise UsageError(f"output {output} is a file; choose another -o")
    if not options.force and output.exists() and not (output / RECORD).exists() and any(output.iterdir()):
        raise UsageError(
            f"output {output} is not empty and has no {RECORD}, so `misgnet prepare` did not create it; choose another "
            "-o, or replace it with --force"
        )


@contextmanager
def _open_plan(dataset: Dataset, source: Path, options: PrepareOptions) -> Iterator[Plan]:
    if dataset != "whu":
        yield plan_pairs(dataset, source, options.tile)
        return
    found = find_rasters(source, options.rasters)
    with open_scene(found.rasters, options.tile) as scene:
        size = (scene.height, scene.width)
        assigned = assign_splits(grid(*size, options.tile), options.tile, options.seed, options.edges)
        if not assigned:
            raise InputError(f"all tiles of {options.tile} px of the scene {source} are edge tiles; use --edges keep")
        check_label(scene, options.tile)
        rasters = {role: scene.snapshot.sha256(path) for role, path in found.rasters.items()}
        header = Header(
            format=SCHEMA.format,
            dataset=dataset,
            tile=options.tile,
            splits={split: sum(p.split == split for p in assigned) for split in SPLITS},
            seed=options.seed,
            edges=options.edges,
            size=size,
            rasters=rasters,
        )
        drawn = {split: sum(p.split == split and not p.is_edge for p in assigned) for split in SPLITS}
        official = _WHU_COUNTS if (size, options.tile) == (_WHU_SIZE, _WHU_TILE) else None
        units, edge_tiles = strips(scene, assigned, options.tile), len(assigned) - sum(drawn.values())
        yield Plan(
            header=header, units=units, found=drawn, official=official, skipped=found.skipped, rasters=found.rasters,
            edge_tiles=edge_tiles,
        )  # fmt: skip


def _run(plan: Plan, folder: Path, progress: Progress | None) -> PrepareReport:
    outcomes = []
    with open_record(folder, plan.header, plan.rasters) as record, tile_writer(folder) as writer:
        _check_known(plan.units, record)
        for count, unit in enumerate(plan.units, 1):
            outcomes.append(_finish(unit, record, writer))
            if progress is not None:
                progress(count, len(plan.units))
    return _report(plan, outcomes, folder)


def _check_known(units: Iterable[Unit], record: Record) -> None:
    gone = sorted(record.done.keys() - {unit.key for unit in units})
    if gone:
        raise InputError(f"{gone[0]} was prepared earlier and is no longer in the source; {START_OVER}")


def _finish(unit: Unit, record: Record, writer: TileWriter) -> _Outcome:
    """Writes and records the tiles of a unit, unless they are complete."""
    known = record.done.get(unit.key)
    snapshot = Snapshot(unit.sources)
    digests = tuple(map(snapshot.sha256, unit.sources))
    if known is not None:
        for path, now, then in zip(unit.sources, digests, known.sources, strict=False):
            if now != then:
                raise InputError(f"{path} has changed since its tiles were written; {START_OVER}")
        if digest_on_disk(writer.folder, known.tiles) == known.sha256:
            return _Outcome(known)
    tiles = unit.read()
    snapshot.check()
    written = writer.write(tiles)
    changed: Counter[str] = Counter()
    for tile in tiles:
        changed[tile.split] += int(tile.label.sum())
    done = Done(unit.key, digests, tuple(tile.key for tile in tiles), written.sha256, dict(changed))
    if done != known:
        record.add(done)
    return _Outcome(done, written.new)


def _report(plan: Plan, outcomes: list[_Outcome], folder: Path) -> PrepareReport:
    keys = [key for outcome in outcomes for key in outcome.done.tiles]
    tiles = Counter(key.partition("/")[0] for key in keys)
    new = Counter(key.partition("/")[0] for outcome in outcomes for key in outcome.new)
    changed: Counter[str] = Counter()
    for outcome in outcomes:
        changed.update(outcome.done.changed)
    area = plan.header.tile**2
    splits = tuple(
        SplitReport(
            name=split, found=plan.found[split], official=plan.official[split] if plan.official else None,
            tiles=tiles[split], written=new[split],
            changed=changed[split] / (tiles[split] * area) if tiles[split] else 0.0,
        )
        for split in SPLITS
    )  # fmt: skip
    return PrepareReport(
        plan.header.dataset, splits, plan.edge_tiles, plan.skipped, tuple(_foreign(folder, frozenset(keys)))
    )


def _foreign(folder: Path, keys: frozenset[str]) -> Iterator[Path]:
    """Yields files that are not in the record but would be read as tiles; hidden files are ignored."""
    for split in SPLITS:
        for part in PARTS:
            for path in sorted((folder / split / part).glob("[!.]*")):
                if path.suffix != ".png" or f"{split}/{path.stem}" not in keys:
                    yield path.relative_to(folder)

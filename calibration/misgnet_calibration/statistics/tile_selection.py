"""Selects calibration tiles: a few that represent thousands.

The tiles are split into strata by their share of change and their brightness. Each stratum contributes a number of
tiles. Within a stratum, tiles are picked that are far from one another in the features of the float encoder, or in
statistics of their pixels if no encoder is known (greedy k-centre: Gonzalez, "Clustering to minimize the maximum
intercluster distance", 1985). This includes rare kinds of tiles, and excludes near duplicates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import Tile, TileSet, stack

MIN_TILES = 16
RECOMMENDED_TILES = 100
CHANGE_BOUNDS = (0.0, 0.05, 0.2)  # no change; up to 5 %; up to 20 %; more
BRIGHTNESS_CLASSES = 3  # with the same number of tiles each
_FEATURES = 64  # maximum number of feature values kept per tile
_BATCH = 4

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
FeatureExtractor = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]  # of ``Pixels`` of both dates


class FewTilesWarning(UserWarning):
    """Fewer calibration tiles than recommended."""


@dataclass(frozen=True)
class TileSummary:
    """Properties of a tile that the selection uses."""

    name: str
    changed: float  # share of changed pixels, 0 to 1
    brightness: float  # mean of all bands, 0 to 1
    features: NDArray[np.float32]  # (F,)


@dataclass(frozen=True)
class Picked:
    """A tile that was picked, with the reason."""

    name: str
    stratum: str
    changed: float
    brightness: float
    distance: float | None  # to the nearest tile picked before, in standard deviations; None for a stratum's first


@dataclass(frozen=True)
class Stratum:
    """One kind of tiles."""

    name: str
    tiles: int  # tiles in the stratum
    picked: int  # of these, tiles that were picked


@dataclass(frozen=True)
class Selection:
    """The tiles that were picked, in the order of the folder, with the reasons."""

    tiles: TileSet
    picked: tuple[Picked, ...]
    strata: tuple[Stratum, ...]


def select_tiles(
    tiles: TileSet, count: int, seed: int, features: FeatureExtractor, progress: Progress | None = None
) -> Selection:
    """Returns ``count`` tiles that represent ``tiles``, or all of them if there are fewer.

    ``features`` maps tiles (B, T, T, C) of both dates, uint8 or uint16, to features float32 (B, F): those of the float
    encoder, or :func:`pixel_features`. Tiles are read in batches, and only a few numbers of each are kept. The same
    seed picks the same tiles. Raises InputError below 16 tiles, warns with FewTilesWarning below 100.
    """
    check_count(tiles, count)
    summaries = describe_tiles(tiles, features, seed, progress)
    chosen, strata = pick(summaries, min(count, len(tiles)), seed)
    return Selection(tiles.subset(list(chosen)), tuple(chosen.values()), strata)


def draw_tiles(tiles: TileSet, count: int, seed: int) -> TileSet:
    """Returns ``count`` random tiles, or all of them if there are fewer; raises as :func:`select_tiles`."""
    check_count(tiles, count)
    indices = np.random.default_rng(seed).choice(len(tiles), min(count, len(tiles)), replace=False)
    return tiles.subset(indices.tolist())


def check_count(tiles: TileSet, count: int) -> None:
    """Raises InputError below 16 tiles, warns with FewTilesWarning below 100."""
    chosen = min(count, len(tiles))
    if chosen < MIN_TILES:
        raise InputError(
            f"{plural(chosen, 'calibration tile')} ({len(tiles)} in {tiles.root}, {count} requested); at least "
            f"{MIN_TILES} are required, and {RECOMMENDED_TILES} or more are recommended"
        )
    if chosen < RECOMMENDED_TILES:
        found = f"only {plural(chosen, 'calibration tile')} from {tiles.root}"
        warnings.warn(f"{found}; {RECOMMENDED_TILES} or more are recommended", FewTilesWarning, stacklevel=3)


def pixel_features(before: Pixels, after: Pixels) -> NDArray[np.float32]:
    """Returns statistics of tiles (B, T, T, C) of both dates, for networks of which no encoder is known.

    Per band: the mean, the standard deviation and the gradient energy, which is high in towns. Of each, the mean
    over both dates and their absolute difference, so that swapping the dates changes nothing.

    Returns:
        Float32 (B, 6C); pixels count as shares of the largest value of their type.
    """
    first, second = _moments(before), _moments(after)
    return np.concatenate(((first + second) / 2, np.abs(first - second)), axis=1)


def _moments(images: Pixels) -> NDArray[np.float32]:
    """Returns mean, standard deviation and root mean square of neighbours' differences per band, (B, 3C)."""
    x = images.astype(np.float32) / np.iinfo(images.dtype).max
    steps = [np.square(np.diff(x, axis=axis)).mean((1, 2)) for axis in (1, 2)]
    return np.concatenate((x.mean((1, 2)), x.std((1, 2)), np.sqrt(steps[0] + steps[1])), axis=1)


def describe_tiles(
    tiles: TileSet, features: FeatureExtractor, seed: int, progress: Progress | None = None
) -> list[TileSummary]:
    """Returns a summary of every tile, in the order of the folder.

    Raises InputError, naming the tile, if its features have NaN or Inf.
    """
    summaries: list[TileSummary] = []
    projection: NDArray[np.float32] | None = None
    for part in tiles.batches(_BATCH):
        found = features(*stack(part))
        if projection is None:
            projection = _projection(found.shape[1], seed)
        for tile, values in zip(part, found @ projection, strict=True):
            if not np.isfinite(values).all():
                raise InputError(f"calibration tile {tile.ref.name}: NaN or Inf among its features")
            summaries.append(_summary(tile, values))
        if progress:
            progress(len(summaries), len(tiles))
    return summaries


def pick(tiles: Sequence[TileSummary], count: int, seed: int) -> tuple[dict[int, Picked], tuple[Stratum, ...]]:
    """Returns ``count`` tiles by index, with the reason for each, and all strata. A pure function."""
    names = stratify(tiles)
    groups = {name: [i for i, own in enumerate(names) if own == name] for name in sorted(set(names))}
    shares = allocate({name: len(group) for name, group in groups.items()}, count)
    points = _standardised(np.stack([tile.features for tile in tiles]))
    rng = np.random.default_rng(seed)
    chosen: dict[int, Picked] = {}
    for name, group in groups.items():
        for i, distance in spread_out(points, group, shares[name], rng):
            tile = tiles[i]
            chosen[i] = Picked(tile.name, name, tile.changed, tile.brightness, distance)
    strata = tuple(Stratum(name, len(group), shares[name]) for name, group in groups.items())
    return dict(sorted(chosen.items())), strata


def stratify(tiles: Sequence[TileSummary]) -> list[str]:
    """Returns the stratum of each tile, such as "changed 5 % to 20 %, dark"."""
    brightness = np.array([tile.brightness for tile in tiles])
    edges = np.quantile(brightness, np.arange(1, BRIGHTNESS_CLASSES) / BRIGHTNESS_CLASSES)
    lights = ("dark", "medium", "bright")
    changes = ("unchanged", "changed up to 5 %", "changed 5 % to 20 %", "changed over 20 %")
    changed = np.searchsorted(CHANGE_BOUNDS, [tile.changed for tile in tiles], side="left")
    light = np.searchsorted(edges, brightness, side="right")
    return [f"{changes[c]}, {lights[b]}" for c, b in zip(changed, light, strict=True)]


def allocate(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Returns how many of ``count`` tiles each stratum contributes, in proportion to the square root of its size.

    Each contributes at least one while there are enough. The square root is between proportional shares, which miss
    rare kinds, and equal shares, which overrepresent them. No stratum contributes more tiles than it has.
    """
    shares = dict.fromkeys(sizes, 0)
    for _ in range(min(count, sum(sizes.values()))):
        open_ = [name for name in sizes if shares[name] < sizes[name]]
        # Sainte-Lague's rule: the next tile goes to the largest quotient; strata without a tile come first
        due = max(open_, key=lambda name: (shares[name] == 0, sizes[name] ** 0.5 / (2 * shares[name] + 1), name))
        shares[due] += 1
    return shares


def spread_out(
    points: NDArray[np.float32], group: Sequence[int], count: int, rng: np.random.Generator
) -> list[tuple[int, float | None]]:
    """Picks ``count`` members of ``group``: one near the middle, then always the one farthest from all before it.

    ``points`` is (N, F). The first member is drawn from the 10 % of members nearest to the middle. Returns each
    with its distance to the nearest one before it.
    """
    own = points[list(group)]
    middle = np.linalg.norm(own - own.mean(0), axis=1)
    nearest = np.argsort(middle, kind="stable")[: max(1, len(group) // 10)]
    order: list[tuple[int, float | None]] = []
    at = int(rng.choice(nearest))
    distance = np.full(len(group), np.inf)
    for _ in range(count):
        order.append((group[at], None if np.isinf(distance[at]) else float(distance[at])))
        distance = np.minimum(distance, np.linalg.norm(own - own[at], axis=1))
        distance[at] = -1.0
        at = int(distance.argmax())
    return order


def _summary(tile: Tile, features: NDArray[np.float32]) -> TileSummary:
    brightness = float(np.mean([tile.before.mean(), tile.after.mean()]) / np.iinfo(tile.before.dtype).max)
    return TileSummary(tile.ref.name, float(tile.label[tile.owned].mean()), brightness, features)


def _projection(length: int, seed: int) -> NDArray[np.float32]:
    """Returns a random projection to ``_FEATURES`` numbers that preserves distances (Johnson, Lindenstrauss, 1984)."""
    if length <= _FEATURES:
        return np.eye(length, dtype=np.float32)
    random = np.random.default_rng([seed, length])
    return (random.standard_normal((length, _FEATURES)) / _FEATURES**0.5).astype(np.float32)


def _standardised(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns features with mean 0 and standard deviation 1; distances do not depend on the number of features."""
    deviation = points.std(0)
    scaled = (points - points.mean(0)) / np.where(deviation > 0, deviation, 1)
    return np.asarray(scaled / points.shape[1] ** 0.5, np.float32)

"""Which tiles calibrate: few that stand for thousands.

The tiles are split into strata by how much of them changes and how bright they are, each stratum gives its share,
and within a stratum the tiles are picked that lie far from one another in the features of the float encoder
(greedy k-centre: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985). So rare kinds of
tiles are met, and near copies of one kind are not taken twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import Tile, TileSet, stack

MIN_TILES = 16
RECOMMENDED_TILES = 100
CHANGE_BOUNDS = (0.0, 0.05, 0.2)  # no change; up to 5 %; up to 20 %; more
BRIGHTNESS_CLASSES = 3  # with equally many tiles each
_FEATURES = 64  # numbers kept of a tile, however many the encoder gives
_BATCH = 4

FeatureExtractor = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]


class FewTilesWarning(UserWarning):
    """Fewer calibration tiles than recommended."""


@dataclass(frozen=True)
class TileFacts:
    """What selection knows of a tile: share of changed pixels, mean brightness 0 to 1, features (F,)."""

    name: str
    changed: float
    brightness: float
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Picked:
    """A tile that was picked, and why: its stratum, and how far it lay from all picked before it.

    ``distance`` is in standard deviations of the features; None for the first of a stratum, its middle.
    """

    name: str
    stratum: str
    changed: float
    brightness: float
    distance: float | None


@dataclass(frozen=True)
class Stratum:
    """One kind of tiles: how many there are and how many were picked."""

    name: str
    tiles: int
    picked: int


@dataclass(frozen=True)
class Selection:
    """The tiles that were picked, in the order of the folder, with the report of why."""

    tiles: TileSet
    picked: tuple[Picked, ...]
    strata: tuple[Stratum, ...]


def select_tiles(
    tiles: TileSet, count: int, seed: int, features: FeatureExtractor, progress: Progress | None = None
) -> Selection:
    """``count`` tiles that represent ``tiles``, or all where there are fewer.

    ``features``: uint8 tiles (B, T, T, 3) of both dates -> float32 (B, F), what the float encoder makes of them.
    Tiles are read and described in batches; a few numbers of each are kept. The same seed picks the same tiles.
    Raises InputError below 16 tiles, warns with FewTilesWarning below 100.
    """
    check_count(tiles, count)
    facts = describe_tiles(tiles, features, seed, progress)
    chosen, strata = pick(facts, min(count, len(tiles)), seed)
    return Selection(tiles.subset(list(chosen)), tuple(chosen.values()), strata)


def draw_tiles(tiles: TileSet, count: int, seed: int) -> TileSet:
    """``count`` tiles drawn without replacement, or all where there are fewer; raises as :func:`select_tiles`."""
    check_count(tiles, count)
    indices = np.random.default_rng(seed).choice(len(tiles), min(count, len(tiles)), replace=False)
    return tiles.subset(indices.tolist())


def check_count(tiles: TileSet, count: int) -> None:
    """InputError below 16 tiles, FewTilesWarning below 100."""
    chosen = min(count, len(tiles))
    if chosen < MIN_TILES:
        raise InputError(
            f"{chosen} calibration tiles ({len(tiles)} in {tiles.root}, {count} asked for); at least "
            f"{MIN_TILES} are needed, and {RECOMMENDED_TILES} or more are advised"
        )
    if chosen < RECOMMENDED_TILES:
        found = f"only {chosen} calibration tiles from {tiles.root}"
        warnings.warn(f"{found}; {RECOMMENDED_TILES} or more are advised", FewTilesWarning, stacklevel=3)


def describe_tiles(
    tiles: TileSet, features: FeatureExtractor, seed: int, progress: Progress | None = None
) -> list[TileFacts]:
    """The facts of every tile, in the order of the folder. InputError names a tile whose features are no numbers."""
    facts: list[TileFacts] = []
    projection: NDArray[np.float32] | None = None
    for part in tiles.batches(_BATCH):
        found = features(*stack(part))
        if projection is None:
            projection = _projection(found.shape[1], seed)
        for tile, values in zip(part, found @ projection, strict=True):
            if not np.isfinite(values).all():
                raise InputError(f"calibration tile {tile.ref.name}: NaN or Inf among the encoder's features")
            facts.append(_facts(tile, values))
        if progress:
            progress(len(facts), len(tiles))
    return facts


def pick(facts: Sequence[TileFacts], count: int, seed: int) -> tuple[dict[int, Picked], tuple[Stratum, ...]]:
    """Numbers of ``count`` tiles with the reason for each, and what became of every stratum; a pure decision."""
    names = stratify(facts)
    groups = {name: [i for i, own in enumerate(names) if own == name] for name in sorted(set(names))}
    shares = allocate({name: len(group) for name, group in groups.items()}, count)
    points = _standardised(np.stack([fact.features for fact in facts]))
    rng = np.random.default_rng(seed)
    chosen: dict[int, Picked] = {}
    for name, group in groups.items():
        for i, distance in spread_out(points, group, shares[name], rng):
            fact = facts[i]
            chosen[i] = Picked(fact.name, name, fact.changed, fact.brightness, distance)
    strata = tuple(Stratum(name, len(group), shares[name]) for name, group in groups.items())
    return dict(sorted(chosen.items())), strata


def stratify(facts: Sequence[TileFacts]) -> list[str]:
    """The stratum of each tile, such as "changed 5 % to 20 %, dark"."""
    brightness = np.array([fact.brightness for fact in facts])
    edges = np.quantile(brightness, np.arange(1, BRIGHTNESS_CLASSES) / BRIGHTNESS_CLASSES)
    lights = ("dark", "medium", "bright")
    changes = ("unchanged", "changed up to 5 %", "changed 5 % to 20 %", "changed over 20 %")
    changed = np.searchsorted(CHANGE_BOUNDS, [fact.changed for fact in facts], side="left")
    light = np.searchsorted(edges, brightness, side="right")
    return [f"{changes[c]}, {lights[b]}" for c, b in zip(changed, light, strict=True)]


def allocate(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of ``count`` each stratum gives: by the square root of its size, one at least while they last.

    The root lies between proportional shares, which miss rare kinds, and equal ones, which look at little else. No
    stratum gives more than it has.
    """
    shares = dict.fromkeys(sizes, 0)
    for _ in range(min(count, sum(sizes.values()))):
        open_ = [name for name in sizes if shares[name] < sizes[name]]
        # Sainte-Lague's rule: the next seat goes where it is due most; the empty ones come first
        due = max(open_, key=lambda name: (shares[name] == 0, sizes[name] ** 0.5 / (2 * shares[name] + 1), name))
        shares[due] += 1
    return shares


def spread_out(
    points: NDArray[np.float32], group: Sequence[int], count: int, rng: np.random.Generator
) -> list[tuple[int, float | None]]:
    """``count`` members of ``group``: one near the middle, then always the one farthest from all before it.

    ``points`` (N, F). The first is drawn from the middle tenth. Returns each with its distance to the nearest one
    before it.
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


def _facts(tile: Tile, features: NDArray[np.float32]) -> TileFacts:
    brightness = float(np.mean([tile.before.mean(), tile.after.mean()]) / 255)
    return TileFacts(tile.ref.name, float(tile.label[tile.owned].mean()), brightness, features)


def _projection(length: int, seed: int) -> NDArray[np.float32]:
    """A random projection to ``_FEATURES`` numbers, which keeps distances (Johnson and Lindenstrauss, 1984)."""
    if length <= _FEATURES:
        return np.eye(length, dtype=np.float32)
    random = np.random.default_rng([seed, length])
    return (random.standard_normal((length, _FEATURES)) / _FEATURES**0.5).astype(np.float32)


def _standardised(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each feature with mean 0 and deviation 1, and all distances on one scale however many there are."""
    deviation = points.std(0)
    scaled = (points - points.mean(0)) / np.where(deviation > 0, deviation, 1)
    return np.asarray(scaled / points.shape[1] ** 0.5, np.float32)

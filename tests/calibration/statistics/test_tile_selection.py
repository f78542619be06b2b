"""Tests the selection of calibration tiles: shares of strata, no near duplicates, reproducible by seed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from misgnet_calibration.statistics.cache import ActivationStatistics, StatisticsKey, load_statistics, save_statistics
from misgnet_calibration.statistics.calibrators import MAX
from misgnet_calibration.statistics.observers import Histogram
from misgnet_calibration.statistics.tile_selection import (
    FewTilesWarning,
    TileSummary,
    allocate,
    describe_tiles,
    pick,
    pixel_features,
    select_tiles,
    spread_out,
    stratify,
)
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet

SIDE = 32
ALONE = np.random.default_rng(0)


def summaries(count: int, seed: int = 0, **fixed: float) -> list[TileSummary]:
    random = np.random.default_rng(seed)
    changed = np.where(random.random(count) < 0.5, 0, random.random(count) ** 3)
    return [
        TileSummary(f"t{i:04}", fixed.get("changed", float(changed[i])), float(random.random()), row)
        for i, row in enumerate(random.standard_normal((count, 8)).astype(np.float32))
    ]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 500), min_size=1), st.integers(1, 600))
def test_shares_add_up_and_rare_strata_are_included(sizes: dict[str, int], count: int) -> None:
    shares = allocate(sizes, count)
    assert sum(shares.values()) == min(count, sum(sizes.values()))
    assert all(0 <= shares[name] <= sizes[name] for name in sizes)
    if count >= len(sizes):
        assert min(shares.values()) >= 1
    by_size = sorted(sizes, key=lambda name: sizes[name])
    for smaller, larger in pairwise(by_size):
        assert shares[smaller] <= shares[larger] + 1  # a larger stratum never contributes fewer tiles


def test_shares_are_between_equal_and_proportional() -> None:
    shares = allocate({"common": 900, "rare": 100}, 40)
    assert 4 < shares["rare"] < 20


def test_strata_depend_on_change_and_brightness() -> None:
    tiles = [
        TileSummary("a", 0.0, 0.1, ALONE.random(2)), TileSummary("b", 0.05, 0.5, ALONE.random(2)),
        TileSummary("c", 0.051, 0.9, ALONE.random(2)), TileSummary("d", 0.9, 0.91, ALONE.random(2)),
    ]  # fmt: skip
    assert stratify(tiles) == [
        "unchanged, dark", "changed up to 5 %, medium", "changed 5 % to 20 %, bright", "changed over 20 %, bright"
    ]  # fmt: skip


def test_far_apart_tiles_come_first_and_copies_last() -> None:
    """Three tight clusters in one stratum: three picks include one of each."""
    random = np.random.default_rng(1)
    centres = np.array([[0, 0], [30, 0], [0, 30]], np.float32)
    points = np.concatenate([c + random.standard_normal((20, 2)).astype(np.float32) for c in centres])
    for seed in range(5):
        order = spread_out(points, range(60), 6, np.random.default_rng(seed))
        assert {index // 20 for index, _ in order[:3]} == {0, 1, 2}
        distances = [distance for _, distance in order]
        assert distances[0] is None and distances[1:] == sorted(distances[1:], reverse=True)
    everything = spread_out(points, range(60), 60, random)
    assert sorted(index for index, _ in everything) == list(range(60))


def test_picks_state_their_reason_and_depend_on_the_seed() -> None:
    tiles = summaries(300)
    chosen, strata = pick(tiles, 40, seed=3)
    assert len(chosen) == 40 and list(chosen) == sorted(chosen)
    names = stratify(tiles)
    for index, picked in chosen.items():
        assert (picked.name, picked.stratum) == (tiles[index].name, names[index])
    assert sum(s.tiles for s in strata) == 300 and sum(s.picked for s in strata) == 40
    firsts = [p for p in chosen.values() if p.distance is None]
    assert len(firsts) == len(strata) == len(set(names))
    assert pick(tiles, 40, seed=3)[0] == chosen
    assert pick(tiles, 40, seed=4)[0].keys() != chosen.keys()


def test_picks_cover_the_set_better_than_random_tiles() -> None:
    """For every seed, the farthest tile is nearer to a picked one than with random picks."""
    tiles = summaries(400, changed=0.1)
    points = np.stack([tile.features for tile in tiles])

    def worst(indices: list[int]) -> float:
        return float(np.linalg.norm(points[:, None] - points[indices][None], axis=2).min(1).max())

    for seed in range(5):
        random = np.random.default_rng(seed).choice(400, 30, replace=False).tolist()
        assert worst(list(pick(tiles, 30, seed)[0])) < worst(random)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    """Returns 20 pairs of flat colour; in the last five, a quarter of the pixels has changed."""
    root = tmp_path_factory.mktemp("tiles")
    for index in range(20):
        label = np.zeros((SIDE, SIDE), np.uint8)
        label[: SIDE // 2, : SIDE // 2] = 255 * (index >= 15)
        for part, pixels in (("A", (index, 5, 9)), ("B", (10 * index, 5, 9)), ("label", None)):
            (root / part).mkdir(exist_ok=True)
            image = np.full((SIDE, SIDE, 3), pixels, np.uint8) if pixels else label
            Image.fromarray(image).save(root / part / f"{index:02}.png")
    return TileSet.open(root, SIDE)


def colour(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.stack((before[..., 0].mean((1, 2)), after[..., 0].mean((1, 2))), 1).astype(np.float32)


def test_summaries_describe_the_tiles(tiles: TileSet) -> None:
    found = describe_tiles(tiles, colour, seed=0)
    assert [fact.changed for fact in found] == [0.0] * 15 + [0.25] * 5
    assert found[3].brightness == pytest.approx(((3 + 5 + 9) / 3 + (30 + 5 + 9) / 3) / 2 / 255)
    assert found[7].features.tolist() == [7, 70]
    wide = describe_tiles(tiles, lambda b, a: np.repeat(colour(b, a), 500, 1), seed=0)
    assert wide[0].features.shape == (64,)


@pytest.mark.filterwarnings("ignore::misgnet_calibration.statistics.tile_selection.FewTilesWarning")
def test_selection_reads_all_tiles_and_returns_some(tiles: TileSet) -> None:
    progressed: list[int] = []
    found = select_tiles(tiles, 16, 0, colour, lambda done, of: progressed.append(done))
    assert progressed[-1] == 20 and len(found.tiles) == len(found.picked) == 16
    assert [ref.name for ref in found.tiles] == [picked.name for picked in found.picked]


def test_selection_refuses_too_few_and_warns_of_few(tiles: TileSet) -> None:
    with pytest.raises(InputError, match="at least 16"):
        select_tiles(tiles, 12, 0, colour)
    with pytest.warns(FewTilesWarning):
        select_tiles(tiles, 16, 0, colour)


def test_nan_in_features_names_the_tile(tiles: TileSet) -> None:
    def broken(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        found = colour(before, after)
        found[found[:, 0] == 6] = np.nan
        return found

    with pytest.raises(InputError, match="tile 06@0,0: NaN"):
        describe_tiles(tiles, broken, 0)


# --- saved statistics

KEY = StatisticsKey("a" * 64, "b" * 64, "c" * 64)


def observed() -> ActivationStatistics:
    histograms = {}
    for index, name in enumerate(("x", "layer/y:0")):
        histograms[name] = Histogram()
        histograms[name].observe(np.random.default_rng(index).standard_normal(500).astype(np.float32))
    return ActivationStatistics(histograms, {"x": 2.5, "z": 1000.0})


def test_statistics_are_saved_and_loaded_unchanged(tmp_path: Path) -> None:
    path, before = tmp_path / "seen.npz", observed()
    assert load_statistics(path, KEY) == (None, "nothing saved yet")
    save_statistics(path, before, KEY)
    found, word = load_statistics(path, KEY)
    assert found is not None and word == "reused" and found.absolute_maxima == before.absolute_maxima
    assert found.ranges(MAX, symmetric=False) == before.ranges(MAX, symmetric=False)
    assert all((found.histograms[n].counts == before.histograms[n].counts).all() for n in before.histograms)


@pytest.mark.parametrize("part", ["tiles", "weights", "graph"])
def test_statistics_of_other_inputs_are_not_used(part: str, tmp_path: Path) -> None:
    path = tmp_path / "seen.npz"
    save_statistics(path, observed(), KEY)
    other = StatisticsKey(**{**KEY.__dict__, part: "d" * 64})
    assert load_statistics(path, other) == (None, f"saved for other {part}")


def test_damaged_statistics_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "seen.npz"
    save_statistics(path, observed(), KEY)
    content = path.read_bytes()
    for broken in (content[:100], b"", json.dumps({}).encode(), content[:-30]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"seen\.npz cannot be read.*remove the file"):
            load_statistics(path, KEY)


@pytest.mark.parametrize(("dtype", "bands"), [(np.uint8, 3), (np.uint16, 13), (np.uint8, 1)])
def test_pixel_features_do_not_depend_on_the_order_of_dates_or_the_bits_of_a_sample(dtype: type, bands: int) -> None:
    before, after = np.random.default_rng(5).integers(0, 256, (2, 4, 16, 16, bands), np.uint8)
    found = pixel_features(before, after)
    assert found.shape == (4, 6 * bands) and found.dtype == np.float32
    np.testing.assert_array_equal(found, pixel_features(after, before))
    wide = [images.astype(dtype) * (np.iinfo(dtype).max // 255) for images in (before, after)]
    np.testing.assert_allclose(pixel_features(*wide), found, atol=1e-6)


def test_pixel_features_tell_bright_rough_and_changed_tiles_apart() -> None:
    """Bands of the first tile: mean, deviation and gradient energy; then the differences of the dates."""
    flat = np.full((1, 8, 8, 1), 51, np.uint8)
    rough = flat + 102 * (np.indices((8, 8)).sum(0) % 2).astype(np.uint8)[None, :, :, None]
    smooth = np.sort(rough.reshape(1, 8, 8, 1), axis=1)
    np.testing.assert_allclose(pixel_features(flat, flat), [[0.2, 0, 0, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(pixel_features(rough, rough), [[0.4, 0.2, 0.4 * 2**0.5, 0, 0, 0]], atol=1e-6)
    assert pixel_features(smooth, smooth)[0, 1] == pytest.approx(0.2)
    assert pixel_features(smooth, smooth)[0, 2] < 0.2, "the same values, sorted, have hardly any edges"
    np.testing.assert_allclose(pixel_features(flat, rough)[0, 3:], [0.2, 0.2, 0.4 * 2**0.5], atol=1e-6)


def test_tiles_are_selected_by_their_pixels(tmp_path: Path) -> None:
    root = tmp_path / "tiles"
    for folder in ("A", "B", "label"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(2)
    for index in range(24):
        noise = random.integers(0, 4 + 60 * (index % 4), (2, SIDE, SIDE, 3)) + 10 * (index % 3)
        for folder, pixels in zip(("A", "B"), noise.astype(np.uint8), strict=True):
            Image.fromarray(pixels).save(root / folder / f"{index:02}.png")
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(root / "label" / f"{index:02}.png")
    tiles = TileSet.open(root, SIDE)
    with pytest.warns(FewTilesWarning):
        selection = select_tiles(tiles, 16, 0, pixel_features)
    assert len({int(picked.name[:2]) % 4 for picked in selection.picked}) == 4, "all kinds of texture are there"
    assert all(0 < tile.brightness < 0.5 for tile in describe_tiles(tiles, pixel_features, 0))

"""Tests the synthetic pairs: reproducible from a seed, with correct labels and unlabelled differences."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from misgnet.synthetic import SyntheticPair, make_pair, make_series, pair_seed, write_split
from misgnet.synthetic.plan import plan_scene

SAMPLE = 60


@pytest.fixture(scope="module")
def pairs() -> list[SyntheticPair]:
    return [make_pair(seed) for seed in range(SAMPLE)]


def digest(pair: SyntheticPair) -> str:
    return hashlib.sha256(pair.before.tobytes() + pair.after.tobytes() + pair.label.tobytes()).hexdigest()


def difference(pair: SyntheticPair) -> np.ndarray:
    """Returns the mean absolute difference over the channels, (H, W), after subtracting each date's mean colour."""
    before, after = (image - image.mean((0, 1)) for image in (pair.before, pair.after))
    return np.abs(before - after).mean(2)


def test_same_seed_gives_the_same_bytes() -> None:
    assert digest(make_pair(7)) == digest(make_pair(7))


def test_a_fresh_process_gives_the_same_bytes() -> None:
    code = (
        "import hashlib; from misgnet.synthetic import make_pair; p = make_pair(7, 128);"
        "print(hashlib.sha256(p.before.tobytes() + p.after.tobytes() + p.label.tobytes()).hexdigest())"
    )
    path = [entry for entry in sys.path if entry]
    code = f"import sys; sys.path[:0] = {path!r}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(make_pair(7, 128))


def test_different_seeds_give_different_pairs(pairs: list[SyntheticPair]) -> None:
    assert len({digest(pair) for pair in pairs}) == SAMPLE


@pytest.mark.parametrize("size", [64, 96, 256, 1024])
def test_pairs_have_the_documented_shapes_and_types(size: int) -> None:
    pair = make_pair(3, size)
    for image in (pair.before, pair.after):
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
    assert pair.label.shape == (size, size)
    assert pair.label.dtype == np.bool_


@pytest.mark.parametrize("size", [0, 32, 100, 1056])
def test_unsupported_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        make_pair(0, size)


def test_images_have_medium_brightness_and_contrast(pairs: list[SyntheticPair]) -> None:
    for pair in pairs:
        for image in (pair.before, pair.after):
            assert 50 < image.mean() < 200
            assert image.std() > 12


def test_share_of_changed_pixels_is_realistic(pairs: list[SyntheticPair]) -> None:
    shares = np.array([pair.label.mean() for pair in pairs])
    changed = shares[shares > 0]
    assert 0.08 <= (shares == 0).mean() <= 0.35
    assert 0.08 <= changed.mean() <= 0.13
    assert shares.max() < 0.4


def test_most_changes_are_new_buildings() -> None:
    presences = [
        building.present
        for seed in range(SAMPLE)
        for building in plan_scene(np.random.Generator(np.random.PCG64(seed)), 256).buildings
    ]
    new, gone = presences.count((False, True)), presences.count((True, False))
    assert 0.55 < new / (new + gone) < 0.85
    assert (False, False) not in presences


def test_buildings_do_not_overlap() -> None:
    """No pixel is covered by more than one footprint."""
    for seed in range(12):
        scene = plan_scene(np.random.Generator(np.random.PCG64(seed)), 256)
        ys, xs = np.mgrid[0:256, 0:256]
        covered = np.zeros((256, 256), int)
        for building in scene.buildings:
            c, s = np.cos(building.angle), np.sin(building.angle)
            dx, dy = xs - building.centre[0], ys - building.centre[1]
            u, v = c * dx + s * dy, c * dy - s * dx
            inside = [(u > b.u0) & (u < b.u1) & (v > b.v0) & (v < b.v1) for b in building.boxes]
            covered += np.logical_or.reduce(inside)
        assert covered.max() <= 1


def test_images_of_unchanged_pairs_differ(pairs: list[SyntheticPair]) -> None:
    unchanged = [pair for pair in pairs if not pair.label.any()]
    assert unchanged
    for pair in unchanged:
        assert difference(pair).mean() > 3
        assert (pair.before != pair.after).mean() > 0.5


def test_changed_pixels_differ_most(pairs: list[SyntheticPair]) -> None:
    changed = np.concatenate([difference(pair)[pair.label] for pair in pairs])
    unchanged = np.concatenate([difference(pair)[~pair.label] for pair in pairs])
    assert changed.mean() > 2 * unchanged.mean()


def test_change_cannot_be_detected_from_brightness_alone(pairs: list[SyntheticPair]) -> None:
    """The mean colours of the dates differ about as much without change as with change."""
    shifts = np.array([np.abs(p.before.mean((0, 1)) - p.after.mean((0, 1))).mean() for p in pairs])
    empty = np.array([not pair.label.any() for pair in pairs])
    assert shifts[empty].mean() > 0.4 * shifts[~empty].mean()


def test_write_split_is_reproducible_and_reports_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_split(tmp_path / "one", 3, seed=5, size=64, progress=lambda *call: calls.append(call))
    write_split(tmp_path / "two", 3, seed=5, size=64)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    names = [f"pair_{index:05d}.png" for index in range(3)]
    assert files == [Path(folder, name) for folder in ("A", "B", "label") for name in names]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_written_files_hold_the_pair(tmp_path: Path) -> None:
    write_split(tmp_path, 2, seed=1, size=128)
    for index in range(2):
        pair = make_pair(pair_seed(1, index), 128)
        name = f"pair_{index:05d}.png"
        images = [Image.open(tmp_path / folder / name) for folder in ("A", "B", "label")]
        assert [image.mode for image in images] == ["RGB", "RGB", "L"]
        before, after, label = map(np.asarray, images)
        assert np.array_equal(before, pair.before)
        assert np.array_equal(after, pair.after)
        assert np.array_equal(label, pair.label * 255)


def test_splits_share_no_pair() -> None:
    seeds = {pair_seed(split, index) for split in range(20) for index in range(50)}
    assert len(seeds) == 1000
    assert min(seeds) >= 2**32


def test_series_is_the_pair_whose_changes_are_spread_over_the_dates() -> None:
    series, pair = make_series(11, 256, 5), make_pair(11, 256)
    assert [image.shape for image in series.images] == [(256, 256, 3)] * 5
    first, *others = series.labels
    assert not first.any() and np.array_equal(others[-1], pair.label)
    assert all((later | ~earlier).all() for earlier, later in pairwise(series.labels)), "a change was undone"
    assert len({int(label.sum()) for label in series.labels}) > 2, "all changes are at one date"
    assert all(np.array_equal(a, b) for a, b in zip(series.images, make_series(11, 256, 5).images, strict=True))
    for image, label in zip(series.images[1:], others, strict=True):
        shown = np.abs(image.astype(float) - series.images[0]).mean(2)
        assert not label.any() or shown[label].mean() > 1.2 * shown[~label].mean()


@pytest.mark.parametrize(("size", "dates"), [(100, 3), (32, 3), (2048, 3), (256, 1)])
def test_unsupported_series_is_rejected(size: int, dates: int) -> None:
    with pytest.raises(ValueError, match=f"not {size} and {dates}"):
        make_series(1, size, dates)

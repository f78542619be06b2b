"""Tests parity of an engine with the reference on images whose sizes are not multiples of the tile size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from misgnet_runtime.accuracy.gate import Verdict
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.accuracy.parity import (
    EngineParity,
    EvaluatedTile,
    ParityReport,
    by_source,
    compare,
    evaluate_tiles,
    report,
)
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.schema import encode
from support.bundles import expected, images, write_image

SIZES = {"a": (40, 70), "b": (32, 32), "c": (20, 45)}  # tiles of 32: 2 x 3, 1 x 1, 1 x 2
TILES = 9
LIMIT = F1Limit(max_f1_drop=0.5)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    root = tmp_path_factory.mktemp("tiles")
    for seed, (name, size) in enumerate(SIZES.items()):
        before, after = images(*size, seed=seed)
        write_image(root / f"A/{name}.png", before)
        write_image(root / f"B/{name}.png", after)
        label = np.where(expected(before, after) > 0.4, 255, 0).astype(np.uint8)
        write_image(root / f"label/{name}.png", label)
    return TileSet.open(root, 32)


def worse(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    return expected(before, after) * np.float32(0.95)


def both(tiles: TileSet) -> tuple[list[EvaluatedTile], list[EvaluatedTile]]:
    return evaluate_tiles("float", expected, tiles, 0.5), evaluate_tiles("engine", worse, tiles, 0.5)


def test_every_pixel_of_every_image_is_counted_once(tiles: TileSet) -> None:
    evaluated = evaluate_tiles("float", expected, tiles, 0.5, batch=2)
    assert len(evaluated) == TILES
    by_name = dict(zip(SIZES, by_source(evaluated), strict=True))
    for seed, (name, size) in enumerate(SIZES.items()):
        probability = expected(*images(*size, seed=seed))
        assert by_name[name] == Confusion.of(probability > 0.5, probability > 0.4)
        assert by_name[name].pixels == size[0] * size[1]


def test_evaluated_mask_is_the_part_that_the_tile_owns(tiles: TileSet) -> None:
    evaluated = evaluate_tiles("float", expected, tiles, 0.5)
    assert {e.mask.shape for e in evaluated if e.source == "b"} == {(32, 32)}
    assert sum(e.mask.size for e in evaluated if e.source == "a") == 40 * 70
    mask = expected(*images(40, 70, seed=0)) > 0.5
    np.testing.assert_array_equal(evaluated[0].mask, mask[:32, :32])
    np.testing.assert_array_equal(evaluated[5].mask, mask[32:, 64:])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_output_fails_and_names_the_tile(tiles: TileSet, value: float) -> None:
    calls = 0

    def broken(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        probability = expected(before, after)
        if calls == 2:
            probability[1, 3, 3] = value
        return probability

    with pytest.raises(GateFailed, match=f"the output of int8 contains NaN or Inf on tile {tiles[3].name}"):
        evaluate_tiles("int8", broken, tiles, 0.5, batch=2)


def test_progress_counts_the_tiles(tiles: TileSet) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_tiles("float", expected, tiles, 0.5, batch=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, TILES), (8, TILES), (TILES, TILES)]


def test_an_engine_is_compared_pixel_by_pixel(tiles: TileSet) -> None:
    reference, found = both(tiles)
    result = compare("cpu", "int8", reference, found, F1Limit(max_f1_drop=100), device="CPU")
    differing = [int((r.mask != f.mask).sum()) for r, f in zip(reference, found, strict=True)]
    pixels = sum(h * w for h, w in SIZES.values())
    assert [t.differing for t in result.tiles] == differing
    assert result.agreement == pytest.approx(1 - sum(differing) / pixels)
    total = Confusion.total([j.confusion for j in found])
    assert result.scores == total.scores()
    reference_f1 = Confusion.total([j.confusion for j in reference]).f1
    assert reference_f1 is not None and total.f1 is not None
    assert result.f1_drop_points == pytest.approx(100 * (reference_f1 - total.f1))
    assert result.interval is not None and result.interval.sources == len(SIZES)
    assert sum(t.pixels for t in result.tiles) == pixels
    assert result.verdict is not None and result.verdict.passed


def test_the_worst_tiles_come_first_and_equal_ones_by_name(tiles: TileSet) -> None:
    reference, found = both(tiles)
    result = compare("cpu", "int8", reference, found, F1Limit(max_f1_drop=100), device="CPU")
    differing = {t.name: t.differing for t in result.tiles}
    order = sorted((n for n in differing if differing[n]), key=lambda n: (-differing[n], n))
    assert result.worst_tiles == order[:6]
    same = compare("cpu", "int8", reference, reference, F1Limit(max_f1_drop=0), device="CPU")
    assert (same.worst_tiles, same.agreement, same.f1_drop_points) == ([], 1, 0)


def entry(passed: bool | None) -> EngineParity:
    verdict = None if passed is None else Verdict(passed, "F1 drop", 0, 0, "")
    return EngineParity("e", "int8", "not run" if passed is None else "run", "", verdict=verdict)


@pytest.mark.parametrize(
    ("engines", "passed"),
    [([], False), ([None], False), ([True], True), ([True, None], True), ([True, False], False), ([False], False)],
)
def test_report_passes_if_an_engine_was_evaluated_and_none_failed(
    tiles: TileSet, engines: list[bool | None], passed: bool
) -> None:
    reference, _ = both(tiles)
    assert report("float", reference, tiles, [entry(e) for e in engines], threshold=0.5, limit=LIMIT).passed is passed


def test_report_without_labels_states_no_scores(tiles: TileSet, tmp_path: Path) -> None:
    for part in ("A", "B"):
        shutil.copytree(tiles.root / part, tmp_path / part)
    unlabelled = TileSet.open(tmp_path, 32, labels="optional")
    reference, found = both(unlabelled)
    engine = compare("cpu", "int8", reference, found, LIMIT, device="CPU", labelled=False)
    made = report("float", reference, unlabelled, [engine], threshold=0.5, limit=LIMIT)
    assert made.labelled is False and made.reference_scores == {} and engine.scores == {}
    assert engine.verdict is not None and engine.verdict.rule == "agreement"
    assert engine.f1_drop_points is None and engine.agreement is not None and engine.agreement < 1


def test_report_is_json_and_describes_the_evaluation_set(tiles: TileSet) -> None:
    reference, found = both(tiles)
    engines = [compare("cpu", "int8", reference, found, LIMIT, device="CPU"), entry(None)]
    values = json.loads(encode(report("float", reference, tiles, engines, threshold=0.5, limit=LIMIT)))
    assert values["tiles"] == TILES and values["sources"] == len(SIZES)
    assert values["pixels"] == sum(h * w for h, w in SIZES.values())
    assert 0 < values["changed_share"] < 1
    assert values["evaluation_sha256"] == tiles.digest()
    assert len(values["engines"][0]["tiles"]) == TILES
    assert values["engines"][1]["verdict"] is None
    assert isinstance(report("float", reference, tiles, engines, threshold=0.5, limit=LIMIT), ParityReport)

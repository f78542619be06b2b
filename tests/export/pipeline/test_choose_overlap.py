"""Tests the choice of the overlap of tiles: the rule, the measured maps, and the stage with a fake engine."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import f1_score

from misgnet_export.pipeline import choose_overlap as stage_module
from misgnet_export.pipeline import scene_measurement
from misgnet_export.pipeline.choose_overlap import choose_overlap, measure_overlap
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.result import ChosenOverlap
from misgnet_export.pipeline.scene_measurement import (
    SHIFT,
    Scene,
    measure_overlaps,
    overlaps_of,
    scenes_of,
    times_computed,
)
from misgnet_runtime.bundle import EngineEntry, Interface, MeasuredOverlap
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.raster.dataset import TileSet
from support.bundles import FakeEngine, write_image

TILE = 32
INTERFACE = Interface(TILE, 4)
CPU = EngineEntry("cpu", "onnxruntime", "a.onnx", "a.onnx", "int8", "")
FLOAT = EngineEntry("cpu-float32", "onnxruntime", "b.onnx", "b.onnx", "float32", "")


class Contextual(FakeEngine):
    """Predicts the difference of the dates, weakened towards the right and lower edges of each tile."""

    def _output(self, probability: NDArray[np.float32]) -> NDArray[Any]:
        position = np.linspace(1, 0.2, TILE, dtype=np.float32)
        return probability * position * position[:, None]


def measured(f1: list[float | None], seams: list[float] | None = None, tile: int = 256) -> list[MeasuredOverlap]:
    seams = seams or [0.99] * 5
    overlaps = overlaps_of(tile)
    return [MeasuredOverlap(o, times_computed(tile, o), f, s) for o, f, s in zip(overlaps, f1, seams, strict=True)]


# --- the rule


@pytest.mark.parametrize(
    ("f1", "chosen"),
    [
        ([0.816, 0.830, 0.832, 0.830, 0.833], 16),
        ([0.756, 0.763, 0.771, 0.770, 0.772], 32),
        ([0.770, 0.770, 0.770, 0.770, 0.990], 0),  # a half is only reported
        ([0.768, 0.700, 0.700, 0.770, 0.770], 0),  # exactly 0.2 points below a quarter
        ([0.7679, 0.7679, 0.7679, 0.770, 0.770], 64),
    ],
)
def test_smallest_overlap_close_to_a_quarter_is_chosen(f1: list[float | None], chosen: int) -> None:
    overlap, rule = choose_overlap(measured(f1), 256)
    assert overlap == chosen and rule == "smallest with F1 at most 0.2 points below that of a quarter of a tile"


@pytest.mark.parametrize(
    ("f1", "chosen"),
    [([0.710, 0.721, 0.718, 0.718, 0.718], 32), ([0.900, 0.900, 0.700, 0.770, 0.770], 64)],
)
def test_nothing_below_an_eighth_is_chosen_if_less_overlap_seems_better(f1: list[float | None], chosen: int) -> None:
    overlap, rule = choose_overlap(measured(f1), 256)
    assert overlap == chosen and "too few images" in rule


def test_without_change_in_the_labels_seam_agreement_decides() -> None:
    overlap, rule = choose_overlap(measured([None] * 5, [0.970, 0.985, 0.9885, 0.990, 0.995]), 256)
    assert overlap == 32 and "no label holds change" in rule and "seam agreement" in rule


def test_times_computed_are_those_of_a_large_scene() -> None:
    assert [round(times_computed(256, overlap), 2) for overlap in overlaps_of(256)] == [1.0, 1.14, 1.31, 1.78, 4.0]


# --- the scenes


def write_set(root: Path, sizes: list[tuple[int, int]], *, change: bool = True) -> TileSet:
    for index, (height, width) in enumerate(sizes):
        random = np.random.default_rng(index)
        label = (random.random((-(-height // 8), -(-width // 8))) < 0.3 * change).repeat(8, 0).repeat(8, 1)
        label = label[:height, :width]
        before = np.full((height, width, 3), index, np.uint8)
        after = before + (200 * label[:, :, None]).astype(np.uint8)
        for part, pixels in (("A", before), ("B", after), ("label", label.astype(np.uint8) * 255)):
            write_image(root / part / f"{index:03}.png", pixels)
    return TileSet.open(root, TILE)


def firsts(scenes: list[Scene]) -> list[int]:
    """Returns the numbers of the images, which are their first pixels."""
    return [int(scene.before[0, 0, 0]) for scene in scenes]


def test_images_larger_than_a_tile_are_scenes(tmp_path: Path) -> None:
    least = TILE + SHIFT[0], TILE + SHIFT[1]
    sizes = [least, (least[0] - 1, 200), (200, least[1] - 1), (150, 160), (TILE, TILE)]
    found = scenes_of(write_set(tmp_path, sizes), TILE)
    assert firsts(found) == [0, 3] and found[1].label.shape == (150, 160)


def test_pixels_are_limited_and_images_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_measurement, "_SIDE", 140)
    monkeypatch.setattr(scene_measurement, "_PIXELS", 3 * 140 * 140)
    tiles = write_set(tmp_path, [(170, 150)] * 6)
    found = scenes_of(tiles, TILE)
    assert firsts(found) == [0, 2, 4] and {scene.label.shape for scene in found} == {(140, 140)}
    (tmp_path / "one").mkdir()
    assert len(scenes_of(write_set(tmp_path / "one", [(400, 400)]), TILE)) == 1


# --- the measurement


def scene_of(seed: int) -> Scene:
    random = np.random.default_rng(seed)
    label = (random.random((15, 20)) < 0.3).repeat(10, 0).repeat(10, 1)
    before = random.integers(0, 40, (150, 200, 3)).astype(np.uint8)
    return Scene(before, before + (200 * label[:, :, None]).astype(np.uint8), label)


def test_scores_are_those_of_the_maps_and_of_shifted_maps() -> None:
    scenes, seen = [scene_of(1), scene_of(2)], []
    with ChangeDetector(Contextual(INTERFACE, streams=2), INTERFACE) as detector:
        found = measure_overlaps(
            detector, scenes, 0.25, overlaps=overlaps_of(TILE), batch=2, progress=lambda *done: seen.append(done)
        )

        def mask(scene: Scene, overlap: int) -> NDArray[np.bool_]:
            return detector.scene_probability(scene.before, scene.after, overlap=overlap, batch=2) > 0.25

        for one in found:
            whole = [mask(scene, one.overlap) for scene in scenes]
            cut = [mask(scene.cut(*SHIFT), one.overlap) for scene in scenes]
            both = [*whole, *cut]
            labels = [scene.label for scene in (*scenes, *(scene.cut(*SHIFT) for scene in scenes))]
            truth, predicted = (np.concatenate([part.ravel() for part in parts]) for parts in (labels, both))
            assert one.f1 == pytest.approx(f1_score(truth, predicted))
            equal = np.concatenate([(a[37:, 91:] == b).ravel() for a, b in zip(whole, cut, strict=True)])
            assert one.seam_agreement == pytest.approx(equal.mean())
    assert [one.overlap for one in found] == [0, 2, 4, 8, 16]
    assert found[0].seam_agreement < found[-1].seam_agreement < 1, "cutting a scene shifts its tiles"
    assert seen[0] == (1, 20) and seen[-1] == (20, 20)


def test_maps_that_do_not_depend_on_tiles_agree_everywhere() -> None:
    with ChangeDetector(FakeEngine(INTERFACE), INTERFACE) as detector:
        found = measure_overlaps(detector, [scene_of(1)], 0.25, overlaps=[0, 8], batch=4, progress=lambda *_: None)
    assert {(one.f1, one.seam_agreement) for one in found} == {(1.0, 1.0)}


# --- the stage


def run_stage(
    monkeypatch: pytest.MonkeyPatch, val: TileSet | None, timings: list[Timing], entries: list[EngineEntry]
) -> tuple[ChosenOverlap, str, list[str]]:
    """Returns the choice, the line of the stage, and the names of the engines that were opened."""
    opened: list[str] = []

    def fake(entry: EngineEntry, *_: object) -> FakeEngine:
        opened.append(entry.name)
        return Contextual(INTERFACE)

    monkeypatch.setattr(stage_module, "open_for_evaluation", fake)
    log = StageLog(Console(file=io.StringIO()))
    context = SimpleNamespace(
        interface=INTERFACE, root=Path(), log=log, policy=SimpleNamespace(threshold=0.25)
    )  # fmt: skip
    chosen = measure_overlap(context, entries, timings, val)  # type: ignore[arg-type]
    return chosen, log.done[-1][2], opened


def timing(engine: str, batch: int, speed: float) -> Timing:
    return Timing(engine, "int8", batch, 9, 5, 6, 7, speed)


def test_stage_measures_with_the_fastest_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = write_set(tmp_path, [(150, 160), (20, 20), (160, 150)])
    timings = [timing("cpu-float32", 1, 9.0), timing("cpu", 1, 20.0), timing("cpu", 4, 18.0)]
    chosen, line, opened = run_stage(monkeypatch, val, timings, [FLOAT, CPU])
    assert opened == ["cpu"] and len(chosen.measured) == 5
    assert chosen.overlap == choose_overlap(chosen.measured, TILE)[0]
    assert chosen.reason.endswith("a quarter of a tile; cpu on 2 of 3 validation images, 0.0 megapixels")
    assert line.startswith(f"{chosen.overlap} px (in brackets: 8 px): F1 0.") and "seam agreement" in line


def test_stage_measures_seams_if_no_label_holds_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = write_set(tmp_path, [(150, 160)], change=False)
    chosen, line, _ = run_stage(monkeypatch, val, [timing("cpu", 1, 20.0)], [CPU])
    assert chosen.overlap == 0 and {one.f1 for one in chosen.measured} == {None}
    assert "no label holds change" in chosen.reason and "F1" not in line


@pytest.mark.parametrize(
    ("sizes", "timed", "reason"),
    [
        (None, True, "no --val was given"),
        ([(TILE, TILE), (68, 300)], True, "no image of --val has at least 123 x 69 px"),
        ([(150, 160)], False, "no engine of the bundle runs on the machine of the build"),
    ],
)
def test_default_is_an_eighth_of_a_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]] | None, timed: bool, reason: str
) -> None:
    val = None if sizes is None else write_set(tmp_path, sizes)
    chosen, line, opened = run_stage(monkeypatch, val, [timing("cpu", 1, 20.0)] if timed else [], [CPU])
    assert (chosen.overlap, chosen.measured, opened) == (TILE // 8, [], [])
    assert chosen.reason == f"an eighth of a tile: {reason}" and reason in line

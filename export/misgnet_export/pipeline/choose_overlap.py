"""Chooses how much the tiles of a scene overlap, from maps of validation images by the fastest engine."""

from __future__ import annotations

from collections.abc import Sequence

from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.evaluate import open_for_evaluation
from misgnet_export.pipeline.result import ChosenOverlap
from misgnet_export.pipeline.scene_measurement import measure_overlaps, overlaps_of, scenes_of, smallest_size
from misgnet_runtime.bundle import EngineEntry, MeasuredOverlap
from misgnet_runtime.engines import batch_for_scenes
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.raster.dataset import TileSet

TOLERANCE = 0.002  # of F1, or of seam agreement if F1 is undefined: 0.2 points
_DEFAULT = "an eighth of a tile"


def choose_overlap(measured: Sequence[MeasuredOverlap], tile: int) -> tuple[int, str]:
    """Returns the smallest overlap that is nearly as good as a quarter of a tile, and the rule in words.

    The measure is F1; if the labels hold no change, so that F1 is undefined, it is the seam agreement. Nearly as good:
    at most 0.2 points below the value at a quarter. Larger overlaps than a quarter are never chosen.

    More overlap gives a pixel more context. If a smaller one is more than 0.2 points better, the images are too few to
    tell 0.2 points apart, and the smallest choice is an eighth, the default without a measurement.

    Args:
        measured: Measurements by ascending overlap; one of them is a quarter of a tile.
        tile: Side of a tile in pixels.
    """
    allowed = [one for one in measured if one.overlap <= tile // 4]
    if allowed[-1].f1 is None:
        values, name = [one.seam_agreement for one in allowed], "no label holds change; smallest with seam agreement"
    else:
        values, name = [one.f1 or 0.0 for one in allowed], "smallest with F1"
    tolerance = TOLERANCE + 1e-9  # a difference of exactly the tolerance must not depend on rounding
    rule = f"{name} at most {100 * TOLERANCE:g} points below that of a quarter of a tile"
    smallest = 0
    if max(values) > values[-1] + tolerance:
        smallest = tile // 8
        rule += "; at least an eighth, because less overlap scored higher by more than that: too few images"
    chosen = next(
        one for one, value in zip(allowed, values, strict=True)
        if one.overlap >= smallest and value >= values[-1] - tolerance
    )  # fmt: skip
    return chosen.overlap, rule


def measure_overlap(
    context: BuildContext, entries: Sequence[EngineEntry], timings: Sequence[Timing], val: TileSet | None
) -> ChosenOverlap:
    """Measures the overlaps of scenes with the fastest engine and chooses one.

    An eighth of a tile is taken if there is nothing to measure with: no engine that runs here, or no validation image
    that is larger than a tile.

    Args:
        context: The build.
        entries: The bundle's engines.
        timings: Throughput of the engines that run on this machine.
        val: The validation set.

    Raises:
        GateFailed: The engine's output has NaN or Inf.
    """
    tile = context.interface.tile
    height, width = smallest_size(tile)
    with context.log.stage("measure overlap") as stage:
        scenes = scenes_of(val, tile) if val is not None and timings else []
        if val is None or not scenes:
            missing = (
                "no --val was given" if val is None
                else "no engine of the bundle runs on the machine of the build" if not timings
                else f"no image of --val has at least {width} x {height} px"
            )  # fmt: skip
            chosen = ChosenOverlap(tile // 8, f"{_DEFAULT}: {missing}")
            stage.finding = f"{chosen.overlap} px, {chosen.reason}"
            return chosen
        fastest = max(timings, key=lambda timing: timing.pairs_per_second).engine
        entry = next(entry for entry in entries if entry.name == fastest)
        batch = min(batch_for_scenes(entry), context.interface.max_batch)
        with ChangeDetector(open_for_evaluation(entry, context.root, context.interface), context.interface) as detector:
            threshold = context.policy.threshold
            measured = measure_overlaps(
                detector, scenes, threshold, overlaps=overlaps_of(tile), batch=batch, progress=stage.progress
            )
        overlap, rule = choose_overlap(measured, tile)
        of = f"{len(scenes)} of {plural(len(val.sources), 'validation image')}"
        megapixels = sum(scene.pixels for scene in scenes) / 1e6
        chosen = ChosenOverlap(overlap, f"{rule}; {fastest} on {of}, {megapixels:.1f} megapixels", measured)
        stage.finding = chosen.finding(tile)
    return chosen

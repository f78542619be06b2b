"""Finds signs that a network was declared wrongly: a graph with swapped dates or wrong pixels runs as well as any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.evaluate import Reference
from misgnet_export.sources.float_model import FloatModel, Source
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.accuracy.parity import EvaluatedTile, evaluate_tiles
from misgnet_runtime.callables import Image, Predict
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current
from misgnet_runtime.raster.dataset import TileSet

_TILES = 32  # on which swapped inputs are tried
_CLEARLY = 0.01  # of F1; the dates of a symmetric network differ by rounding alone, two orders of bands by little
_EVERYTHING = 0.99  # share of pixels


@dataclass(frozen=True)
class Swapped:
    """F1 on the same tiles, 0 to 1, of the network as declared and with its inputs changed; None: not measured."""

    declared: float | None
    dates: float | None = None  # with AFTER given as BEFORE and vice versa
    bands: float | None = None  # with the bands of both dates in reverse order


def check_declaration(
    context: BuildContext, source: Source, model: FloatModel, tiles: TileSet, reference: Reference
) -> list[str]:
    """Returns warnings about the float model's masks of the evaluation tiles, and logs them.

    A MISGNet is not declared, so nothing is swapped.
    """
    with context.log.stage("check the declaration") as stage:
        found = _mask_warnings(reference.evaluated, source)
        if source.entry.source != "misgnet" and tiles.labelled and not found:
            few = tiles.spread(_TILES)
            swapped = _swap(model, few, context.policy.threshold, reference.evaluated)
            found += swap_warnings(swapped, source, len(few))
        stage.finding = "; ".join(found) or "nothing unusual in the float model's masks"
    for warning in found:
        current().warning(warning)
    return found


def mask_share(evaluated: list[EvaluatedTile]) -> float:
    """Returns the share of pixels that masks call changed, 0 to 1."""
    total = Confusion.total([tile.confusion for tile in evaluated])
    return (total.tp + total.fp) / max(1, total.pixels)


def _mask_warnings(evaluated: list[EvaluatedTile], source: Source) -> list[str]:
    share = mask_share(evaluated)
    if 0 < share <= _EVERYTHING:
        return []
    what = "no change at all" if share == 0 else f"change in {100 * share:.1f} % of all pixels"
    advice = (
        "check the weights" if source.entry.source == "misgnet"
        else "check --model-output, --changed, --normalization, --scale and the weights"
    )  # fmt: skip
    return [f"the float model finds {what} on the evaluation tiles: {advice}"]


def swap_warnings(found: Swapped, source: Source, tiles: int) -> list[str]:
    """Returns warnings about changed inputs with which F1 is clearly better."""
    if found.declared is None:
        return []
    io, on = source.declaration.io, f"on {plural(tiles, 'evaluation tile')}"
    dates = "exchange the names in --model-inputs" if io == "pair" else "let the network take BEFORE first"
    changes = (
        ("the dates swapped", found.dates, dates),
        ("the bands reversed", found.bands, "for example BGR for RGB"),
    )
    return [
        f"F1 is {f1:.4f} with {what} and {found.declared:.4f} as declared, {on}: {advice}"
        for what, f1, advice in changes
        if f1 is not None and f1 > found.declared + _CLEARLY
    ]


def _swap(model: FloatModel, tiles: TileSet, threshold: float, evaluated: list[EvaluatedTile]) -> Swapped:
    """Measures F1 of ``tiles``, which are among those ``evaluated`` as declared."""

    def f1(predict: Predict) -> float | None:
        found = evaluate_tiles(model.reference, predict, tiles, threshold)
        return Confusion.total([tile.confusion for tile in found]).f1

    names = {ref.name for ref in tiles}
    declared = Confusion.total([tile.confusion for tile in evaluated if tile.name in names]).f1

    def dates(before: Image, after: Image) -> NDArray[np.float32]:
        return model.predict(after, before)

    def bands(before: Image, after: Image) -> NDArray[np.float32]:
        return model.predict(*(np.ascontiguousarray(images[..., ::-1]) for images in (before, after)))

    return Swapped(declared, f1(dates), f1(bands) if model.interface.bands > 1 else None)

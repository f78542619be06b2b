"""Chooses the calibrator for a recipe's ranges: the requested one, or the best one on validation tiles.

Candidates are compared by the mean difference of the probability of change. Every pixel contributes to it, while F1 and
the masks depend on the few pixels near the threshold, of which a few dozen tiles have too many by chance. The choice
per tensor is the best of very many combinations, so it must be better than the best single calibrator by more than the
noise among the validation images; tiles of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from misgnet_calibration.onnx_graph import Graph
from misgnet_calibration.quantizer.per_tensor_range import PerTensor, choose_per_tensor
from misgnet_calibration.quantizer.placement import quantizer_sites
from misgnet_calibration.quantizer.quantize import QuantizationInputs, QuantizedGraph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.calibrators import (
    AUTO,
    CANDIDATES,
    DEFAULT,
    PER_TENSOR,
    Calibrating,
    Calibrator,
    named,
)
from misgnet_calibration.statistics.observers import Range
from misgnet_export.pipeline.calibrate import Calibrated
from misgnet_export.pipeline.validation_loss import Loss
from misgnet_runtime.callables import Progress

# 95 % quantiles of Student's t distribution with 1 to 10 degrees of freedom; with more it is a little smaller.
_STUDENT_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


@dataclass(frozen=True)
class Candidate:
    """An INT8 graph with the ranges of one calibrator, and its loss; None if there is no validation set."""

    calibrator: Calibrating
    inputs: QuantizationInputs
    quantized: QuantizedGraph
    loss: Loss | None


def quantized_as(
    requested: str, start: Calibrated, recipe: Recipe, progress: Progress
) -> tuple[Candidate, dict[str, Candidate]]:
    """Returns the graph for the requested observer, and all candidates if it was chosen on validation tiles."""
    if requested == AUTO and start.decision is not None:
        tried = try_calibrators(start, recipe, progress)
        chosen = tried[choose({name: c.loss.by_image for name, c in tried.items() if c.loss})]
        return chosen, tried
    if requested == PER_TENSOR:
        return quantized_with(per_tensor(start, recipe, _candidate_ranges(start, recipe), progress), start, recipe), {}
    return quantized_with(named(requested) or DEFAULT, start, recipe), {}


def try_calibrators(start: Calibrated, recipe: Recipe, progress: Progress) -> dict[str, Candidate]:
    """Quantizes with each calibrator of CANDIDATES and with their best choice per tensor; returns them by name."""
    tried: dict[str, Candidate] = {}
    for done, calibrator in enumerate(CANDIDATES, 1):
        tried[calibrator.name] = quantized_with(calibrator, start, recipe)
        progress(done, len(CANDIDATES) + 1)
    ranges = {calibrator: tried[calibrator.name].inputs.ranges for calibrator in CANDIDATES}
    chosen = per_tensor(start, recipe, ranges)
    return {**tried, chosen.name: quantized_with(chosen, start, recipe)}


def quantized_with(calibrator: Calibrating, start: Calibrated, recipe: Recipe) -> Candidate:
    """Quantizes for ``recipe`` with the ranges of ``calibrator``."""
    inputs = QuantizationInputs(
        model=start.model, ranges=_ranges(calibrator, start, recipe), absolute_maxima=start.observed.absolute_maxima,
        float32_scopes=start.float32_scopes,
    )  # fmt: skip
    quantized = inputs.quantize(recipe)
    return Candidate(calibrator, inputs, quantized, start.decision.loss(quantized.model) if start.decision else None)


def per_tensor(
    start: Calibrated, recipe: Recipe, ranges: Mapping[Calibrator, Mapping[str, Range]],
    progress: Progress | None = None,
) -> PerTensor:  # fmt: skip
    """Chooses for each tensor the calibrator of ``ranges`` with the smallest error in the operators that read it."""
    sites = quantizer_sites(Graph(start.model), recipe)
    return choose_per_tensor(
        start.model, start.interface, start.calib, sites, recipe, candidates=ranges, progress=progress
    )


def _candidate_ranges(start: Calibrated, recipe: Recipe) -> dict[Calibrator, Mapping[str, Range]]:
    return {calibrator: _ranges(calibrator, start, recipe) for calibrator in CANDIDATES}


def _ranges(calibrator: Calibrating, start: Calibrated, recipe: Recipe) -> Mapping[str, Range]:
    return start.observed.ranges(calibrator, symmetric=recipe.symmetric_activations)


def choose(errors: Mapping[str, Sequence[float]]) -> str:
    """Returns the single calibrator with the smallest mean error, or PER_TENSOR if that is better beyond noise.

    Args:
        errors: By calibrator, the error on each validation image, in the same order; empty if it has NaN. Of equally
            good calibrators, the first is taken.
    """
    singles = {name: found for name, found in errors.items() if name != PER_TENSOR}
    best = min(singles, key=lambda name: float(np.mean(singles[name])) if singles[name] else np.inf)
    mixture = errors.get(PER_TENSOR, ())
    return PER_TENSOR if mixture and surely_smaller(mixture, singles[best]) else best


def surely_smaller(errors: Sequence[float], others: Sequence[float]) -> bool:
    """Returns whether ``errors`` are smaller than ``others`` on the same images by more than chance explains.

    This is Student's paired t-test, one-sided, at 5 % ("The probable error of a mean", Biometrika 6, 1908). A single
    image has no noise to compare with; then the result is False.
    """
    if len(errors) < 2 or len(errors) != len(others):
        return False
    gains = np.subtract(others, errors)
    noise = float(gains.std(ddof=1)) / len(gains) ** 0.5
    return bool(gains.mean() > _STUDENT_95[min(len(gains) - 1, len(_STUDENT_95)) - 1] * noise)

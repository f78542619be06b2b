"""Repairs an INT8 graph by bias correction, smoothing and learned rounding; keeps a step only if the graph improves.

The cheapest step is the first, and no step follows once the graph is good enough. Biases are corrected again after each
later step, which changes the errors that they correct.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, Protocol, TypeVar

import onnx

from misgnet_calibration.algorithms.bias_correction import correct_bias
from misgnet_calibration.algorithms.rounding import learn_rounding
from misgnet_calibration.algorithms.smooth_quant import smooth
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.placement import QuantizerSite, quantizer_sites, weighted
from misgnet_calibration.quantizer.quantize import QuantizationInputs, QuantizedGraph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import TileSet

PIXELS_OF_NOISE = 1e-5  # share of pixels whose mask may get worse by chance: 20 pixels of 32 tiles


class Measured(Protocol):
    """Distance of a graph from the float graph: ``misgnet_export.pipeline.agreement.Agreement`` implements it."""

    @property
    def mean(self) -> float: ...
    @property
    def pixels(self) -> float: ...


@dataclass(frozen=True)
class Score:
    """Agreement with the float graph."""

    mean: float  # mean absolute difference of the probability of change
    pixels: float  # share of pixels with the same mask


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One repair that was tried, for the manifest and the report."""

    name: str
    before: Score
    after: Score
    seconds: float
    kept: bool
    finding: str  # what the repair did, as text


Step = Literal["bias", "smoothing", "rounding"]
RangesOf = Callable[[onnx.ModelProto], Mapping[str, Range]]
AnyMeasured = TypeVar("AnyMeasured", bound=Measured)


@dataclass(frozen=True)
class Repaired(Generic[AnyMeasured]):
    """The best graph found."""

    quantized: QuantizedGraph
    inputs: QuantizationInputs  # from which it was made
    measured: AnyMeasured  # what ``decide`` measured on it
    attempts: tuple[Attempt, ...]  # all repairs that were tried

    @property
    def score(self) -> Score:
        return Score(self.measured.mean, self.measured.pixels)


def repair(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, recipe: Recipe, *,
    ranges_of: RangesOf, absolute_maxima: Mapping[str, float], decide: Callable[[onnx.ModelProto], AnyMeasured],
    enough: Callable[[AnyMeasured], bool] | None = None, progress: Progress | None = None,
    keep_float: Collection[str] = (), float32_scopes: Mapping[str, str] | None = None,
    steps: Sequence[Step] = ("bias", "smoothing", "rounding"),
) -> Repaired[AnyMeasured]:  # fmt: skip
    """Quantizes the float graph ``model`` for ``recipe`` and repairs it, one of ``steps`` after the other.

    ``ranges_of`` observes a float graph's activations on the calibration ``tiles``; it is called again after smoothing,
    which changes them. ``absolute_maxima``, ``keep_float`` and ``float32_scopes`` are passed to ``quantize``.
    ``decide`` measures a quantized graph on tiles not used for calibration. The remaining steps are skipped once
    ``enough`` is true of what was measured (default: no step is skipped). ``progress`` counts hundredths of a step.
    Raises InputError and GateFailed as ``quantize`` and the steps do.
    """
    inputs = QuantizationInputs(
        model=model, ranges=ranges_of(model), absolute_maxima=absolute_maxima, keep_float=frozenset(keep_float),
        float32_scopes=float32_scopes or {},
    )  # fmt: skip
    quantized = inputs.quantize(recipe)
    best = Repaired(quantized, inputs, decide(quantized.model), ())
    for index, name in enumerate(steps):
        if enough is not None and enough(best.measured):
            break
        work = _Work(
            interface=interface, tiles=tiles, recipe=recipe, ranges_of=ranges_of,
            progress=_part(progress, index, len(steps)),
        )  # fmt: skip
        best = _tried(best, name, work, decide)
    return best


def _tried(
    best: Repaired[AnyMeasured], name: Step, work: _Work, decide: Callable[[onnx.ModelProto], AnyMeasured]
) -> Repaired[AnyMeasured]:
    """Returns ``best`` with one more repair if that is better, else unchanged; records the attempt."""
    started = time.perf_counter()
    inputs, finding = _STEPS[name](best.inputs, work)
    quantized = inputs.quantize(work.recipe)
    after = Repaired(quantized, inputs, decide(quantized.model), ())
    kept = is_better(best.score, after.score)
    attempt = Attempt(
        name=name, before=best.score, after=after.score, seconds=time.perf_counter() - started, kept=kept,
        finding=finding,
    )  # fmt: skip
    attempts = (*best.attempts, attempt)
    return replace(after if kept else best, attempts=attempts)


def is_better(before: Score, after: Score) -> bool:
    """Returns whether a repair is kept: the mean difference is smaller, and the masks agree up to chance.

    The mean difference depends on every pixel; the masks only on pixels near the threshold, so a few of them are not
    significant. NaN is never better.
    """
    return after.mean < before.mean and after.pixels >= before.pixels - PIXELS_OF_NOISE


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Arguments of every step, besides the graph."""

    interface: Interface
    tiles: TileSet
    recipe: Recipe
    ranges_of: RangesOf
    progress: Progress | None


def _smoothing(given: QuantizationInputs, work: _Work) -> tuple[QuantizationInputs, str]:
    found = smooth(given.model, work.interface, work.tiles, work.recipe, work.progress)
    changed = [c for c in found.choices if c.alpha is not None]
    finding = f"moved outliers of {len(changed)} of {plural(len(found.choices), 'LayerNorm')} into weights"
    if not changed:
        return given, finding
    known = given.absolute_maxima
    absolute_maxima = {**known, **{name: value for name, value in found.absolute_maxima.items() if name in known}}
    smoothed = replace(given, model=found.model, ranges=work.ranges_of(found.model), absolute_maxima=absolute_maxima)
    return _corrected_again(smoothed, work), finding


def _rounding(given: QuantizationInputs, work: _Work) -> tuple[QuantizationInputs, str]:
    sites = _sites(given, work)
    found = learn_rounding(
        given.model, work.interface, work.tiles, sites, work.recipe, ranges=given.ranges, progress=work.progress
    )
    finding = f"learned rounding of {len(found.quantized_weights)} of {plural(len(weighted(sites)), 'weight')}"
    return _corrected_again(replace(given, quantized_weights=found.quantized_weights), work), finding


def _corrected_again(given: QuantizationInputs, work: _Work) -> QuantizationInputs:
    """Returns ``given``, with corrections of its biases learned for its present weights and ranges if it has any."""
    return _bias(given, work)[0] if given.bias else given


def _bias(given: QuantizationInputs, work: _Work) -> tuple[QuantizationInputs, str]:
    sites = _sites(given, work)
    found = correct_bias(
        given.model, work.interface, work.tiles, sites, work.recipe,
        ranges=given.ranges, quantized_weights=given.quantized_weights, progress=work.progress,
    )  # fmt: skip
    corrected = sum(site.node in found.corrections for site in weighted(sites))
    finding = f"corrected {corrected} of {len(weighted(sites))} biases"
    if len(found.corrections) > corrected:
        finding += " and that of the output"
    return replace(given, bias=found.corrections), finding


_STEPS: Mapping[Step, Callable[[QuantizationInputs, _Work], tuple[QuantizationInputs, str]]] = {
    "bias": _bias,
    "smoothing": _smoothing,
    "rounding": _rounding,
}


def _sites(given: QuantizationInputs, work: _Work) -> list[QuantizerSite]:
    return [p for p in quantizer_sites(Graph(given.model), work.recipe) if p.node not in given.keep_float]


def _part(progress: Progress | None, index: int, count: int) -> Progress | None:
    """Returns a progress function for one of ``count`` steps, which reports hundredths of all steps."""
    if progress is None:
        return None
    return lambda done, total: progress(100 * index + 100 * done // max(1, total), 100 * count)

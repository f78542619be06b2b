"""Quantizes the graph for one recipe; if that loses too much, repairs it, and if needed reverts operators to float.

Float16 operators are then checked for overflow; for a recipe without INT8, this is the only stage.

All decisions are made on calibration and validation tiles. The evaluation tiles are used only once, by the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx

from misgnet_calibration.algorithms.accuracy_control import (
    ControlReport,
    Limit,
    Step,
    control,
    groups_of,
    listed,
    passes,
    ties_of,
)
from misgnet_calibration.algorithms.improve import Attempt, Score, repair
from misgnet_calibration.onnx_graph import Graph
from misgnet_calibration.quantizer.known_modules import KnownModules
from misgnet_calibration.quantizer.overflow import fix_overflow
from misgnet_calibration.quantizer.quantize import QuantizationInputs, QuantizedGraph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.calibrators import Calibrating
from misgnet_calibration.statistics.observers import Range
from misgnet_export.evidence import ControlSpeed
from misgnet_export.pipeline.agreement import Agreement, compare, is_broken, predictions_of
from misgnet_export.pipeline.calibrate import Calibrated, observe
from misgnet_export.pipeline.choose_calibrator import quantized_as
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.control_speed import measure_control
from misgnet_export.pipeline.validation_loss import Decision, Loss
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current

# The choice is made on few tiles and is the best of many, so only half of the drop that the gate allows is used up.
_RESERVE = 0.5
# Share of pixels whose mask may differ if the gate allows half a point, and if it allows next to nothing: INT8 graphs
# have 0.0005 to 0.0007 before and 0.0004 to 0.0006 after bias correction, so one with more is unusual.
_DIFFERING, _LEAST_DIFFERING = 0.002, 0.0007
# Half the width, in probability, of the band around the threshold in which the float graph is undecided. Measured: INT8
# graphs of other networks move the probability by 0.002 to 0.01 on average.
_UNDECIDED, _MOST_DIFFERING = 0.01, 0.02


@dataclass(frozen=True, kw_only=True)
class RecipeGraph:
    """The graph of a recipe and the decisions behind it."""

    quantized: QuantizedGraph
    inputs: QuantizationInputs
    calibrator: Calibrating | None = None  # None for a recipe without INT8
    tried: Mapping[str, Agreement] = field(default_factory=dict)
    repairs: tuple[Attempt, ...] = ()
    control: ControlReport | None = None
    control_speed: ControlSpeed | None = None  # what the operators cost that control reverted


def quantize_recipe(context: BuildContext, start: Calibrated, recipe: Recipe) -> RecipeGraph:
    """Runs all stages for ``recipe``; warns if the graph is broken, not just lossy, which the gate will find."""
    if recipe.int8:
        found = _to_int8(context, start, recipe)
    else:
        inputs = QuantizationInputs(
            model=start.model, ranges={}, absolute_maxima=start.observed.absolute_maxima,
            float32_scopes=start.float32_scopes,
        )  # fmt: skip
        found = RecipeGraph(quantized=inputs.quantize(recipe), inputs=inputs)
    if recipe.float16:
        found = _check_float16(context, start, recipe, found)
    predicted = predictions_of(found.quantized.model, context.interface, context.check_tiles)
    close = compare(start.predictions, predicted, context.policy.threshold)
    if is_broken(close):
        current().warning(
            f"the graph for {recipe.name} agrees with the float graph in only {100 * close.pixels:.2f} % of the pixels "
            "of calibration tiles; the gate decides about its engines"
        )
    return found


def _to_int8(context: BuildContext, start: Calibrated, recipe: Recipe) -> RecipeGraph:
    """Quantizes, and reduces the loss if needed.

    All decisions are made with float32 in place of float16: half precision is several times as slow on a CPU, and next
    to INT8 its rounding is small. Its overflow is checked afterwards, and the gate runs the graph itself.
    """
    found, loss = _quantize(context, start, replace(recipe, float16=False))
    if start.decision is not None and loss is not None:
        found = _reduce_loss(context, start, start.decision, found, loss)
    return replace(found, quantized=found.inputs.quantize(recipe)) if recipe.float16 else found


def _check_float16(context: BuildContext, start: Calibrated, recipe: Recipe, found: RecipeGraph) -> RecipeGraph:
    """Checks for overflow on the check tiles and the validation tiles, few or none of which were used to calibrate."""
    tiles = [*context.check_tiles, *(start.decision.tiles if start.decision else ())]
    with context.log.stage(f"check float16 for {recipe.name}") as stage:
        fixed = fix_overflow(found.inputs, found.quantized, context.interface, tiles, stage.progress)
        added = f"{len(fixed.added)} of them because of overflow" if fixed.added else "no overflow"
        room = f"{fixed.largest}, {fixed.headroom:.0f} times below the limit" if fixed.largest else "no float16"
        stage.finding = f"{plural(len(fixed.quantized.float32), 'operator')} in float32, {added}; {room}"
    return replace(found, quantized=fixed.quantized, inputs=fixed.inputs)


def _reduce_loss(
    context: BuildContext, start: Calibrated, decision: Decision, found: RecipeGraph, loss: Loss
) -> RecipeGraph:
    """Repairs the graph and then reverts operators to float, each only if needed."""
    request, usual = context.request, _usual_differing(context.known, decision)
    limit = limit_of(context.policy.limit, decision.reference_f1, usual)
    if request.repair == "always" or (request.repair == "auto" and not passes(loss.measurement, limit)):
        found, loss = _repair(context, start, decision, found, limit)
    if request.control_minutes > 0 and not passes(loss.measurement, limit):
        found = _control(context, decision, found, limit)
    return found


def _usual_differing(known: KnownModules, decision: Decision) -> float:
    """Returns the share of pixels that may differ although nothing is lost.

    If it is not known, it is the share of pixels that the float graph hardly decides, at most 2 %: the least noise
    changes them. Without labelled change, the gate itself limits the differing pixels, so only few may differ.
    """
    if known.usual_differing is not None:
        return known.usual_differing
    if decision.reference_f1 is None:
        return _LEAST_DIFFERING
    return min(_MOST_DIFFERING, max(_LEAST_DIFFERING, decision.undecided(_UNDECIDED)))


def limit_of(gate: F1Limit, reference_f1: float | None, usual: float = _LEAST_DIFFERING) -> Limit:
    """Returns the loss allowed on validation tiles: half of the gate's F1 drop, and few differing pixels.

    On few tiles F1 can even rise although a graph is worse, since pixels change in both directions; the pixels that
    differ from the float graph's mask reveal it. A stricter gate allows fewer such pixels.

    Args:
        gate: What the engines must keep on the evaluation tiles.
        reference_f1: F1 of the float graph on the validation tiles, 0 to 1; None if no label has change.
        usual: The share of pixels that usually differ, which is always allowed.
    """
    allowed = gate.points(reference_f1)
    points = allowed * _RESERVE if allowed > 0 else allowed
    differing = max(usual, min(_DIFFERING, allowed * _DIFFERING / 0.5))
    return Limit(points, 1 - max(differing, points / 1000))


def _quantize(context: BuildContext, start: Calibrated, recipe: Recipe) -> tuple[RecipeGraph, Loss | None]:
    """Quantizes with the requested or the best calibrator; also returns the loss if there is a validation set."""
    with context.log.stage(f"quantize to INT8 for {recipe.name}") as stage:
        chosen, tried = quantized_as(context.request.observer, start, recipe, stage.progress)
        stage.finding = f"{_described(chosen.quantized)}, {chosen.calibrator}"
    agreeing = {name: candidate.loss.agreement for name, candidate in tried.items() if candidate.loss}
    found = RecipeGraph(quantized=chosen.quantized, inputs=chosen.inputs, calibrator=chosen.calibrator, tried=agreeing)
    return found, chosen.loss


def _repair(
    context: BuildContext, start: Calibrated, decision: Decision, found: RecipeGraph, limit: Limit
) -> tuple[RecipeGraph, Loss]:
    """Returns the repaired graph and its loss."""
    recipe, calibrator, always = found.quantized.recipe, found.calibrator, context.request.repair == "always"
    assert calibrator is not None

    def ranges_of(model: onnx.ModelProto) -> Mapping[str, Range]:
        seen = start.observed if model is start.model else observe(model, decision.interface, start.calib, [recipe])
        return seen.ranges(calibrator, symmetric=recipe.symmetric_activations)

    with context.log.stage(f"repair for {recipe.name}") as stage:
        better = repair(
            start.model, decision.interface, start.calib, recipe, ranges_of=ranges_of,
            absolute_maxima=start.observed.absolute_maxima, float32_scopes=start.float32_scopes, decide=decision.loss,
            enough=None if always else lambda loss: passes(loss.measurement, limit), progress=stage.progress,
        )  # fmt: skip
        kept = [attempt.name for attempt in better.attempts if attempt.kept] or ["nothing"]
        first = better.attempts[0].before if better.attempts else better.score
        stage.finding = f"kept {', '.join(kept)}: {_gain(first, better.score)}"
    repaired = replace(found, quantized=better.quantized, inputs=better.inputs, repairs=better.attempts)
    return repaired, better.measured


def _control(context: BuildContext, decision: Decision, found: RecipeGraph, limit: Limit) -> RecipeGraph:
    graph, recipe = Graph(found.inputs.model), found.quantized.recipe
    groups = groups_of(graph, found.quantized.sites, context.known.groups)
    nodes = {group.name: group.nodes for group in groups}
    few = decision.fewer()

    def keeping(names: frozenset[str]) -> QuantizationInputs:
        return replace(found.inputs, keep_float=frozenset(node for name in names for node in nodes[name]))

    with context.log.stage(f"accuracy control for {recipe.name}") as stage:

        def listen(step: Step, left: float) -> None:
            lost = "n/a" if step.measurement.f1_drop is None else f"{step.measurement.f1_drop:+.3f} points"
            stage.show_status(
                f"step {step.number}, {step.phase}: {lost}, {100 * step.int8_share:.1f} % INT8, {left:.0f} s left"
            )

        report = control(
            groups, lambda names: decision.loss(keeping(names).quantize(recipe).model).measurement,
            limit.points, 60 * context.request.control_minutes, min_agreement=limit.agreement,
            estimate=lambda names: few.loss(keeping(names).quantize(recipe).model).measurement,
            ties=ties_of(groups, found.quantized.sites),
            total_macs=sum(graph.macs(node) for node in graph.nodes), listen=listen,
        )  # fmt: skip
        inputs = keeping(frozenset(report.result.float_groups))
        quantized = inputs.quantize(recipe)
        floats = listed(report.result.float_groups, groups)
        speed = None
        if report.result.float_groups:
            speed = measure_control(context, recipe, found.quantized.model, quantized.model)
        cost = f", {speed.ratio:.2f} times the speed in {speed.engine}" if speed else ""
        stage.finding = f"{_described(quantized)}; {report.result.reason}; reverted to float: {floats}{cost}"
    return replace(found, quantized=quantized, inputs=inputs, control=report, control_speed=speed)


def _described(quantized: QuantizedGraph) -> str:
    sites = plural(len(quantized.sites), "quantizer site")
    return f"{sites}, {100 * quantized.int8_share:.1f} % of the MACs"


def _gain(before: Score, after: Score) -> str:
    pixels = f"{100 * before.pixels:.3f} to {100 * after.pixels:.3f} % of pixels agree"
    return f"{pixels}, mean difference {before.mean:.1e} to {after.mean:.1e}"

"""Runs a build, from a checkpoint to a verified bundle. Calls the stages in order; no stage calls another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES
from misgnet_export.pipeline.calibrate import Calibrated, calibrate
from misgnet_export.pipeline.check_declaration import check_declaration
from misgnet_export.pipeline.choose_overlap import measure_overlap
from misgnet_export.pipeline.choose_tile import choose_tile
from misgnet_export.pipeline.compile import make_engines
from misgnet_export.pipeline.context import CHECK_TILES, BuildContext
from misgnet_export.pipeline.evaluate import Reference, evaluate_engines, evaluate_reference
from misgnet_export.pipeline.float_graph import make_float_graph
from misgnet_export.pipeline.graph_files import write_float, write_quantized
from misgnet_export.pipeline.leave_out import leave_out_float_graph, leave_out_misses
from misgnet_export.pipeline.loading import load_sets
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.quantize import RecipeGraph, quantize_recipe
from misgnet_export.pipeline.request import BuildRequest, check_model, check_request, with_interface
from misgnet_export.pipeline.result import Draft, Evidence, FloatGraph, GraphFile, Sets, WrittenGraph
from misgnet_export.pipeline.ship_tiles import ship_evaluation, ship_golden_tiles
from misgnet_export.pipeline.split import split_graphs
from misgnet_export.pipeline.targets import product_of, recipes_of
from misgnet_export.pipeline.threshold import tune_threshold
from misgnet_export.pipeline.throughput import time_engines
from misgnet_export.pipeline.write_bundle import write_bundle, write_rejected
from misgnet_export.report import parity_table
from misgnet_export.report.control import control_table
from misgnet_export.sources import open_source
from misgnet_export.sources.float_model import FloatModel, Source
from misgnet_export.sources.torch_threads import one_thread_per_call
from misgnet_runtime.bundle import EngineEntry
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_folder
from misgnet_runtime.tables import print_table


@dataclass(frozen=True)
class Built:
    """The result of a build."""

    bundle: Path
    report: Path  # the HTML report in the bundle
    draft: Draft  # all measurements
    stages: list[tuple[str, float, str]]  # (name, seconds, finding)


def build(request: BuildRequest, console: Console) -> Built:
    """Runs all stages and moves the finished bundle into place.

    Raises:
        GateFailed: A stage disagrees with the one before, or the gate fails. In the latter case the evidence is
            written to ``<output>.rejected``. No bundle or other file is left.
    """
    refuse_inputs([request.output], request.files)
    refuse_existing(request.output, request.force)
    check_request(request)
    log = StageLog(console)
    with one_thread_per_call(), replace_folder(request.output, force=request.force) as root:
        source = _open_source(request, log)
        tile = choose_tile(request, source, root, log) if request.tile == "auto" else None
        request = replace(request, tile=tile.tile) if tile else request
        draft = replace(_run_stages(request, source, root, log), tile=tile)
        if not draft.evidence.parity.passed:
            raise _rejected(request, draft, log)
        write_bundle(root, request, draft, log.done)
    return Built(request.output, request.output / "evidence" / "report.html", draft, log.done)


def _open_source(request: BuildRequest, log: StageLog) -> Source:
    with log.stage("read the network") as stage:
        source = open_source(request.source, request.model)
        stage.finding = "; ".join(source.findings)
    return source


def _run_stages(request: BuildRequest, source: Source, root: Path, log: StageLog) -> Draft:
    if request.auto is not None:
        with log.stage("choose targets") as stage:
            names = ", ".join(target.name for target in request.auto.targets)
            stage.finding = f"auto stands for {names} ({request.auto.reason})"
    request, interface = with_interface(request, source)
    model = source.float_model(interface)
    check_model(request, model)
    sets = load_sets(request, model, log)
    check_tiles = tuple(sets.calib.spread(CHECK_TILES).tiles())
    context = BuildContext(
        request=request, root=root, log=log, policy=request.policy, interface=interface, entry=source.entry,
        check_tiles=check_tiles, weights_sha256=source.sha256, known=model.known,
    )  # fmt: skip
    graph, tuned = make_float_graph(context, model), None
    if request.threshold == "tuned" and sets.val is not None:
        tuned = tune_threshold(context, graph, sets.val)
        context = context.with_threshold(tuned.threshold)
    graphs = split_graphs(context, [write_float(context, graph.model), *_quantize(context, graph, sets)])
    engines, reference = _compile_and_evaluate_reference(context, graphs, model, sets.evaluation)
    warnings = check_declaration(context, source, model, sets.evaluation, reference)
    parity, pictures = evaluate_engines(
        engines, sets.evaluation, reference, files=root, interface=interface, policy=context.policy, log=log
    )
    draft = Draft(
        source=source, interface=interface, sets=sets, graphs=graphs, engines=engines,
        evidence=Evidence(parity, pictures, warnings=warnings), tuned=tuned,
    )  # fmt: skip
    draft = leave_out_misses(context, draft)
    parity = draft.evidence.parity
    if not parity.passed:
        return draft
    draft = leave_out_float_graph(context, draft)
    golden = ship_golden_tiles(root, sets.evaluation, parity, model.predict)
    if request.ship_eval:
        ship_evaluation(context, sets.evaluation, model.predict)
    ran = {engine.engine for engine in parity.engines if engine.status == "run"}
    timings = time_engines(context, [entry for entry in draft.engines if entry.name in ran], golden)
    overlap = measure_overlap(context, draft.engines, timings, sets.val)
    return replace(draft, evidence=replace(draft.evidence, timings=timings), overlap=overlap)


def _quantize(context: BuildContext, graph: FloatGraph, sets: Sets) -> list[WrittenGraph]:
    recipes = [
        _placed(context.known.applied_to(recipe), context.request) for recipe in recipes_of(context.request.targets)
    ]
    if not recipes:
        return []
    starts = _calibrate(context, graph, sets, recipes)
    found = context.log.overlap(*(partial(_quantize_recipe, context, starts[recipe], recipe) for recipe in recipes))
    graphs = []
    for recipe, quantized in zip(recipes, found, strict=True):
        graphs.append(write_quantized(context, graph.of(recipe), recipe, quantized))
        if control := graphs[-1].file.control:
            print_table(control_table(control), context.log.console)
    return graphs


def _calibrate(context: BuildContext, graph: FloatGraph, sets: Sets, recipes: list[Recipe]) -> dict[Recipe, Calibrated]:
    """Calibrates each form of the float graph once, for all recipes that quantize it."""
    starts: dict[Recipe, Calibrated] = {}
    for form in (graph, graph.for_gpu):
        if form is not None and (own := [recipe for recipe in recipes if graph.of(recipe) is form]):
            start = calibrate(context, form, sets, own)
            starts |= dict.fromkeys(own, start)
    return starts


def _quantize_recipe(context: BuildContext, start: Calibrated, recipe: Recipe, log: StageLog) -> RecipeGraph:
    return quantize_recipe(context.with_log(log), start, recipe)


def _compile_and_evaluate_reference(
    context: BuildContext, graphs: list[GraphFile], model: FloatModel, tiles: TileSet
) -> tuple[list[EngineEntry], Reference]:
    """Makes the engines and evaluates the float model: at the same time, since most of a compilation needs one core."""

    def make(log: StageLog) -> list[EngineEntry]:
        return make_engines(context.with_log(log), graphs, model.network)

    def evaluate(log: StageLog) -> Reference:
        return evaluate_reference(model.reference, model.predict, tiles, context.policy, log)

    if any(product_of(target).from_program for target in context.request.targets):
        # While torch.export traces a network, it replaces methods of all modules; none may be called beside it.
        return make(context.log), evaluate(context.log)
    return context.log.overlap_two(make, evaluate)


def _placed(recipe: Recipe, request: BuildRequest) -> Recipe:
    return replace(recipe, rules=EVERYTHING_RULES) if request.placement == "all" and recipe.int8 else recipe


def _rejected(request: BuildRequest, draft: Draft, log: StageLog) -> GateFailed:
    """Writes the evidence next to the intended bundle, prints it, and returns the error to raise."""
    path = request.output.parent / f"{request.output.name}.rejected"
    with replace_folder(path) as root:
        write_rejected(root, request, draft, log.done)
    print_table(parity_table(draft.evidence.parity), log.console)
    return GateFailed(
        f"the gate failed, so no bundle was written; the evidence is in {path}: {draft.evidence.parity.failures}"
    )

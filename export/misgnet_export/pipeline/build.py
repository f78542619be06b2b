"""``misgnet-export build``: a checkpoint in, a verified bundle out. Each stage is a function of the one before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from rich.console import Console

from misgnet.evaluation import predict_probability
from misgnet.network import MISGNet
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES
from misgnet_calibration.statistics.cache import ActivationStatistics, StatisticsKey
from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.half import with_half_features
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.agreement import Answers, answers, answers_of, compare, detector_of, require_same
from misgnet_export.pipeline.calibrate import Calibrated, observe, observe_or_reuse
from misgnet_export.pipeline.compile import make_engines
from misgnet_export.pipeline.evaluate import choose_golden, judge_engines, time_engines
from misgnet_export.pipeline.loading import load_sets
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.quantization_record import quantization_entry
from misgnet_export.pipeline.quantize import quantize_recipe
from misgnet_export.pipeline.request import BuildRequest, check_request
from misgnet_export.pipeline.result import FLOAT_GRAPH, Draft, Evidence, GraphFile, Sets, lowest
from misgnet_export.pipeline.ship_evaluation import ship_evaluation
from misgnet_export.pipeline.split import split_graphs
from misgnet_export.pipeline.targets import recipes_of
from misgnet_export.pipeline.threshold import Tuned, tune_threshold
from misgnet_export.pipeline.validation_loss import Decision
from misgnet_export.pipeline.write_bundle import write_bundle, write_golden_tiles, write_rejected
from misgnet_export.report import parity_table
from misgnet_export.report.control import control_table, record_of
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.callables import Predict, Progress
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.inference.detector import tile_per_stream
from misgnet_runtime.raster.dataset import Tile
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_folder

_CHECK_TILES = 8
_THRESHOLD_TILES = 128
Transform = Callable[[onnx.ModelProto], onnx.ModelProto]
# What is done to the exported graph: by which function, the stage's name, and what it and the graph before are called.
_TRANSFORMS: tuple[tuple[Transform, str, tuple[str, str]], ...] = (
    (simplify_graph, "simplify", ("the simplified graph", "the exported one")),
    (rewrite, "rewrite", ("the rewritten graph", "the simplified one")),
)


@dataclass(frozen=True)
class Answered:
    """A graph, and what it answers on the tiles that every stage is checked on."""

    model: onnx.ModelProto
    answers: Answers


@dataclass(frozen=True)
class Built:
    """What a build left: the bundle, the report within it, all figures, and (name, seconds, finding) of the stages."""

    bundle: Path
    report: Path
    draft: Draft
    stages: list[tuple[str, float, str]]


def build(request: BuildRequest, console: Console) -> Built:
    """Run all stages and move the finished bundle into place.

    Raises GateFailed where a stage disagrees with the one before, or where the gate fails; then the evidence
    lies in ``<output>.rejected`` and there is no bundle. Nothing else is ever left.
    """
    sets = [path for path in (request.calib, request.val, request.evaluation) if path is not None]
    refuse_inputs([request.output], [request.weights, *sets])
    refuse_existing(request.output, request.force)
    check_request(request)
    log = StageLog(console)
    with replace_folder(request.output, force=request.force) as root:
        draft = _run_stages(request, root, log)
        if not draft.evidence.parity.passed:
            raise _rejected(request, draft, log)
        write_bundle(root, request, draft, log.done)
    return Built(request.output, request.output / "evidence" / "report.html", draft, log.done)


def _run_stages(request: BuildRequest, root: Path, log: StageLog) -> Draft:
    sets, network = load_sets(request, log)
    few = tuple(sets.calib.spread(_CHECK_TILES).tiles())
    graph = _export(request, network, few, log)
    for transform, name, described in _TRANSFORMS:
        graph = _transformed(request, graph, few, log, transform, name, described)
    request, tuned = _with_threshold(request, sets, graph, log)
    whole = [
        _write_graph(root, "float", "float32", graph.model),
        *_quantize(request, graph, few, sets, root, log),
    ]
    graphs = split_graphs(request, whole, few, root, log)
    engines = make_engines(request, graphs, network, root, log)
    evidence = _judge(request, network, sets, engines, root, log)
    draft = Draft(sets, graphs, engines, evidence, tuned)
    if not evidence.parity.passed:
        return draft
    if request.ship_eval:
        ship_evaluation(request, torch_predictor(network), sets.evaluation, root, log)
    ran = {e.engine for e in evidence.parity.engines if e.status == "run"}
    runnable = [entry for entry in engines if entry.name in ran]
    timings = time_engines(runnable, root, request.interface, write_golden_tiles(root, evidence), log)
    return replace(draft, evidence=replace(evidence, timings=timings))


def _judge(
    request: BuildRequest, network: MISGNet, sets: Sets, engines: list[EngineEntry], root: Path, log: StageLog
) -> Evidence:
    predict = torch_predictor(network)
    parity, pictures = judge_engines(
        engines, root, request.interface, sets.evaluation, ("PyTorch float32", predict), request.threshold,
        request.max_f1_drop, request.gate, log,
    )  # fmt: skip
    golden = choose_golden(sets.evaluation, parity, predict) if parity.passed else None
    return Evidence(parity, pictures, golden)


def torch_predictor(network: MISGNet) -> Predict:
    """The network as a function of uint8 tiles."""
    return lambda before, after: predict_probability(network, before, after)


def _export(request: BuildRequest, network: MISGNet, few: Sequence[Tile], log: StageLog) -> Answered:
    with log.stage("export to ONNX") as stage:
        model = export_graph(network, request.interface)
        expected = answers(torch_predictor(network), few)
        answered = answers_of(model, request.interface, few, stage.progress)
        found = compare(expected, answered, request.threshold)
        require_same(found, request.interface, "the exported graph", "the PyTorch network")
        stage.finding = f"{len(model.graph.node)} nodes, {found}"
    return Answered(model, answered)


def _transformed(
    request: BuildRequest, before: Answered, few: Sequence[Tile], log: StageLog, transform: Transform, name: str,
    described: tuple[str, str],
) -> Answered:  # fmt: skip
    """What ``transform`` makes of the graph, which must answer as ``before``; ``described``: both, for the error."""
    with log.stage(name) as stage:
        model = transform(before.model)
        answered = answers_of(model, request.interface, few, stage.progress)
        found = compare(before.answers, answered, request.threshold)
        require_same(found, request.interface, *described)
        stage.finding = f"{len(model.graph.node)} nodes, {found}"
    return Answered(model, answered)


def _with_threshold(
    request: BuildRequest, sets: Sets, rewritten: Answered, log: StageLog
) -> tuple[BuildRequest, Tuned | None]:
    """``request`` with the threshold that is tuned, where it asks for that."""
    if not request.tune_threshold or sets.val is None:
        return request, None
    with log.stage("tune the threshold") as stage:
        tiles = sets.val.spread(_THRESHOLD_TILES)
        with detector_of(rewritten.model, request.interface) as detector, tile_per_stream(detector) as predict:
            tuned = tune_threshold(predict, tiles, stage.progress, batch=detector.engine.streams)
        stage.finding = str(tuned)
    return replace(request, threshold=tuned.threshold), tuned


def _quantize(
    request: BuildRequest, rewritten: Answered, few: Sequence[Tile], sets: Sets, root: Path, log: StageLog
) -> list[GraphFile]:
    recipes = [_placed(recipe, request) for recipe in recipes_of(request.targets)]
    if not recipes:
        return []
    start = _calibrate(request, rewritten, few, sets, recipes, log)
    graphs = []
    for recipe in recipes:
        found = quantize_recipe(request, start, recipe, log)
        model = with_half_features(found.quantized.model, request.interface) if request.split else found.quantized.model
        written = _write_graph(root, recipe.name, recipe.precision, model)
        entry = quantization_entry(written.file, recipe, found, rewritten.model)
        control = record_of(found.control) if found.control else None
        graphs.append(replace(written, quantization=entry, control=control))
        if control:
            log.console.print(control_table(control))
    return graphs


def _placed(recipe: Recipe, request: BuildRequest) -> Recipe:
    return replace(recipe, rules=EVERYTHING_RULES) if request.placement == "all" and recipe.int8 else recipe


def _calibrate(
    request: BuildRequest, rewritten: Answered, few: Sequence[Tile], sets: Sets, recipes: list[Recipe], log: StageLog
) -> Calibrated:
    model = rewritten.model
    with log.stage("calibrate") as stage:
        observed, reused = _observed(request, model, sets, recipes, stage.progress)
        decision = None
        if sets.decision is not None:
            decision = Decision.of(model, request.interface, sets.decision, request.threshold, stage.progress)
        stage.finding = f"{len(observed.histograms)} activations on {len(sets.calib)} tiles of both dates"
        stage.finding += f"; {request.observations}: {reused}" if reused else ""
    return Calibrated(model, request.interface, observed, sets.calib, few, rewritten.answers, decision)


def _observed(
    request: BuildRequest, model: onnx.ModelProto, sets: Sets, recipes: list[Recipe], progress: Progress
) -> tuple[ActivationStatistics, str]:
    """What calibration sees, and where a file keeps it a word on whether that was used."""
    if request.observations is None:
        return observe(model, request.interface, sets.calib, recipes, progress), ""
    key = StatisticsKey(sets.calib.digest(), sets.weights_sha256, _digest(model))
    return observe_or_reuse(request.observations, key, model, request.interface, sets.calib, recipes, progress)


def _digest(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _write_graph(root: Path, name: str, precision: str, model: onnx.ModelProto) -> GraphFile:
    file = FLOAT_GRAPH if name == "float" else f"graphs/{lowest(precision)}_{name}.onnx"
    path = root / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return GraphFile(name, file, precision, path.stat().st_size)


def _rejected(request: BuildRequest, draft: Draft, log: StageLog) -> GateFailed:
    """Leave the evidence beside the place of the bundle, show it, and say why."""
    path = request.output.parent / f"{request.output.name}.rejected"
    with replace_folder(path) as root:
        write_rejected(root, request, draft, log.done)
    log.console.print(parity_table(draft.evidence.parity))
    return GateFailed(
        f"the gate failed, so there is no bundle; the evidence is in {path}: {draft.evidence.parity.failures}"
    )

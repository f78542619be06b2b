"""The engines of a bundle: the float graph, and for each target its graph, or a plan compiled from it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from misgnet_export.draft import FLOAT_ENGINE, GraphFile
from misgnet_export.products import FLOAT, Product, product_of
from misgnet_export.progress import Stage, StageLog
from misgnet_export.request import BuildRequest
from misgnet_runtime.manifest import EngineEntry
from misgnet_runtime.plans import compile_plan
from misgnet_runtime.targets import Target


def make_engines(request: BuildRequest, graphs: list[GraphFile], root: Path, log: StageLog) -> list[EngineEntry]:
    """Entries of the float engine, which is in every bundle, and of all targets; plans are written below ``root``."""
    by_name = {graph.name: graph for graph in graphs}
    entries = [_opened(FLOAT_ENGINE, FLOAT, by_name["float"])]
    for target in request.targets:
        product = product_of(target)
        graph = by_name[product.recipe.name if product.recipe else "float"]
        if not product.has_plan:
            entries.append(_opened(target.name, product, graph))
            continue
        with log.stage(f"compile {target.name}") as stage:
            entries.append(_compiled(request, target, graph, root, stage))
    return entries


def _opened(name: str, product: Product, graph: GraphFile) -> EngineEntry:
    """A graph that its engine opens as it is, and optimises for the machine when it does."""
    version = import_module(product.library).__version__.partition("-")[0]
    return EngineEntry(
        name, product.engine, graph.file, graph.file, product.precision, version, needs=list(product.needs)
    )


def _compiled(request: BuildRequest, target: Target, graph: GraphFile, root: Path, stage: Stage) -> EngineEntry:
    options = request.plan_options(target)
    plan = compile_plan(
        (root / graph.file).read_bytes(), options, timing_cache=request.timing_cache, progress=stage.phase_progress
    )
    file = root / "engines" / f"{target.slug}.plan"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(plan.data)
    stage.finding = (
        f"{plan.vendor} {plan.vendor_version} for {', '.join(plan.compute_capabilities)}, "
        f"{plan.layers} layers, {len(plan.data) / 1e6:.1f} MB"
    )
    return EngineEntry(
        target.name, product_of(target).engine, file.relative_to(root).as_posix(), graph.file, graph.precision,
        plan.vendor_version, list(plan.compute_capabilities), plan.platform,
        (options.min_batch, options.opt_batch, options.max_batch),
    )  # fmt: skip

"""Makes the engines of a bundle: the float graph, and for each target a graph or a compiled plan."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import msgspec

from misgnet.network import MISGNet
from misgnet_export.evidence import PlanRecord, plan_record
from misgnet_export.integrations.torch_tensorrt import compile_program
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.request import BuildRequest
from misgnet_export.pipeline.result import FLOAT_ENGINE, GraphFile
from misgnet_export.pipeline.targets import FLOAT, Product, product_of
from misgnet_runtime.bundle import EngineEntry, PlanProfile, SplitEntry
from misgnet_runtime.bundle.targets import Target
from misgnet_runtime.engines.tensorrt import Plan, PlanLayers, PlanOptions, compile_plan
from misgnet_runtime.formatting import plural


def make_engines(context: BuildContext, graphs: list[GraphFile], network: MISGNet | None) -> list[EngineEntry]:
    """Returns entries of the float engine, which every bundle has, and of all targets; writes plans to files."""
    by_name = {graph.name: graph for graph in graphs}
    entries = [float_engine(FLOAT_ENGINE, graphs)]
    for target in context.request.targets:
        product = product_of(target)
        graph = by_name[product.recipe.name if product.recipe else "float"]
        if context.request.compiles_on_device(target):
            entries.append(_compiled_on_device(context.request, target, product, graph))
        elif product.from_program:
            entries.append(_converted(context, target, graph, network))
        elif product.has_plan:
            entries.append(_compiled(context, target, graph))
        else:
            entries.append(_opened(target.name, product, graph))
    return entries


def float_engine(name: str, graphs: list[GraphFile]) -> EngineEntry:
    """Returns the entry of an engine that opens the float graph in ONNX Runtime."""
    (graph,) = (graph for graph in graphs if graph.name == "float")
    return _opened(name, FLOAT, graph)


def _opened(name: str, product: Product, graph: GraphFile) -> EngineEntry:
    """Returns the entry of an engine that opens the graph itself and optimises it for the machine then.

    Engines in BF16 are not split: OpenVINO rounds elsewhere in the parts, and only 99.95 % of the golden tiles' pixels
    were the same.
    """
    return EngineEntry(
        name=name, kind=product.engine, file=graph.file, graph=graph.file, precision=product.precision,
        vendor_version=import_module(product.library).__version__.partition("-")[0], needs=list(product.needs),
        split=None if "bf16" in product.precision else graph.split,
    )  # fmt: skip


def _compiled_on_device(request: BuildRequest, target: Target, product: Product, graph: GraphFile) -> EngineEntry:
    """Returns the entry of a plan that ``misgnet-run compile`` makes from the graph on the device."""
    board, options = product.board, request.plan_options(target)
    return EngineEntry(
        name=target.name, kind=product.engine, file=graph.file, graph=graph.file, precision=graph.precision,
        vendor_version="",
        compute_capabilities=list(board.compute_capabilities if board else target.compute_capabilities),
        platform=board.platform if board else "any", batches=_batches(options), profiles=_profiles(options),
        split=graph.split, compiled="to be compiled on the device",
    )  # fmt: skip


def _compiled(context: BuildContext, target: Target, graph: GraphFile) -> EngineEntry:
    file, plan = _compile(context, target, graph.file, graph.precision)
    bound, options = plan.compatibility, context.request.plan_options(target)
    split = None
    if graph.split is not None:
        parts = {"encoder": graph.split.encoder_graph, "head": graph.split.head_graph}
        plans = [_compile(context, target, part_graph, graph.precision, part)[0] for part, part_graph in parts.items()]
        split = SplitEntry(*plans, *parts.values())
    return EngineEntry(
        name=target.name, kind=product_of(target).engine, file=file, graph=graph.file, precision=graph.precision,
        vendor_version=bound.vendor_version, compute_capabilities=list(bound.compute_capabilities),
        platform=bound.platform, batches=_batches(options), profiles=list(plan.profiles), split=split,
        cuda_driver=bound.cuda_driver,
    )  # fmt: skip


def _converted(context: BuildContext, target: Target, graph: GraphFile, network: MISGNet | None) -> EngineEntry:
    """Compiles a plan from the exported program; ``graph``, of the same precision, is its proxy.

    Such an engine is not split: encoder and head are cut out of the ONNX graph.
    """
    assert network is not None, "with_interface"
    options = context.request.plan_options(target)
    with context.log.stage(f"compile {target.name}") as stage:
        plan = compile_program(network, context.interface, options, context.request.timing_cache)
        file = _write_plan(context.root, target.slug, plan.data)
        stage.finding = (
            f"Torch-TensorRT {plan.converter_version} with TensorRT {plan.vendor_version} for "
            f"{plan.compute_capability}, {plural(plan.operators, 'operator')}, {len(plan.data) / 1e6:.1f} MB"
        )
    return EngineEntry(
        name=target.name, kind=product_of(target).engine, file=file, graph=graph.file, precision=graph.precision,
        vendor_version=plan.vendor_version, compute_capabilities=[plan.compute_capability], platform=plan.platform,
        batches=_batches(options), profiles=_profiles(options), cuda_driver=plan.cuda_driver,
    )  # fmt: skip


def _batches(options: PlanOptions) -> tuple[int, int, int]:
    """Returns the smallest, the typical and the largest batch of all profiles."""
    return options.profiles[0][0], options.profiles[-1][1], options.profiles[-1][2]


def _profiles(options: PlanOptions) -> list[PlanProfile]:
    """Returns the optimization profiles of a plan whose kernels are not known."""
    return [PlanProfile(batches) for batches in options.profiles]


def _compile(
    context: BuildContext, target: Target, graph: str, precision: str, part: str = ""
) -> tuple[str, Plan]:  # fmt: skip
    """Compiles a graph file of the bundle, writes the plan and its evidence; returns the plan's path and the plan.

    ``part`` is "encoder", "head" or, for a whole graph, empty.
    """
    options, root = context.request.plan_options(target), context.root
    name = f"{target.slug}{part and f'_{part}'}"
    with context.log.stage(f"compile {target.name} {part}".rstrip()) as stage:
        plan = compile_plan(
            (root / graph).read_bytes(), options, timing_cache=context.request.timing_cache,
            progress=stage.phase_progress,
        )  # fmt: skip
        file = _write_plan(root, name, plan.data)
        _write_evidence(root, name, plan_record(target.name, part, precision, plan, options))
        bound = plan.compatibility
        stage.finding = (
            f"{bound.vendor} {bound.vendor_version} for {', '.join(bound.compute_capabilities)}, "
            f"{_kernels(plan.layers)}, {len(plan.data) / 1e6:.1f} MB"
        )
    return file, plan


def _write_evidence(root: Path, name: str, record: PlanRecord) -> None:
    """Writes the kernels of a plan. They are hundreds, so the JSON is compact, unlike other evidence."""
    file = root / "evidence" / f"plan_{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(msgspec.json.encode(record) + b"\n")


def _kernels(layers: PlanLayers) -> str:
    """Returns the number of kernels of each optimization profile, for the log."""
    counts = [str(profile.total().kernels) for profile in layers.profiles]
    return f"{' and '.join(counts)} kernels" if counts else f"kernels unknown ({layers.note})"


def _write_plan(root: Path, name: str, data: bytes) -> str:
    """Writes a plan and returns its path relative to ``root``."""
    file = f"engines/{name}.plan"
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_bytes(data)
    return file

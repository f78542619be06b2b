"""The engines of a bundle: the float graph, and for each target its graph, or a plan of it or of the network."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from misgnet.network import MISGNet
from misgnet_export.integrations.torch_tensorrt import compile_program
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import BuildRequest
from misgnet_export.pipeline.result import FLOAT_ENGINE, GraphFile
from misgnet_export.pipeline.targets import FLOAT, Product, product_of
from misgnet_runtime.bundle import EngineEntry, SplitEntry
from misgnet_runtime.bundle.targets import Target
from misgnet_runtime.engines.tensorrt import Plan, compile_plan


def make_engines(
    request: BuildRequest, graphs: list[GraphFile], network: MISGNet, root: Path, log: StageLog
) -> list[EngineEntry]:
    """Entries of the float engine, which is in every bundle, and of all targets; plans are written below ``root``."""
    by_name = {graph.name: graph for graph in graphs}
    entries = [_opened(FLOAT_ENGINE, FLOAT, by_name["float"])]
    for target in request.targets:
        product = product_of(target)
        graph = by_name[product.recipe.name if product.recipe else "float"]
        if request.compiles_on_device(target):
            entries.append(_left_to_the_device(request, target, product, graph))
        elif product.from_program:
            entries.append(_converted(request, target, network, graph, root, log))
        elif product.has_plan:
            entries.append(_compiled(request, target, graph, root, log))
        else:
            entries.append(_opened(target.name, product, graph))
    return entries


def _opened(name: str, product: Product, graph: GraphFile) -> EngineEntry:
    """A graph that its engine opens as it is, and optimises for the machine when it does.

    In BF16 without its parts: OpenVINO rounds elsewhere in them, and 99.95 % of the golden tiles' pixels were the same.
    """
    version = import_module(product.library).__version__.partition("-")[0]
    return EngineEntry(
        name, product.engine, graph.file, graph.file, product.precision, version, needs=list(product.needs),
        split=None if "bf16" in product.precision else graph.split,
    )  # fmt: skip


def _left_to_the_device(request: BuildRequest, target: Target, product: Product, graph: GraphFile) -> EngineEntry:
    """A graph from which ``misgnet-run compile`` makes the plan, and what may make it."""
    options, board = request.plan_options(target), product.board
    return EngineEntry(
        target.name, product.engine, graph.file, graph.file, graph.precision, "",
        list(board.compute_capabilities if board else target.compute_capabilities), board.platform if board else "any",
        (options.min_batch, options.opt_batch, options.max_batch), split=graph.split,
        compiled="to be compiled on the device",
    )  # fmt: skip


def _compiled(request: BuildRequest, target: Target, graph: GraphFile, root: Path, log: StageLog) -> EngineEntry:
    options = request.plan_options(target)
    file, plan = _compile(request, target, graph.file, root, log)
    bound = plan.compatibility
    split = None
    if graph.split is not None:
        parts = {"encoder": graph.split.encoder_graph, "head": graph.split.head_graph}
        plans = [_compile(request, target, part_graph, root, log, part)[0] for part, part_graph in parts.items()]
        split = SplitEntry(*plans, *parts.values())
    return EngineEntry(
        target.name, product_of(target).engine, file, graph.file, graph.precision,
        bound.vendor_version, list(bound.compute_capabilities), bound.platform,
        (options.min_batch, options.opt_batch, options.max_batch), split=split, cuda_driver=bound.cuda_driver,
    )  # fmt: skip


def _converted(
    request: BuildRequest, target: Target, network: MISGNet, graph: GraphFile, root: Path, log: StageLog
) -> EngineEntry:
    """A plan of the exported program; ``graph`` is the same network, for where the plan cannot be opened.

    Without its parts, which are cut out of the ONNX graph.
    """
    options = request.plan_options(target)
    with log.stage(f"compile {target.name}") as stage:
        plan = compile_program(network, request.interface, options, request.timing_cache)
        file = _write_plan(root, target.slug, plan.data)
        stage.finding = (
            f"Torch-TensorRT {plan.converter_version} with TensorRT {plan.vendor_version} for "
            f"{plan.compute_capability}, {plan.operators} operators, {len(plan.data) / 1e6:.1f} MB"
        )
    return EngineEntry(
        target.name, product_of(target).engine, file, graph.file, graph.precision, plan.vendor_version,
        [plan.compute_capability], plan.platform, (options.min_batch, options.opt_batch, options.max_batch),
        cuda_driver=plan.cuda_driver,
    )  # fmt: skip


def _compile(
    request: BuildRequest, target: Target, graph: str, root: Path, log: StageLog, part: str = ""
) -> tuple[str, Plan]:
    """The plan of ``graph``, a file below ``root``, and the file that it was written to; ``part`` names both."""
    with log.stage(f"compile {target.name} {part}".rstrip()) as stage:
        plan = compile_plan(
            (root / graph).read_bytes(), request.plan_options(target), timing_cache=request.timing_cache,
            progress=stage.phase_progress,
        )  # fmt: skip
        file = _write_plan(root, f"{target.slug}{part and f'_{part}'}", plan.data)
        bound = plan.compatibility
        stage.finding = (
            f"{bound.vendor} {bound.vendor_version} for {', '.join(bound.compute_capabilities)}, "
            f"{plan.layers} layers, {len(plan.data) / 1e6:.1f} MB"
        )
    return file, plan


def _write_plan(root: Path, name: str, data: bytes) -> str:
    """The file's path from ``root``."""
    file = f"engines/{name}.plan"
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_bytes(data)
    return file

"""Measures the speed that accuracy control costs: a graph before and after operators were reverted to float."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx

from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_export.evidence import ControlSpeed
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.targets import PRODUCTS, Product
from misgnet_runtime.bundle import EngineEntry
from misgnet_runtime.bundle.golden import GoldenTiles, write_golden
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.inference.throughput import Task, measure
from misgnet_runtime.log import current
from misgnet_runtime.machine import fits_processor
from misgnet_runtime.raster.dataset import stack

_SECONDS, _WARM_UP = 2.0, 3.0  # of each graph


def measure_control(
    context: BuildContext, recipe: Recipe, before: onnx.ModelProto, after: onnx.ModelProto
) -> ControlSpeed | None:
    """Times both graphs in alternating rounds, each in its own process: one pair per call, one thread.

    Returns None if no engine of this machine opens the recipe's graph, which a GPU or another processor does.
    """
    product = _engine_here(recipe)
    if product is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = stack(context.check_tiles[:1])
        unknown = np.zeros(images[0].shape[:3], np.float32)  # the probability is not needed
        write_golden(root / "tiles.npz", GoldenTiles(*images, unknown))
        entries = [_entry(product, root, *graph) for graph in (("before", before), ("after", after))]
        interface, tile = context.interface, str(root / "tiles.npz")
        tasks = [Task(one, folder, interface, tile, threads=1, warm_up=_WARM_UP) for one in entries]
        try:
            first, second = measure(tasks, _SECONDS)
        except MisgnetError as error:  # evaluation finds out whether the engine can be used
            current().warning(f"the speed that accuracy control costs for {recipe.name} was not measured: {error}")
            return None
    return ControlSpeed(engine=product.engine, ratio=second.pairs_per_second / first.pairs_per_second)


def _engine_here(recipe: Recipe) -> Product | None:
    """Returns the CPU engine for graphs of ``recipe``, if it is installed and this processor suits it."""
    products = [one for one in PRODUCTS.values() if one.recipe is not None and one.recipe.name == recipe.name]
    return next(
        (
            one for one in products
            if one.engine in ("onnxruntime", "openvino") and find_spec(one.library) and fits_processor(one.needs)
        ),
        None,
    )  # fmt: skip


def _entry(product: Product, root: Path, name: str, model: onnx.ModelProto) -> EngineEntry:
    file = f"{name}.onnx"
    (root / file).write_bytes(model.SerializeToString())
    return EngineEntry(name, product.engine, file, file, product.precision, "", needs=list(product.needs))

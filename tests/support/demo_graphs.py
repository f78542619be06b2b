"""Makes the graphs of the demo network, as a build does: for tests of what is compiled."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from misgnet.checkpoint import read_network
from misgnet.synthetic import write_split
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import RTX, TENSORRT, TENSORRT_FP16, Recipe
from misgnet_calibration.statistics.cache import ActivationStatistics
from misgnet_calibration.statistics.calibrators import MAX
from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.calibrate import observe
from misgnet_runtime.bundle import Interface
from misgnet_runtime.raster.dataset import TileSet
from support.paths import DEMO_WEIGHTS

INTERFACE = Interface(256, 16)
RECIPES = (TENSORRT, RTX, TENSORRT_FP16)


def demo_graph(recipe: Recipe) -> onnx.ModelProto:
    """Returns the graph of one of RECIPES. The first call takes about half a minute, since it exports the network."""
    model, observed = _start()
    own = MISGNET.applied_to(recipe)
    ranges = observed.ranges(MAX, symmetric=recipe.symmetric_activations) if recipe.int8 else {}
    return quantize(model, own, ranges, observed.absolute_maxima, float32_scopes=MISGNET.float32_scopes).model


@cache
def _start() -> tuple[onnx.ModelProto, ActivationStatistics]:
    """Returns the float graph, and activation statistics of one tile: they hardly change what a plan consists of."""
    exported = export_graph(read_network(DEMO_WEIGHTS)[0], INTERFACE)
    model = rewrite(simplify_graph(exported), for_gpu=True)
    with TemporaryDirectory() as folder:
        write_split(Path(folder), 1, 7)
        return model, observe(model, INTERFACE, TileSet.open(Path(folder), 256), list(map(MISGNET.applied_to, RECIPES)))

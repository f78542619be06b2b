"""What is read from a graph as it runs over tiles: float activations of one tile at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from misgnet_calibration.onnx_graph.edits import drop_unused
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.onnx_graph.shapes import copied
from misgnet_calibration.statistics.collect import TileDone, run_tiles
from misgnet_runtime.bundle import Interface
from misgnet_runtime.engines.base import Arrays
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import Tile, TileSet


def tile_activations(
    model: onnx.ModelProto,
    interface: Interface,
    tiles: Iterable[Tile],
    names: Sequence[str],
    tile_done: TileDone | None = None,
) -> Iterator[Arrays]:
    """The float32 tensors ``names`` on every tile; only the nodes that they depend on are run.

    ``tile_done``: called after each tile. Raises InputError that names the tile and the tensor where one is NaN or Inf.
    """
    wanted = list(dict.fromkeys(names))
    for tile, found in run_tiles(subgraph_to(model, wanted).SerializeToString(), interface, tiles, tile_done):
        for name in wanted:
            if not np.isfinite(found[name]).all():
                raise InputError(f"calibration tile {tile.ref.name}: NaN or Inf among the activations of '{name}'")
        yield {name: found[name] for name in wanted}


def spread_tiles(tiles: TileSet, count: int) -> TileSet:
    """At most ``count`` tiles, evenly spread over the set. Raises InputError where there are not even two."""
    if len(tiles) < 2:
        raise InputError(f"{len(tiles)} calibration tiles in {tiles.root}; repairing an INT8 graph needs two at least")
    return tiles.spread(count)


def subgraph_to(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of ``model`` with the float tensors ``names`` as its outputs, and the nodes that lead to them."""
    graph = Graph(model)
    needed = graph.needed_for(names)
    nodes = [node for node in graph.nodes if not needed.isdisjoint(node.output)]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in names if x in graph.producer]
    part = copied(model)
    for field, items in ((part.graph.node, nodes), (part.graph.output, outputs)):
        del field[:]
        field.extend(items)
    del part.graph.value_info[:]
    drop_unused(part)
    return part

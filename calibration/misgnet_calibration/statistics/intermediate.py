"""Reads float activations from a graph, one tile at a time."""

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
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import Tile, TileSet


def tile_activations(
    model: onnx.ModelProto,
    interface: Interface,
    tiles: Iterable[Tile],
    names: Sequence[str],
    tile_done: TileDone | None = None,
) -> Iterator[Arrays]:
    """Yields the float32 tensors ``names`` for every tile; runs only the nodes that they depend on.

    ``tile_done`` is called after each tile. Raises InputError, naming the tile and the tensor, for NaN or Inf.
    """
    wanted = list(dict.fromkeys(names))
    for tile, found in run_tiles(subgraph_to(model, wanted).SerializeToString(), interface, tiles, tile_done):
        for name in wanted:
            if not np.isfinite(found[name]).all():
                raise InputError(f"calibration tile {tile.ref.name}: NaN or Inf among the activations of '{name}'")
        yield {name: found[name] for name in wanted}


def spread_tiles(tiles: TileSet, count: int) -> TileSet:
    """Returns at most ``count`` tiles, evenly spread over the set. Raises InputError if there are fewer than two."""
    if len(tiles) < 2:
        raise InputError(
            f"{plural(len(tiles), 'calibration tile')} in {tiles.root}; repairing an INT8 graph needs at least two"
        )
    return tiles.spread(count)


def subgraph_to(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy of ``model`` with the float tensors ``names`` as outputs and only the nodes they depend on."""
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

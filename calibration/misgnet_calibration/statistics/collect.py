"""Runs the float graph over tiles and passes its activations to observers.

Most time is spent in the float graph; observing adds a tenth. Tiles are observed one by one, so memory use does not
grow with the set, and an error names its tile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

import onnx
from onnx import TensorProto, helper

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.onnx_graph.shapes import copied
from misgnet_calibration.statistics.observers import Observer
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.engines import ExecutionOptions, streams_on_cpu
from misgnet_runtime.engines.base import Arrays
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.detector import arrays_for
from misgnet_runtime.raster.dataset import Tile, TileSet, stack

TileDone = Callable[[], None]

# Operators that only rearrange values: their output has the same absolute maximum as their input.
_ARRANGING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


def collect(
    model: onnx.ModelProto,
    interface: Interface,
    tiles: TileSet,
    observers: Mapping[str, Observer],
    progress: Progress | None = None,
) -> None:
    """Passes every tensor named in ``observers`` to its observer, tile by tile.

    Raises InputError, naming the tile and the tensor, if an activation is NaN or Inf.
    """
    exposing = _exposing(model, list(observers))
    for tile, values in run_tiles(exposing, interface, tiles.tiles(), per_tile(progress, len(tiles))):
        for name, observer in observers.items():
            try:
                observer.observe(values[name])
            except ValueError as error:
                raise InputError(f"calibration tile {tile.ref.name}: {error} of '{name}'") from error


def absolute_maxima(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, progress: Progress | None = None
) -> dict[str, float]:
    """Returns the largest absolute value of every float32 tensor over ``tiles``.

    Raises InputError, naming the tile and the tensor, if a value is NaN.
    """
    graph = Graph(model)
    names = [x for node in graph.nodes for x in node.output if x and graph.is_float(x)]
    arranged = {x: graph.producer[x].input[0] for x in names if graph.producer[x].op_type in _ARRANGING}
    measured = [x for x in names if arranged.get(x) not in graph.producer]
    maxima = dict.fromkeys(names, 0.0)
    for tile, found in tile_absolute_maxima(model, measured, interface, tiles.tiles(), per_tile(progress, len(tiles))):
        for name, maximum in found.items():
            if math.isnan(maximum):
                raise InputError(f"calibration tile {tile.ref.name}: NaN among the activations of '{name}'")
            maxima[name] = max(maxima[name], maximum)
    for name in names:  # in the order of the nodes, so that maxima propagate along chains
        if arranged.get(name) in maxima:
            maxima[name] = maxima[arranged[name]]
    return maxima


def tile_absolute_maxima(
    model: onnx.ModelProto,
    names: list[str],
    interface: Interface,
    tiles: Iterable[Tile],
    tile_done: TileDone | None = None,
) -> Iterator[tuple[Tile, dict[str, float]]]:
    """Yields every tile with the largest absolute value of each tensor in ``names``, float16 or float32.

    The value is NaN if the tensor contains NaN. Only scalars leave the engine.
    """
    reduced, outputs = _with_absolute_maxima(model, names)
    exposing = _exposing(reduced, [x for pair in outputs.values() for x in pair], shape=[])
    for tile, values in run_tiles(exposing, interface, tiles, tile_done):
        scalars = ((name, float(values[largest]), float(values[total])) for name, (largest, total) in outputs.items())
        # onnxruntime's ReduceMax ignores NaN; a sum propagates it.
        yield tile, {name: math.nan if math.isnan(total) else largest for name, largest, total in scalars}


def run_tiles(
    graph: bytes, interface: Interface, tiles: Iterable[Tile], tile_done: TileDone | None = None
) -> Iterator[tuple[Tile, Arrays]]:
    """Yields every tile, in order, with the graph's inputs and outputs on it; ``tile_done`` is called after each.

    A tile per core is computed at a time (a core that computes a tile alone never waits), so memory holds the
    activations of as many tiles as there are streams.
    """
    streams = streams_on_cpu()
    with (
        OnnxRuntimeEngine(graph, max_batch=1, execution=ExecutionOptions(streams=streams)) as engine,
        ThreadPoolExecutor(streams) as pool,
    ):

        def run(tile: Tile) -> tuple[Tile, Arrays]:
            arrays = arrays_for(interface, *stack([tile]))
            return tile, {**arrays, **engine.infer(arrays)}

        remaining = iter(tiles)
        running = deque(pool.submit(run, tile) for tile in islice(remaining, streams))
        while running:
            tile, arrays = running.popleft().result()
            running.extend(pool.submit(run, following) for following in islice(remaining, 1))
            yield tile, arrays
            if tile_done:
                tile_done()


def per_tile(progress: Progress | None, total: int) -> TileDone | None:
    """Returns a function that reports one more step to ``progress`` each time it is called."""
    steps = count(1)
    return None if progress is None else lambda: progress(next(steps), total)


def _with_absolute_maxima(
    model: onnx.ModelProto, names: list[str]
) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
    """Returns the model with nodes for the maximum and the sum of each tensor's magnitudes, and their output names."""
    model = copied(model)
    outputs = {}
    for index, name in enumerate(names):
        single, size, largest, total = (f"peak:{part}:{index}" for part in ("single", "size", "max", "sum"))
        outputs[name] = (largest, total)
        model.graph.node.extend([
            helper.make_node("Cast", [name], [single], f"measure/{single}", to=TensorProto.FLOAT),
            helper.make_node("Abs", [single], [size], f"measure/{size}"),
            helper.make_node("ReduceMax", [size], [largest], f"measure/{largest}", keepdims=0),
            helper.make_node("ReduceSum", [size], [total], f"measure/{total}", keepdims=0),
        ])  # fmt: skip
    return model, outputs


def _exposing(model: onnx.ModelProto, names: list[str], shape: list[int] | None = None) -> bytes:
    """Returns the serialized model with the float tensors ``names`` as additional outputs."""
    exposed = copied(model)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    exposed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names if name not in present
    )
    return bytes(exposed.SerializeToString())

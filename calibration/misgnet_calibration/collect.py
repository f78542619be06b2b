"""Runs the float graph over tiles and lets observers see its activations."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

from misgnet_calibration.graph import Graph
from misgnet_calibration.observers import Observer
from misgnet_runtime.detector import arrays_for
from misgnet_runtime.engines.ort import OnnxRuntimeEngine
from misgnet_runtime.errors import InputError
from misgnet_runtime.manifest import Interface
from misgnet_runtime.tiles import TileSet, stack

Progress = Callable[[int, int], None]


def collect(
    model: onnx.ModelProto,
    interface: Interface,
    tiles: TileSet,
    observers: dict[str, Observer],
    progress: Progress | None = None,
) -> None:
    """Show every tensor named in ``observers`` to its observer, tile by tile.

    Raises InputError that names the tile and the tensor where an activation is NaN or Inf.
    """
    with OnnxRuntimeEngine(_exposing(model, list(observers)), max_batch=1) as engine:
        for done, tile in enumerate(tiles.tiles(), 1):
            values = engine.infer(arrays_for(interface, *stack([tile])))
            for name, observer in observers.items():
                try:
                    observer.observe(values[name])
                except ValueError as error:
                    raise InputError(f"calibration tile {tile.ref.name}: {error} of '{name}'") from error
            if progress:
                progress(done, len(tiles))


def magnitudes(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, progress: Progress | None = None
) -> dict[str, float]:
    """Largest absolute value of every float tensor of the graph over ``tiles``; only scalars leave the engine."""
    graph = Graph(model)
    names = [x for node in graph.nodes for x in node.output if x and graph.is_float(x)]
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    for index, name in enumerate(names):
        reduced.graph.node.append(helper.make_node("Abs", [name], [f"peak:abs:{index}"], f"measure/Abs_{index}"))
        reduced.graph.node.append(
            helper.make_node("ReduceMax", [f"peak:abs:{index}"], [f"peak:max:{index}"], f"measure/Max_{index}", keepdims=0)
        )
    peaks = dict.fromkeys(names, 0.0)
    outputs = [f"peak:max:{index}" for index in range(len(names))]
    with OnnxRuntimeEngine(_exposing(reduced, outputs, shape=[]), max_batch=1) as engine:
        for done, tile in enumerate(tiles.tiles(), 1):
            values = engine.infer(arrays_for(interface, *stack([tile])))
            peaks = {n: max(peaks[n], float(values[o])) for n, o in zip(names, outputs, strict=True)}
            if progress:
                progress(done, len(tiles))
    return peaks


def _exposing(model: onnx.ModelProto, names: list[str], shape: list[int] | None = None) -> bytes:
    """The model with the float tensors ``names`` as additional outputs."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    present = {value.name for value in model.graph.output} | inputs
    exposed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names if name not in present
    )
    return exposed.SerializeToString()

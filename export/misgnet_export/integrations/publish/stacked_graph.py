"""Wraps a bundle's graph for tools that read one image: both dates stacked in, a probability of one channel out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.onnx_graph import copied
from misgnet_runtime.bundle import Interface

IMAGES, CHANGE = "images", "change"  # names of the only input and of the only output
_INNER = "published"  # prefix of what is added
_TYPES = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16}


def stacked_graph(model: onnx.ModelProto, interface: Interface, divided_by: float) -> onnx.ModelProto:
    """Returns a copy of ``model`` with one input and one output.

    Input: float32 (B, 2C, T, T), the C bands of BEFORE, then those of AFTER; values of the images divided by
    ``divided_by``. Rounding restores the images' own values exactly, so that ``model`` reads what it reads elsewhere.
    Output: the probability of change, float32 (B, 1, T, T); a bundle that outputs masks gives 0 and 1.

    Args:
        model: A graph with the inputs and outputs of ``interface``; it stays unchanged.
        interface: Inputs and outputs of ``model``.
        divided_by: What the other tool divides the images' values by.
    """
    found = copied(model)
    graph, batch = found.graph, found.graph.input[0].type.tensor_type.shape.dim[0]
    first, last = _Nodes(), _Nodes()
    _add_inputs(first, interface, divided_by)
    _add_output(last, interface)
    nodes = [*first.nodes, *graph.node, *last.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*first.constants, *last.constants])
    size = batch.dim_param or batch.dim_value
    shapes = {IMAGES: (2 * interface.bands, graph.input), CHANGE: (1, graph.output)}
    for name, (channels, where) in shapes.items():
        shape = [size, channels, interface.tile, interface.tile]
        where.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.checker.check_model(found)
    return found


class _Nodes:
    """Nodes and constants to add to a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        name = f"{_INNER}/{operator}_{outputs[0]}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name, **attributes))

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(value, f"{_INNER}_{name}"))
        return f"{_INNER}_{name}"


def _add_inputs(nodes: _Nodes, interface: Interface, divided_by: float) -> None:
    """Adds the conversion of the stacked images to both inputs of the graph."""
    values, rounded, clipped = (f"{_INNER}_{name}" for name in ("values", "rounded", "clipped"))
    nodes.add("Mul", [IMAGES, nodes.constant("divided_by", np.array(divided_by, np.float32))], [values])
    nodes.add("Round", [values], [rounded])
    limits = [
        nodes.constant(name, np.array(limit, np.float32))
        for name, limit in (("least", 0), ("most", interface.pixels.largest))
    ]
    nodes.add("Clip", [rounded, *limits], [clipped])
    dates = [f"{_INNER}_{entry.name}" for entry in interface.inputs()]
    sizes = nodes.constant("bands", np.full(2, interface.bands, np.int64))
    nodes.add("Split", [clipped, sizes], dates, axis=1)
    for date, entry in zip(dates, interface.inputs(), strict=True):
        (_add_raw if interface.raw else _add_normalised)(nodes, date, entry.name, interface)


def _add_raw(nodes: _Nodes, date: str, name: str, interface: Interface) -> None:
    nodes.add("Cast", [date], [f"{date}_cast"], to=_TYPES[interface.input])
    nodes.add("Transpose", [f"{date}_cast"], [name], perm=[0, 2, 3, 1])


def _add_normalised(nodes: _Nodes, date: str, name: str, interface: Interface) -> None:
    """Adds the steps of ``misgnet_runtime.bundle.preprocessing.normalise``, in the same order."""
    how = interface.normalization
    largest, mean, std = (
        nodes.constant(f"{name}_{part}", np.array(numbers, np.float32).reshape(1, -1, 1, 1))
        for part, numbers in (("largest", [1 / how.scale]), ("mean", how.mean), ("std", how.std))
    )
    nodes.add("Div", [date, largest], [f"{date}_scaled"])
    nodes.add("Sub", [f"{date}_scaled", mean], [f"{date}_centred"])
    nodes.add("Div", [f"{date}_centred", std], [name])


def _add_output(nodes: _Nodes, interface: Interface) -> None:
    """Adds the conversion of the graph's output; the softmax of two logits is the sigmoid of their difference."""
    (entry,) = interface.outputs()
    if interface.output == "logits":
        logits = [f"{_INNER}_unchanged", f"{_INNER}_changed"]
        nodes.add("Split", [entry.name, nodes.constant("classes", np.ones(2, np.int64))], logits, axis=1)
        nodes.add("Sub", logits[::-1], [f"{_INNER}_difference"])
        nodes.add("Sigmoid", [f"{_INNER}_difference"], [CHANGE])
        return
    probability = entry.name
    if interface.output == "mask":
        probability = f"{_INNER}_probability"
        nodes.add("Cast", [entry.name], [probability], to=TensorProto.FLOAT)
    nodes.add("Unsqueeze", [probability, nodes.constant("channel", np.ones(1, np.int64))], [CHANGE])

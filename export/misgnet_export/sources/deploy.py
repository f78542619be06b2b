"""Wraps the graph of a bare network for deployment: raw images of both dates in, the interface's output out.

The result has the form of ``graph/deployed.py``, so that the same rewrites and engines fit: each date is converted to
float, transposed, multiplied by a gain and reduced by an offset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.onnx_graph import attribute, copied
from misgnet_export.graph.export import OPSET
from misgnet_export.sources.declaration import Declaration, Layout
from misgnet_export.sources.onnx_session import Session
from misgnet_export.sources.reference import output_layout
from misgnet_runtime.bundle import Interface, OutputForm, TensorEntry
from misgnet_runtime.errors import UsageError

_IR_VERSION = 10  # that torch.onnx.export writes for this opset
_BATCH = "batch"  # name of the symbolic dimension
_TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
}  # fmt: skip


def check_output_form(what: Declaration, form: OutputForm) -> None:
    """Raises UsageError if the output of the network cannot be converted to ``form``."""
    if form == "logits" and what.output.kind in ("probability1", "probability2"):
        raise UsageError(
            f"--output-form is logits, but the network outputs probabilities ({what.output}); use --output-form "
            "probability or mask"
        )


def deploy(bare: onnx.ModelProto, what: Declaration, interface: Interface) -> onnx.ModelProto:
    """Returns a graph with the inputs and outputs of ``interface`` that computes the network ``bare``.

    Args:
        bare: The network's graph, of opset :data:`OPSET`, with a symbolic batch or none that is stated. It stays
            unchanged. Names of its nodes are kept if they are unique.
        what: How the network reads images and what it outputs.
        interface: Inputs and output of the result.

    Raises:
        InputError: ONNX Runtime cannot run the graph, or its output does not have the size of the tile.
        UsageError: The output cannot be converted to that of ``interface``.
    """
    check_output_form(what, interface.output)
    assert _opset(bare) == OPSET, f"opset {_opset(bare)}"
    layout = output_layout(_output_shape(bare, what, interface.tile), what, interface.tile)
    network = _renamed(bare, {"before", "after", interface.outputs()[0].name})
    outer = _Outer(network.model)
    for name, tensor in zip(what.inputs, _inputs(outer, what, interface), strict=True):
        network.give(name, tensor, what, outer)
    head = _Outer(network.model, outer)
    _output(head, network.named(what.output_name), what, layout, interface.outputs()[0])
    return _assembled([*outer.nodes, *network.model.graph.node, *head.nodes], network.model, head, interface)


def name_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    """Gives each node a unique name that is not empty; names that are unique already stay.

    A name without a module gets that of the exporter's metadata, if there is one: ``scope`` reads it from the name.
    """
    listed = list(nodes)
    for node in listed:
        if module := _module(node):
            node.name = f"{module}/{node.name or node.op_type}"
    taken = Counter(node.name for node in listed)
    for index, node in enumerate(listed):
        if not node.name or taken[node.name] > 1:
            taken[node.name] -= 1
            name = f"{node.name or node.op_type}_{index}"
            while taken[name]:
                name += "_"
            node.name = name
            taken[name] += 1
        del node.metadata_props[:]
        node.doc_string = ""


def _module(node: onnx.NodeProto) -> str:
    """Returns the innermost module that torch.export states for a node whose name states none: ``encoder.conv1``."""
    if "/" in node.name:
        return ""
    text = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    scopes = [part.strip(" '\"") for part in text.strip("[]").split(",")][:-1]
    return next((part for part in reversed(scopes) if part), "")


class _Outer:
    """Nodes and constants around the network, with names that it does not use."""

    def __init__(self, network: onnx.ModelProto, other: _Outer | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = other.constants if other else {}
        self.taken: set[str] = other.taken if other else _tensors(network) | {n.name for n in network.graph.node}

    def add(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Adds a node in the module that ``name`` starts with; returns its output."""
        output = self.name(name)
        self.nodes.append(helper.make_node(operator, inputs, [output], self.name(f"{name}_{operator}"), **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds a constant unless one was added under ``name``; returns its tensor."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, self.name(name))
        return str(self.constants[name].name)

    def name(self, wanted: str) -> str:
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted


def _inputs(outer: _Outer, what: Declaration, interface: Interface) -> list[str]:
    """Adds the conversion of both dates; returns the tensors, float32, that the network's inputs become."""
    dates = [_date(outer, entry, what, interface) for entry in interface.inputs()]
    if what.io == "pair":
        return dates
    if what.io == "stacked":
        return [outer.add("Concat", dates, "input/stacked", axis=1 if what.layout == "NCHW" else 3)]
    axis = outer.constant("input_time_axis", np.array([1], np.int64))
    dates = [outer.add("Unsqueeze", [date, axis], f"input/time_{index}") for index, date in enumerate(dates)]
    return [outer.add("Concat", dates, "input/time", axis=1)]


def _date(outer: _Outer, entry: TensorEntry, what: Declaration, interface: Interface) -> str:
    images, where = entry.name, f"input/{entry.name}"
    if interface.raw:
        # Converted to float first: TensorRT does not transpose integers.
        images = outer.add("Cast", [images], f"{where}_float", to=TensorProto.FLOAT)
    if entry.layout != what.layout:
        images = outer.add("Transpose", [images], f"{where}_turned", perm=_turn(what.layout))
    if interface.raw:
        images = _normalised(outer, images, where, what)
    return images


def _turn(to: Layout) -> list[int]:
    return [0, 3, 1, 2] if to == "NCHW" else [0, 2, 3, 1]


def _normalised(outer: _Outer, images: str, where: str, what: Declaration) -> str:
    """Adds gain * images - offset, both float32 (1, C, 1, 1) or (1, 1, 1, C); leaves out what changes nothing."""
    how = what.normalization
    shape = (1, -1, 1, 1) if what.layout == "NCHW" else (1, 1, 1, -1)
    std, mean = (np.array(numbers, np.float64).reshape(shape) for numbers in (how.std, how.mean))
    gain, offset = (how.scale / std).astype(np.float32), (mean / std).astype(np.float32)
    if np.any(gain != 1) or np.any(offset != 0):
        images = outer.add("Mul", [images, outer.constant("image_gain", gain)], f"{where}_scaled")
    if np.any(offset != 0):
        images = outer.add("Sub", [images, outer.constant("image_offset", offset)], f"{where}_normalised")
    return images


def _output(outer: _Outer, output: str, what: Declaration, layout: Layout | None, entry: TensorEntry) -> None:
    """Adds the conversion of the network's ``output`` to the graph's output ``entry``."""
    if layout == "NHWC":
        output = outer.add("Transpose", [output], "output/turned", perm=_turn("NCHW"))
    if layout is None and entry.name == "logits":
        axis = outer.constant("output_channel_axis", np.array([1], np.int64))
        output = outer.add("Unsqueeze", [output, axis], "output/channel")
    head = _Head(outer, output, what, flat=layout is None)
    made = {"probability": head.probability, "logits": head.logits, "mask": head.mask}[entry.name]()
    outer.nodes.append(helper.make_node("Identity", [made], [entry.name], outer.name("output/Identity")))


class _Head:
    """Converts the network's output (B, N, T, T), or (B, T, T) if ``flat``."""

    def __init__(self, outer: _Outer, output: str, what: Declaration, *, flat: bool) -> None:
        self.outer, self.output, self.what, self.flat = outer, output, what, flat
        self.kind = what.output.kind

    def probability(self) -> str:
        """Adds the probability of change, float32 (B, T, T)."""
        if self.kind == "probability1":
            return self._only()
        if self.kind == "logit1":
            return self.outer.add("Sigmoid", [self._only()], "output/sigmoid")
        if self.kind == "probability2":
            return self._channel(self.output, 1)
        shares = self.outer.add("Softmax", [self.output], "output/softmax", axis=1)
        if self.kind == "logits2":
            return self._channel(shares, 1)
        return self._reduced("ReduceSum", self._classes(shares, self.what.changed, "changed"), "output/changed_sum")

    def mask(self) -> str:
        """Adds the mask, uint8 (B, T, T)."""
        if self.kind == "logits2":
            above = [self._channel(self.output, 1), self._channel(self.output, 0)]
        elif self.kind == "logit1":
            above = [self._only(), self.outer.constant("output_equal", np.zeros((), np.float32))]
        else:
            above = [self.probability(), self.outer.constant("output_half", np.full((), 0.5, np.float32))]
        greater = self.outer.add("Greater", above, "output/greater")
        return self.outer.add("Cast", [greater], "output/mask", to=TensorProto.UINT8)

    def logits(self) -> str:
        """Adds two logits, float32 (B, 2, T, T), whose difference is the logit of change."""
        if self.kind == "logits2":
            return self.output
        if self.kind == "logit1":  # minus and plus half of it
            halves = self.outer.constant("output_halves", np.array([-0.5, 0.5], np.float32).reshape(1, 2, 1, 1))
            return self.outer.add("Mul", [self.output, halves], "output/two")
        unchanged = sorted(set(range(self.what.output.channels)) - set(self.what.changed))
        both = [self._logsumexp(tuple(unchanged), "unchanged"), self._logsumexp(self.what.changed, "changed")]
        return self.outer.add("Concat", both, "output/two", axis=1)

    def _only(self) -> str:
        """Removes the axis of the only channel."""
        if self.flat:
            return self.output
        axis = self.outer.constant("output_channel_axis", np.array([1], np.int64))
        return self.outer.add("Squeeze", [self.output, axis], "output/squeezed")

    def _channel(self, maps: str, index: int) -> str:
        number = self.outer.constant(f"output_class_{index}", np.array(index, np.int64))
        return self.outer.add("Gather", [maps, number], f"output/class_{index}", axis=1)

    def _classes(self, maps: str, classes: tuple[int, ...], name: str) -> str:
        numbers = self.outer.constant(f"output_{name}_classes", np.array(classes, np.int64))
        return self.outer.add("Gather", [maps, numbers], f"output/{name}", axis=1)

    def _logsumexp(self, classes: tuple[int, ...], name: str) -> str:
        """Adds log(sum(exp(logits of classes))), (B, 1, T, T); the maximum is taken out, so that nothing overflows."""
        chosen = self._classes(self.output, classes, name)
        if len(classes) == 1:
            return chosen
        most = self._reduced("ReduceMax", chosen, f"output/{name}_max", keepdims=1)
        rest = self.outer.add("Sub", [chosen, most], f"output/{name}_rest")
        weights = self.outer.add("Exp", [rest], f"output/{name}_exp")
        total = self._reduced("ReduceSum", weights, f"output/{name}_sum", keepdims=1)
        return self.outer.add("Add", [most, self.outer.add("Log", [total], f"output/{name}_log")], f"output/{name}_lse")

    def _reduced(self, operator: str, maps: str, name: str, keepdims: int = 0) -> str:
        axis = self.outer.constant("output_channel_axis", np.array([1], np.int64))
        return self.outer.add(operator, [maps, axis], name, keepdims=keepdims)


class _Network:
    """A copy of the network whose tensors can be renamed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._names: dict[str, str] = {}

    def named(self, name: str) -> str:
        """Returns the present name of the tensor that the network calls ``name``."""
        while name in self._names:
            name = self._names[name]
        return name

    def rename(self, name: str, new: str) -> None:
        """Renames a tensor and all that refers to it."""
        self._names[name] = new
        graph = self.model.graph
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [new if one == name else one for one in names]
        for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            value.name = new if value.name == name else value.name

    def give(self, name: str, images: str, what: Declaration, outer: _Outer) -> None:
        """Makes the nodes that read the network's input ``name`` read ``images``, which are float32.

        They are converted to the type that the network reads, unless it only converts that to float32 again.
        """
        name, nodes = self.named(name), self.model.graph.node
        readers = [node for node in nodes if name in node.input]
        casts = [node for node in readers if _casts_to_float(node)]
        if what.dtype != "float32" and all(node.op_type == "Shape" or node in casts for node in readers):
            for node in casts:
                nodes.remove(node)
                self.rename(node.output[0], images)
        elif what.dtype != "float32":
            images = outer.add("Cast", [images], f"{images}_cast", to=_TYPES[what.dtype])
        self.rename(name, images)


def _casts_to_float(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and attribute(node, "to", 0) == TensorProto.FLOAT


def _renamed(bare: onnx.ModelProto, reserved: set[str]) -> _Network:
    """Copies the network, renames tensors with ``reserved`` names, and names its nodes."""
    network = _Network(copied(bare))
    taken = _tensors(bare) | reserved
    for name in sorted(reserved & _tensors(bare)):
        new = f"{name}_of_network"
        while new in taken:
            new += "_"
        network.rename(name, new)
    name_nodes(network.model.graph.node)
    return network


def _tensors(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {value.name for value in (*graph.initializer, *graph.input, *graph.output)}


def _assembled(
    nodes: list[onnx.NodeProto], network: onnx.ModelProto, outer: _Outer, interface: Interface
) -> onnx.ModelProto:
    inputs, outputs = ([_value(entry) for entry in entries] for entries in (interface.inputs(), interface.outputs()))
    constants = [*network.graph.initializer, *outer.constants.values()]
    graph = helper.make_graph(nodes, "deployed", inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION, producer_name="misgnet-export"
    )
    onnx.checker.check_model(model)
    return model


def _value(entry: TensorEntry) -> onnx.ValueInfoProto:
    shape = [_BATCH if size == -1 else size for size in entry.shape]
    return helper.make_tensor_value_info(entry.name, _TYPES[entry.dtype], shape)


def _opset(model: onnx.ModelProto) -> int:
    return next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))


def _output_shape(bare: onnx.ModelProto, what: Declaration, tile: int) -> tuple[int, ...]:
    """Returns the shape of the network's output for a batch of 1, as ONNX Runtime computes it."""
    channels = what.bands * (2 if what.io == "stacked" else 1)
    image = (channels, tile, tile) if what.layout == "NCHW" else (tile, tile, channels)
    shape = (1, 2, *image) if what.io == "time" else (1, *image)
    zeros = [np.zeros(shape, what.dtype) for _ in what.inputs]
    with Session(bare, what.inputs, what.output_name) as session:
        return tuple(session.run(zeros).shape)

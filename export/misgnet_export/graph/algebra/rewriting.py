"""Replaces nodes in a copy of a graph, and provides the queries about nodes that the rewrites need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.onnx_graph import Graph, copied, drop_unused, put_in_order, scope


class Rewriting:
    """A copy of ``model`` to change; queries of shapes and readers refer to its state before any change.

    A new node takes its module's name from the node it replaces, so that placement and reports find it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copied(model)
        self.graph = Graph(self.model)
        self._before = Graph(model)
        self._added: list[onnx.NodeProto] = []
        self._dropped: set[str] = set()

    @cached_property
    def _symbolic(self) -> dict[str, onnx.TypeProto.Tensor]:
        """Types of tensors by name, before any change, with the symbolic dimensions of the graph's inputs."""
        graph = onnx.shape_inference.infer_shapes(self._before.model, data_prop=True).graph
        return {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}

    def drop(self, *nodes: onnx.NodeProto) -> None:
        """Removes ``nodes`` from the result; each of their outputs that is still read must come from a new node."""
        self._dropped.update(node.name for node in nodes)

    def add(
        self, operator: str, inputs: Sequence[str], output: str, near: onnx.NodeProto, **attributes: Any
    ) -> str:  # fmt: skip
        """Adds a node in the module of ``near``; returns ``output``."""
        name = f"{scope(near)}/{operator}_{output}"
        self._added.append(helper.make_node(operator, list(inputs), [output], name, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds an initializer, or finds it if it exists already; returns its name: ``name``, or with a number added.

        Operators of a stranger's network may share a weight that a rewrite changes differently for each.
        """
        added = numpy_helper.from_array(np.asarray(value, order="C"), name)
        copies = 0
        while added.name in self.graph.constants and not _equal(self.graph.constants[added.name], added):
            copies += 1
            added.name = f"{name}_{copies}"
        if added.name not in self.graph.constants:
            self.graph.constants[added.name] = added
            self.model.graph.initializer.append(added)
        return added.name

    def sizes(self, *dimensions: int) -> str:
        """Returns the target shape of a Reshape: the batch, which is inferred, and then ``dimensions``."""
        return self.constant("to_" + "_".join(map(str, dimensions)), np.array([-1, *dimensions], np.int64))

    def shape(self, name: str) -> list[int]:
        """Returns the dimensions for one image pair, before any change. Raises InputError if one cannot be inferred."""
        return self._before.shape(name)

    def has_shape(self, name: str) -> bool:
        """Returns whether :meth:`shape` knows all dimensions."""
        return self._before.has_shape(name)

    def dims(self, name: str) -> list[int | None]:
        """Returns the dimensions, before any change: None for those that are not fixed, [] if their number is unknown.

        :meth:`shape` would return 1 for a symbolic dimension, the batch among others.
        """
        if name in self._before.constants:
            return list(self._before.shape(name))
        found = self._symbolic.get(name)
        return [d.dim_value if d.HasField("dim_value") else None for d in found.shape.dim] if found else []

    def fixed_shape(self, name: str) -> tuple[int, int, int] | None:
        """Returns (C, h, w) of the map ``name`` (B, C, h, w), before any change; None if one of them is not fixed."""
        dims = self.dims(name)
        return (dims[1], dims[2], dims[3]) if len(dims) == 4 and dims[1] and dims[2] and dims[3] else None

    def reader(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """Returns the only reader of ``name`` if it is one of ``operators`` and ``name`` is not a graph output."""
        readers = self.graph.consumers[name]
        fits = len(readers) == 1 and readers[0].op_type in operators and name not in self.graph.outputs()
        return readers[0] if fits else None

    def finish(self) -> onnx.ModelProto:
        """Returns the changed copy, topologically sorted, without unused nodes and without inferred shapes."""
        kept = [node for node in self.graph.nodes if node.name not in self._dropped]
        put_in_order(self.model, [*kept, *self._added])
        drop_unused(self.model)
        del self.model.graph.value_info[:]
        return self.model


def _equal(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    first, second = numpy_helper.to_array(one), numpy_helper.to_array(other)
    return first.dtype == second.dtype and np.array_equal(first, second)


def permutation(node: onnx.NodeProto | None) -> tuple[int, ...]:
    """Returns the axes of a Transpose; () for any other node."""
    if node is None or node.op_type != "Transpose":
        return ()
    return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())

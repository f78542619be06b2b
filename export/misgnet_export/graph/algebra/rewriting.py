"""A copy of a graph in which nodes are replaced, and what each rewrite asks of a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.onnx_graph import Graph, copied, drop_unused, put_in_order, scope


class Rewriting:
    """A copy of ``model`` with the look-ups of its state before any change; ``finish`` returns the changed one.

    A new node takes its module's name from the node it stands for, so that placement and reports find it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copied(model)
        self.graph = Graph(self.model)
        self._before = Graph(model)
        self._added: list[onnx.NodeProto] = []
        self._dropped: set[str] = set()

    def drop(self, *nodes: onnx.NodeProto) -> None:
        """Leave ``nodes`` out; a new node has to give each output that something still reads."""
        self._dropped.update(node.name for node in nodes)

    def add(
        self, operator: str, inputs: Sequence[str], output: str, near: onnx.NodeProto, **attributes: Any
    ) -> str:  # fmt: skip
        """A node in the module of ``near``; its output."""
        name = f"{scope(near)}/{operator}_{output}"
        self._added.append(helper.make_node(operator, list(inputs), [output], name, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An initializer, once for each name."""
        if name not in self.graph.constants:
            self.graph.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self.model.graph.initializer.append(self.graph.constants[name])
        return name

    def sizes(self, *dimensions: int) -> str:
        """The target of a Reshape whose first axis, the batch, is what is left."""
        return self.constant("to_" + "_".join(map(str, dimensions)), np.array([-1, *dimensions], np.int64))

    def shape(self, name: str) -> list[int]:
        """Dimensions for one image pair, before any change. Raises InputError where one cannot be inferred."""
        return self._before.shape(name)

    def reader(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """The one node that reads ``name``, where it is one of ``operators`` and ``name`` is no output."""
        readers = self.graph.consumers[name]
        fits = len(readers) == 1 and readers[0].op_type in operators and name not in self.graph.outputs()
        return readers[0] if fits else None

    def finish(self) -> onnx.ModelProto:
        """The changed copy, in order and without what nothing reads; shapes within it are not stated any more."""
        kept = [node for node in self.graph.nodes if node.name not in self._dropped]
        put_in_order(self.model, [*kept, *self._added])
        drop_unused(self.model)
        del self.model.graph.value_info[:]
        return self.model


def permutation(node: onnx.NodeProto | None) -> tuple[int, ...]:
    """The axes of a Transpose; () for any other node."""
    if node is None or node.op_type != "Transpose":
        return ()
    return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())

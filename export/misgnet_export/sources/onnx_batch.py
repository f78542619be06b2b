"""Prepares the graph of an ONNX file for deployment: this project's opset, constants as initializers, any batch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper, version_converter

from misgnet_calibration.onnx_graph import copied
from misgnet_export.graph.export import OPSET
from misgnet_export.graph.simplify import lift_constants, simplify_graph
from misgnet_export.sources.onnx_batch_axis import Position, Sizes, batch_axes
from misgnet_export.sources.onnx_session import Session
from misgnet_runtime.errors import GateFailed, InputError

_BATCH = "batch"
_PROOF = 3  # batch that must give the same output as single pairs
_TOLERANCE = 1e-4  # of the output's range


def to_opset(model: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    """Returns ``model`` in this project's opset, with constants as initializers.

    Raises:
        InputError: onnx cannot convert an operator.
    """
    converted = copied(model)
    if opset != OPSET:
        try:
            converted = version_converter.convert_version(model, OPSET)
        except Exception as error:  # onnx's converter raises RuntimeError and its own errors, without a common class
            raise InputError(
                f"{name} has opset {opset}, and {_failed(model, error)}; export it with opset_version={OPSET}"
            ) from error
    lift_constants(converted)
    del converted.graph.value_info[:]
    return converted


def with_any_batch(
    bare: onnx.ModelProto, inputs: tuple[str, ...], output: str, images: tuple[NDArray[Any], ...]
) -> onnx.ModelProto | None:
    """Returns ``bare``, or a copy that accepts any batch and outputs the same; None if none is found.

    In a copy, the batch of inputs and output is symbolic. Where a Reshape states the whole shape, one size is
    computed: the first, or else that in which the batch seems to be. A Resize to a size becomes one by a factor.

    Args:
        bare: The graph. Its batch may be 1, or symbolic: exporters declare that also if constants inside fix it.
        inputs: Names of its inputs.
        output: Name of its output.
        images: Inputs for a batch of 3, for which the output must equal those of single pairs.

    Raises:
        InputError: The graph does not run on single pairs of ``images``.
    """
    with Session(bare, inputs, output) as original:
        expected = np.concatenate([original.run([x[i : i + 1] for x in images]) for i in range(_PROOF)])
    if _outputs(bare, inputs, output, images, expected):
        return bare
    changed = (make(bare, inputs, output) for make in (_with_first_sizes, _with_followed_batch))
    return next((one for one in changed if one and _outputs(one, inputs, output, images, expected)), None)


def _with_first_sizes(bare: onnx.ModelProto, inputs: tuple[str, ...], output: str) -> onnx.ModelProto:
    return _changed(bare, inputs, output, _sizes(bare), {})


def _with_followed_batch(bare: onnx.ModelProto, inputs: tuple[str, ...], output: str) -> onnx.ModelProto | None:
    """Simplifies the graph first: sizes are known once all that computes them is folded."""
    try:
        simplified = simplify_graph(bare, norms_fold=False)
    except GateFailed:
        return None
    sizes = _sizes(simplified)
    return _changed(simplified, inputs, output, sizes, batch_axes(simplified.graph, inputs, sizes))


def _changed(
    bare: onnx.ModelProto, inputs: tuple[str, ...], output: str, sizes: Sizes, at: Mapping[str, Position]
) -> onnx.ModelProto:
    """Returns a copy of ``bare`` with a symbolic batch: in the axes ``at`` of tensors, or else in the first ones."""
    model = copied(bare)
    del model.graph.value_info[:]
    constants = {item.name: item for item in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        for place, value in _changes(node, constants, sizes, at).items():
            node.input.extend([""] * (place + 1 - len(node.input)))
            node.input[place] = ""
            if value is not None:
                node.input[place] = f"{node.output[0]}_any_batch_{index}_{place}"
                model.graph.initializer.append(numpy_helper.from_array(value, node.input[place]))
        while node.input and not node.input[-1]:
            del node.input[-1]
    for value in (*model.graph.input, *model.graph.output):
        if value.name in (*inputs, output) and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    return model


def _outputs(
    model: onnx.ModelProto, inputs: tuple[str, ...], output: str, images: tuple[NDArray[Any], ...],
    expected: NDArray[Any],
) -> bool:  # fmt: skip
    """Returns whether ``model`` outputs ``expected`` for ``images``."""
    try:
        with Session(model, inputs, output) as session:
            found = session.run(images)
    except InputError:
        return False
    if found.shape != expected.shape or not np.isfinite(found).all():
        return False
    return bool(np.abs(found - expected).max() <= _TOLERANCE * max(np.ptp(expected), 1e-6))


def random_inputs(shape: tuple[int, ...], dtype: str, count: int) -> tuple[NDArray[Any], ...]:
    """Returns ``count`` inputs of a batch of 3, each (3, *shape): noise, as raw pixels for integers."""
    generator = np.random.default_rng(0)
    shape = (_PROOF, *shape)
    if dtype in ("uint8", "uint16"):
        return tuple(generator.integers(0, np.iinfo(dtype).max + 1, shape, dtype) for _ in range(count))
    return tuple(generator.standard_normal(shape, np.float32).astype(dtype) for _ in range(count))


def _changes(
    node: NodeProto, constants: Mapping[str, TensorProto], sizes: Sizes, at: Mapping[str, Position]
) -> dict[int, NDArray[Any] | None]:
    """Returns new constants for inputs of ``node``, by their position; None: the input is left out."""
    if node.op_type == "Reshape" and node.input[1] in constants:
        shape = numpy_helper.to_array(constants[node.input[1]]).astype(np.int64)
        end = sizes.get(node.output[0], ())
        if node.output[0] in at and all(end):
            shape = np.array(end, np.int64)
            shape[at[node.output[0]].axis] = -1
            return {1: shape}
        if shape.size and -1 not in shape:
            shape[0] = -1
            return {1: shape}
        if shape.size and shape[0] == 1:
            shape[0] = 0  # that of the input
            return {1: shape}
    if node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in constants:
        target = numpy_helper.to_array(constants[node.input[3]])
        start = sizes.get(node.input[0], ())
        plain = not any(one.name in ("axes", "keep_aspect_ratio_policy") for one in node.attribute)
        if plain and len(start) == len(target) and start[0] == target[0] == 1 and all(start):
            return {2: np.array([_factor(*pair) for pair in zip(start, target, strict=True)], np.float32), 3: None}
    return {}


def _factor(start: int, target: int) -> float:
    """Returns a float32 factor with floor(start * factor) = target."""
    factor = np.float32(target / start)
    while np.floor(np.float32(start) * factor) < target:
        factor = np.nextafter(factor, np.float32(np.inf))
    return float(factor)


def _sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Returns the dimensions of tensors, as far as onnx infers them; 0 is unknown."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in values}


def _failed(model: onnx.ModelProto, error: Exception) -> str:
    """Returns which operator could not be converted, as far as onnx's message says."""
    text = " ".join(str(error).split())
    named = [word for word in re.findall(r"\w+", text) if word in {node.op_type for node in model.graph.node}]
    operator = f"its operator {named[0]}" if named else "an operator"
    return f"onnx cannot convert {operator} to opset {OPSET}: {text[:200]}"

"""Replaces bilinear resizes of the output by two products with constant interpolation matrices.

A bilinear resize is linear and treats rows and columns separately: y = R x C, where a row of R and a column of C hold
the two weights of an output row and column. CPU engines keep maps in blocks of 8 or 16 channels: they resize wide maps
well in that layout, and would have to leave it for a product, but a map of one channel is padded to a whole block.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from misgnet_calibration.onnx_graph import INTERPOLATION
from misgnet_export.graph.algebra.rewriting import Rewriting

# The output has one channel or two; the decoder's maps, with 64 and 128, were slower as products within the graph.
_MOST_CHANNELS = 2
# The values of attributes with which a Resize is rewritten. Except for mode, they are the defaults.
_ATTRIBUTES = {
    "mode": b"linear", "coordinate_transformation_mode": b"half_pixel", "antialias": 0, "exclude_outside": 0,
    "keep_aspect_ratio_policy": b"stretch",
}  # fmt: skip


def resizes_as_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites bilinear resizes by constant whole factors if the map has a fixed size and at most two channels."""
    rewriting = Rewriting(model)
    for node in rewriting.graph.nodes:
        factors = _factors(rewriting, node)
        shape = rewriting.fixed_shape(node.input[0]) if factors is not None else None
        if factors is not None and shape is not None and shape[0] <= _MOST_CHANNELS:
            _replace(rewriting, node, shape[1:], factors)
    return rewriting.finish()


def interpolation(size: int, factor: int) -> NDArray[np.float32]:
    """Returns the matrix (size * factor, size) that resizes ``size`` values bilinearly with half-pixel coordinates.

    Output i is at (i + 0.5) / factor - 0.5 of the input; outputs before the first or after the last input repeat it.
    Computed in float64 and rounded once.
    """
    position = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
    distance = np.abs(position[:, None] - np.arange(size))
    return np.maximum(1 - distance, 0).astype(np.float32)


def _factors(rewriting: Rewriting, node: onnx.NodeProto) -> tuple[int, int] | None:
    """Returns the factors of height and width if ``node`` is a bilinear resize by constant whole factors."""
    if node.op_type != "Resize" or len(node.input) != 3:  # a fourth input is the output's size
        return None
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if "mode" not in given or "axes" in given or any(given.get(k, value) != value for k, value in _ATTRIBUTES.items()):
        return None
    if node.input[2] not in rewriting.graph.constants:
        return None
    scales = rewriting.graph.constant(node.input[2]).astype(np.float64)
    if scales.shape != (4,) or (scales[:2] != 1).any() or (scales < 1).any() or (scales % 1).any():
        return None
    return int(scales[2]), int(scales[3])


def _replace(rewriting: Rewriting, node: onnx.NodeProto, size: tuple[int, int], factors: tuple[int, int]) -> None:
    (height, width), name = size, node.output[0]
    down, across = interpolation(height, factors[0]), interpolation(width, factors[1]).T
    rows = rewriting.constant(f"{INTERPOLATION}rows_{height}_to_{len(down)}", down)
    columns = rewriting.constant(f"{INTERPOLATION}columns_{width}_to_{across.shape[1]}", across)
    tall = rewriting.add("MatMul", [rows, node.input[0]], f"{name}_tall", node)
    rewriting.add("MatMul", [tall, columns], name, node)
    rewriting.drop(node)

"""Writes resizes in the forms that engines support best: by scales, and of the output as products with constants.

Exporters compute the size of a resize from shapes of other tensors, or state it for some axes only. TensorRT for RTX
1.7 rejects the latter, and ONNX Runtime 1.32 fails on it in INT8 graphs. Scales are the plainest form.

A bilinear resize is linear and treats rows and columns separately: y = R x C, where a row of R and a column of C hold
the two weights of an output row and column. CPU engines keep maps in blocks of 8 or 16 channels: they resize wide maps
well in that layout, and would have to leave it for a product, but a map of one channel is padded to a whole block.
"""

from __future__ import annotations

from fractions import Fraction

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


def resizes_by_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites resizes to given sizes as resizes by constant scales if float32 represents the scales exactly."""
    rewriting = Rewriting(model)
    for node in rewriting.graph.nodes:
        scales = _exact_scales(rewriting, node)
        if scales is None:
            continue
        attributes = [a for a in node.attribute if a.name != "axes"]
        sizes = node.input[3] if len(node.input) > 3 else ""
        del node.attribute[:]
        node.attribute.extend(attributes)
        node.input[:] = [node.input[0], "", rewriting.constant(f"scales_of_{node.output[0]}", scales)]
        _drop_if_unread(rewriting, sizes)
    return rewriting.finish()


def _exact_scales(rewriting: Rewriting, node: onnx.NodeProto) -> NDArray[np.float32] | None:
    """Returns the scales of a resize of height and width that is stated by sizes or for some axes; else None."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type != "Resize" or not ("axes" in given or len(node.input) > 3):
        return None
    crops = given.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    if crops or given.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return None
    before, after = rewriting.fixed_shape(node.input[0]), rewriting.fixed_shape(node.output[0])
    if after is None and rewriting.has_shape(node.output[0]):  # sizes computed from shapes, one of which is the batch
        shape = rewriting.shape(node.output[0])
        after = (shape[1], shape[2], shape[3]) if len(shape) == 4 else None
    if before is None or after is None or before[0] != after[0]:
        return None
    factors = [Fraction(new, old) for new, old in zip(after[1:], before[1:], strict=True)]
    powers = all(factor.denominator & (factor.denominator - 1) == 0 for factor in factors)
    return np.array([1, 1, *map(float, factors)], np.float32) if powers else None


def _drop_if_unread(rewriting: Rewriting, name: str) -> None:
    """Drops the nodes that compute ``name`` if it has no reader but one that does not read it any more."""
    node = rewriting.graph.producer.get(name)
    if node is None or len(node.output) > 1 or len(rewriting.graph.consumers[name]) > 1:
        return
    if name not in rewriting.graph.outputs():
        rewriting.drop(node)
        for read in node.input:
            _drop_if_unread(rewriting, read)


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

"""Converts between tokens (B, N, C) and maps (B, C, h, w) with one four-axis transpose, which engines can fuse.

A PyTorch network transposes the tokens and then reshapes them to a grid: two steps that move every value. If the tokens
are reshaped to (B, h, w, C) first, the transpose is the one between "channels last" and "channels first": ONNX Runtime
and OpenVINO merge it into the reordering around a convolution, or drop it if the convolution reads channels last.
"""

from __future__ import annotations

import onnx

from misgnet_export.graph.algebra.rewriting import Rewriting, permutation

TO_MAP, TO_TOKENS = (0, 3, 1, 2), (0, 2, 3, 1)
_TURNED = (0, 2, 1)


def tokens_channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """Swaps every pair of Transpose (0, 2, 1) and Reshape between tokens and a map."""
    rewriting = Rewriting(model)
    for node in rewriting.graph.nodes:
        if permutation(node) == _TURNED:
            _swap_to_map(rewriting, node)
        elif node.op_type == "Reshape":
            _swap_to_tokens(rewriting, node)
    return rewriting.finish()


def _swap_to_map(rewriting: Rewriting, transpose: onnx.NodeProto) -> None:
    reshape = rewriting.reader(transpose.output[0], "Reshape")
    shape = rewriting.fixed_shape(reshape.output[0]) if reshape is not None else None
    if reshape is None or shape is None:
        return
    channels, height, width = shape
    if rewriting.dims(transpose.output[0])[1:] != [channels, height * width]:
        return
    name = reshape.output[0]
    grid = rewriting.add(
        "Reshape", [transpose.input[0], rewriting.sizes(height, width, channels)], f"{name}_grid", reshape
    )  # fmt: skip
    rewriting.add("Transpose", [grid], name, reshape, perm=TO_MAP)
    rewriting.drop(transpose, reshape)


def _swap_to_tokens(rewriting: Rewriting, reshape: onnx.NodeProto) -> None:
    transpose = rewriting.reader(reshape.output[0], "Transpose")
    source = reshape.input[0]
    shape = rewriting.fixed_shape(source)
    if transpose is None or permutation(transpose) != _TURNED or shape is None:
        return
    channels, height, width = shape
    count = height * width
    if rewriting.dims(reshape.output[0])[1:] != [channels, count]:
        return
    name = transpose.output[0]
    grid = rewriting.add("Transpose", [source], f"{name}_grid", transpose, perm=TO_TOKENS)
    rewriting.add("Reshape", [grid, rewriting.sizes(count, channels)], name, transpose)
    rewriting.drop(reshape, transpose)

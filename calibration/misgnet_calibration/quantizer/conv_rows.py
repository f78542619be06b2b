"""Expresses a convolution as a matrix product: samples the rows that it reads (im2col), reshapes its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

Rows = NDArray[np.float32]
Kind = TypeVar("Kind", bound=np.generic)


def sampled_rows(
    node: onnx.NodeProto, values: NDArray[np.float32], kernel: tuple[int, ...], count: int, seed: int
) -> Rows:
    """Samples the rows that ``node`` multiplies with its weight.

    Args:
        node: A convolution or matrix product.
        values: Its input: (..., K) of a matrix product, (B, C, H, W) of a convolution.
        kernel: The kernel's size; K is C times its area, in the order of the weight.
        count: The largest number of rows N.
        seed: Output positions are drawn without replacement; equal seeds draw equal positions.

    Returns:
        Float32 (N, K), N <= ``count``.
    """
    if node.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[_drawn(len(rows), count, seed)]
    windows = _windows(node, values, kernel)  # (B, C, OH, OW, kh, kw), a view
    batch, channels, *positions = windows.shape[:4]
    drawn = np.unravel_index(_drawn(batch * math.prod(positions), count, seed), (batch, *positions))
    patches = windows[drawn[0], :, drawn[1], drawn[2]]  # (N, C, kh, kw)
    return np.ascontiguousarray(patches).reshape(len(patches), channels * math.prod(kernel))


def as_matrix(weight: NDArray[Kind], axis: int) -> NDArray[Kind]:
    """Returns a weight as a matrix (K, C), one column per output channel; ``axis`` is that of the output channels."""
    return np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])


def from_matrix(matrix: NDArray[Kind], shape: tuple[int, ...], axis: int) -> NDArray[Kind]:
    """Reverses :func:`as_matrix`: returns the weight of ``shape`` from its matrix (K, C)."""
    moved = tuple(size for i, size in enumerate(shape) if i != axis)
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(*moved, shape[axis]), -1, axis))


def _windows(node: onnx.NodeProto, values: NDArray[np.float32], kernel: tuple[int, ...]) -> NDArray[np.float32]:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    top, left, bottom, right = _pads(given, values.shape[2:], reach, strides)
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _pads(
    given: Mapping[str, Any], size: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[int, int, int, int]:
    """Returns the padding above, left, below and right, also where ONNX's ``auto_pad`` derives it from the size.

    SAME_UPPER and SAME_LOWER make the output as large as the input divided by the stride, rounded up; an odd padding
    has its additional line at the end or at the beginning.
    """
    automatic = given.get("auto_pad", b"NOTSET").decode()
    if automatic == "NOTSET":
        top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
        return top, left, bottom, right
    if automatic == "VALID":
        return 0, 0, 0, 0
    total = [max(0, (-(-n // step) - 1) * step + r - n) for n, r, step in zip(size, reach, strides, strict=True)]
    before = [n // 2 if automatic == "SAME_UPPER" else n - n // 2 for n in total]
    return before[0], before[1], total[0] - before[0], total[1] - before[1]


def _drawn(size: int, count: int, seed: int) -> NDArray[np.int64]:
    if size <= count:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False))

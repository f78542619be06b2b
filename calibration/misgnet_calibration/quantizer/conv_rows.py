"""A convolution as the matrix product that it is: the rows it reads (im2col), and its weight as a matrix."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from misgnet_runtime.errors import InputError

Rows = NDArray[np.float32]
Kind = TypeVar("Kind", bound=np.generic)


def sampled_rows(
    node: onnx.NodeProto, values: NDArray[np.float32], kernel: tuple[int, ...], count: int, seed: int
) -> Rows:
    """Float32 (N, K), N <= ``count``: what ``node`` multiplies with its weight at N of its output positions.

    ``values``: what the operator reads, (..., K) of a matrix product, (B, C, H, W) of a convolution, of which K
    is C times the ``kernel``'s size, in the weight's own order. Positions are drawn without replacement; equal
    seeds draw equal ones. Raises InputError for a convolution with automatic padding.
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
    """(K, C): a column for each output channel; ``axis`` is where those lie."""
    return np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])


def from_matrix(matrix: NDArray[Kind], shape: tuple[int, ...], axis: int) -> NDArray[Kind]:
    """What :func:`as_matrix` made (K, C) from, of ``shape``."""
    moved = tuple(size for i, size in enumerate(shape) if i != axis)
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(*moved, shape[axis]), -1, axis))


def _windows(node: onnx.NodeProto, values: NDArray[np.float32], kernel: tuple[int, ...]) -> NDArray[np.float32]:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if given.get("auto_pad", b"NOTSET") != b"NOTSET":
        found = f"Conv '{node.name}' pads automatically ({given['auto_pad'].decode()})"
        raise InputError(f"{found}; state its pads as numbers")
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _drawn(size: int, count: int, seed: int) -> NDArray[np.int64]:
    if size <= count:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False))

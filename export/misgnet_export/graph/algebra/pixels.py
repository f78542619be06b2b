"""Normalises images in fewer steps: the first convolution divides by the deviation, and the mean is subtracted once.

conv(gain * x - offset) = conv'(x - offset / gain), where the weights of conv' are those of conv times the gain of their
channel. The mean cannot be moved into the bias: the convolution pads with zeros, which stand for the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph import attribute
from misgnet_export.graph.algebra.rewriting import Rewriting, permutation
from misgnet_export.graph.algebra.tokens import TO_MAP

_STEPS = ("Mul", "Sub", "Concat")  # the only reader of each step of a date


@dataclass(frozen=True)
class _Date:
    """The normalisation of one date, gain * transposed(pixels) - offset, and its nodes from the Transpose on."""

    pixels: str
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    nodes: tuple[onnx.NodeProto, ...]


def fold_normalisation(model: onnx.ModelProto) -> onnx.ModelProto:
    """Joins both dates before they are normalised; leaves a graph that takes normalised images unchanged."""
    rewriting = Rewriting(model)
    for join in rewriting.graph.nodes:
        if join.op_type != "Concat" or attribute(join, "axis", 0) != 0:
            continue
        dates = [_date(rewriting, name) for name in join.input]
        conv = rewriting.reader(join.output[0], "Conv")
        found = [date for date in dates if date is not None]
        if conv is not None and len(found) == len(dates) and _same(found) and _multiplies(rewriting, conv, found[0]):
            _fold(rewriting, join, conv, found)
    return rewriting.finish()


def _date(rewriting: Rewriting, name: str) -> _Date | None:
    graph = rewriting.graph
    subtract = graph.producer.get(name)
    multiply = graph.producer.get(subtract.input[0]) if subtract is not None and subtract.op_type == "Sub" else None
    turn = graph.producer.get(multiply.input[0]) if multiply is not None and multiply.op_type == "Mul" else None
    if subtract is None or multiply is None or turn is None or permutation(turn) != TO_MAP:
        return None
    gain, offset = multiply.input[1], subtract.input[1]
    if gain not in graph.constants or offset not in graph.constants:
        return None
    if any(rewriting.reader(node.output[0], *_STEPS) is None for node in (turn, multiply, subtract)):
        return None
    numbers = [graph.constant(name).astype(np.float64) for name in (gain, offset)]
    return _Date(turn.input[0], numbers[0], numbers[1], (turn, multiply, subtract))


def _same(dates: list[_Date]) -> bool:
    first = dates[0]
    per_band = (1, first.gain.size, 1, 1)
    if (first.gain.shape, first.offset.shape) != (per_band, per_band) or not first.gain.all():
        return False
    return all(np.array_equal(d.gain, first.gain) and np.array_equal(d.offset, first.offset) for d in dates)


def _multiplies(rewriting: Rewriting, conv: onnx.NodeProto, date: _Date) -> bool:
    """Returns whether ``conv`` multiplies each band of ``date`` with a constant kernel."""
    weight = rewriting.graph.weight_of(conv)
    kernel = rewriting.dims(weight) if weight is not None else []
    return len(kernel) == 4 and kernel[1] == date.gain.size


def _fold(rewriting: Rewriting, join: onnx.NodeProto, conv: onnx.NodeProto, dates: list[_Date]) -> None:
    gain, offset = dates[0].gain, dates[0].offset
    weight = (rewriting.graph.constant(conv.input[1]).astype(np.float64) * gain).astype(np.float32)
    mean = rewriting.constant("image_mean", (offset / gain).astype(np.float32))
    both = rewriting.add("Concat", [date.pixels for date in dates], f"{join.output[0]}_pixels", join, axis=0)
    turned = rewriting.add("Transpose", [both], f"{both}_map", join, perm=TO_MAP)
    # Subtracted from maps: subtracting three values along the last axis takes ten times as long.
    rewriting.add("Sub", [turned, mean], join.output[0], join)
    conv.input[1] = rewriting.constant(f"{conv.input[1]}_gain", weight)
    rewriting.drop(join, *(node for date in dates for node in date.nodes))

"""The arithmetic of quantization: scales, zero points and quantized values. NumPy in, NumPy out."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.observers import Range

Number = TypeVar("Number", bound=np.floating)

# Scales reach down to 16 steps of float16's subnormals. Finer weights than that are 0 to any engine.
SMALLEST_SCALE = 2.0**-20
# An activation's scale is a scalar, which float16 must hold as a normal number.
_SMALLEST_HALF = 2.0**-14
_BIAS_LIMIT = 2**30  # INT32, with a bit to spare for the sum of products
_PLAUSIBLE = 2.0  # steps that learned values may be off on average; nearest rounding is 0.25 off


def activation_parameters(found: Range, recipe: Recipe) -> tuple[float, NDArray[np.generic]]:
    """Scale and zero point: INT8 around 0, or UINT8 from low to high with 0 exactly on a step."""
    if recipe.symmetric_activations:
        smallest = _SMALLEST_HALF if recipe.float16 else SMALLEST_SCALE
        scale = np.array([max(found.magnitude / 127, smallest)])
        return float(_representable(scale, recipe)[0]), np.array(0, np.int8)
    step = float(np.float32(max((found.high - found.low) / 255, SMALLEST_SCALE)))
    return step, np.array(np.clip(round(-found.low / step), 0, 255), np.uint8)


def fake_quantize(values: NDArray[np.float32], found: Range, recipe: Recipe) -> NDArray[np.float32]:
    """``values`` as an INT8 operator sees them: rounded to the activation's steps, and clipped to its range."""
    step, zero = activation_parameters(found, recipe)
    limits = np.iinfo(np.int8 if recipe.symmetric_activations else np.uint8)
    quantized = np.clip(np.rint(values / np.float32(step)) + int(zero), limits.min, limits.max)
    return ((quantized - int(zero)) * np.float32(step)).astype(np.float32)


def weight_scale(
    weight: NDArray[np.float32], axis: int, recipe: Recipe, bias: NDArray[np.generic] | None, step: float
) -> NDArray[np.float32]:
    """Scale of every output channel (C,): its largest weight on the largest quantized value.

    A quantized bias counts in steps of ``step``, the activation's scale, times the weight's: a channel with a
    large bias and next to no weights (pruned, or folded away) gets the coarse steps that its bias needs.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others).astype(np.float64) / largest_quantized(recipe)
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (step * _BIAS_LIMIT))
    return _representable(np.maximum(scale, SMALLEST_SCALE), recipe)


def quantize_weight(
    weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int, recipe: Recipe
) -> NDArray[np.int8]:
    """INT8 of the weight's shape; ``scale`` (C,) lies along ``axis``."""
    limit = largest_quantized(recipe)
    quantized = np.clip(np.rint(weight / along(scale, axis, weight.ndim)), -limit, limit)
    return np.asarray(quantized, np.int8)


def along(values: NDArray[Number], axis: int, ndim: int) -> NDArray[Number]:
    """``values`` (C,) so that they broadcast along ``axis`` of an array with ``ndim`` axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def check_quantized_weight(
    quantized: NDArray[np.int8], weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int, recipe: Recipe
) -> None:
    """Raises ValueError where given ``quantized`` cannot be a rounding of ``weight`` in steps of ``scale``.

    Learned values compensate each other's errors, so one may lie some steps off its weight; all of them
    together do only where they were learned for another weight or for other steps.
    """
    limit = largest_quantized(recipe)
    if quantized.dtype != np.int8 or quantized.shape != weight.shape:
        raise ValueError(f"{quantized.dtype} {quantized.shape}; the weight needs int8 {weight.shape}")
    if np.abs(quantized.astype(np.int32)).max(initial=0) > limit:
        raise ValueError(f"levels beyond {limit}, which {recipe.weight_bits} bits do not hold")
    off = float(np.abs(quantized - weight / along(scale, axis, weight.ndim)).mean())
    if not off <= _PLAUSIBLE:
        raise ValueError(f"levels that are {off:.1f} steps off the weight on average")


def quantize_bias(bias: NDArray[np.generic], steps: NDArray[np.float32]) -> NDArray[np.int32]:
    """INT32 (C,) in ``steps`` of input scale times weight scale, as a convolution in INT8 adds it."""
    return np.rint(bias.astype(np.float64) / steps).astype(np.int32)


def largest_quantized(recipe: Recipe) -> int:
    """The largest integer that a weight may have; the smallest is its negative."""
    return (1 << (recipe.weight_bits - 1)) - 1


def _representable(scale: NDArray[np.floating], recipe: Recipe) -> NDArray[np.float32]:
    """Where the graph will be float16, the next larger scale there, so that it is not rounded again."""
    if not recipe.float16:
        return scale.astype(np.float32)
    with np.errstate(over="ignore"):  # an infinite scale is refused by the rules, with the node's name
        half = scale.astype(np.float16)
        up = np.nextafter(half, np.float16(np.inf))
    return np.where(half.astype(np.float64) < scale, up, half).astype(np.float32)

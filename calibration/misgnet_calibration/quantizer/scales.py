"""Computes scales, zero points and quantized values with NumPy."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.observers import Range

Number = TypeVar("Number", bound=np.floating)

# The smallest scale is 16 times the smallest float16 subnormal. Engines treat finer weights as 0.
SMALLEST_SCALE = 2.0**-20
# An activation's scale is a scalar that must be a normal float16 number.
_SMALLEST_HALF = 2.0**-14
_BIAS_LIMIT = 2**30  # INT32, with one bit reserved for the sum of products
_PLAUSIBLE = 2.0  # largest mean distance of learned values from the weight, in steps; nearest rounding has 0.25


def activation_parameters(found: Range, recipe: Recipe) -> tuple[float, NDArray[np.generic]]:
    """Returns scale and zero point: INT8 around 0, or UINT8 from low to high with 0 exactly on a step."""
    if recipe.symmetric_activations:
        smallest = _SMALLEST_HALF if recipe.float16 else SMALLEST_SCALE
        scale = np.array([max(found.magnitude / 127, smallest)])
        return float(_representable(scale, recipe)[0]), np.array(0, np.int8)
    step = float(np.float32(max((found.high - found.low) / 255, SMALLEST_SCALE)))
    return step, np.array(np.clip(round(-found.low / step), 0, 255), np.uint8)


def fake_quantize(values: NDArray[np.float32], found: Range, recipe: Recipe) -> NDArray[np.float32]:
    """Returns ``values`` as an INT8 operator reads them: rounded to the activation's steps, clipped to its range."""
    step, zero = activation_parameters(found, recipe)
    limits = np.iinfo(np.int8 if recipe.symmetric_activations else np.uint8)
    quantized = np.clip(np.rint(values / np.float32(step)) + int(zero), limits.min, limits.max)
    return ((quantized - int(zero)) * np.float32(step)).astype(np.float32)


def weight_scale(
    weight: NDArray[np.float32], axis: int, recipe: Recipe, bias: NDArray[np.generic] | None, step: float
) -> NDArray[np.float32]:
    """Returns the scale of every output channel (C,): its largest weight divided by the largest quantized value.

    The step of a quantized bias is ``step``, the activation's scale, times the weight's scale. A channel with a large
    bias and hardly any weights (pruned, or folded away) therefore gets the larger scale that its bias needs.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others).astype(np.float64) / largest_quantized(recipe)
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (step * _BIAS_LIMIT))
    return _representable(np.maximum(scale, SMALLEST_SCALE), recipe)


def quantize_weight(
    weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int, recipe: Recipe
) -> NDArray[np.int8]:
    """Returns quantized values, INT8 of the weight's shape; ``scale`` (C,) belongs to ``axis``."""
    limit = largest_quantized(recipe)
    quantized = np.clip(np.rint(weight / along(scale, axis, weight.ndim)), -limit, limit)
    return np.asarray(quantized, np.int8)


def along(values: NDArray[Number], axis: int, ndim: int) -> NDArray[Number]:
    """Reshapes ``values`` (C,) so that they broadcast along ``axis`` of an array with ``ndim`` axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def check_quantized_weight(
    quantized: NDArray[np.int8], weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int, recipe: Recipe
) -> None:
    """Raises ValueError if ``quantized`` cannot be a rounding of ``weight`` in steps of ``scale``.

    Learned values compensate each other's errors, so a single one may be some steps away from its weight. If they are
    far away on average, they were learned for another weight or another scale.
    """
    limit = largest_quantized(recipe)
    if quantized.dtype != np.int8 or quantized.shape != weight.shape:
        raise ValueError(f"{quantized.dtype} {quantized.shape}; the weight needs int8 {weight.shape}")
    if np.abs(quantized.astype(np.int32)).max(initial=0) > limit:
        raise ValueError(f"quantized values beyond {limit}, which do not fit in {recipe.weight_bits} bits")
    off = float(np.abs(quantized - weight / along(scale, axis, weight.ndim)).mean())
    if not off <= _PLAUSIBLE:
        raise ValueError(f"quantized values that are {off:.1f} steps away from the weight on average")


def quantize_bias(bias: NDArray[np.generic], steps: NDArray[np.float32]) -> NDArray[np.int32]:
    """Returns INT32 (C,) in ``steps`` of input scale times weight scale, as an INT8 convolution adds it."""
    return np.rint(bias.astype(np.float64) / steps).astype(np.int32)


def largest_quantized(recipe: Recipe) -> int:
    """Returns the largest quantized value of a weight; the smallest is its negative."""
    return (1 << (recipe.weight_bits - 1)) - 1


def _representable(scale: NDArray[np.floating], recipe: Recipe) -> NDArray[np.float32]:
    """Rounds scales up to the next float16 value if the graph will be float16, so that they are not rounded again."""
    if not recipe.float16:
        return scale.astype(np.float32)
    with np.errstate(over="ignore"):  # the checks reject an infinite scale and name its node
        half = scale.astype(np.float16)
        up = np.nextafter(half, np.float16(np.inf))
    return np.where(half.astype(np.float64) < scale, up, half).astype(np.float32)

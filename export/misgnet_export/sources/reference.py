"""Runs a bare network in NumPy terms: raw images to its inputs, and its output to the probability of change.

``deploy`` does the same inside the graph. The two are written apart, so that comparing them means something.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_export.sources.declaration import Declaration, Layout
from misgnet_runtime.bundle.preprocessing import normalise
from misgnet_runtime.errors import InputError

Images = NDArray[np.uint8] | NDArray[np.uint16]


def network_inputs(before: Images, after: Images, what: Declaration) -> tuple[NDArray[Any], ...]:
    """Converts raw images of both dates, each (B, H, W, C), to the inputs of the bare network.

    Returns:
        Arrays of ``what.dtype`` in the order of ``what.inputs``: two of (B, C, H, W) for "pair", one of (B, 2C, H, W)
        for "stacked", one of (B, 2, C, H, W) for "time"; with the layout NHWC the channels are last.
    """
    dates = [_date(images, what) for images in (before, after)]
    if what.io == "pair":
        return tuple(dates)
    if what.io == "time":
        return (np.stack(dates, 1),)
    return (np.concatenate(dates, 1 if what.layout == "NCHW" else 3),)


def probability(output: NDArray[Any], what: Declaration, tile: int) -> NDArray[np.float32]:
    """Converts an output of the bare network to the probability of change, float32 (B, T, T) with T = ``tile``.

    Raises:
        InputError: The output does not have the shape that ``what`` and ``tile`` require.
    """
    maps = as_maps(output.astype(np.float32, copy=False), output_layout(output.shape, what, tile))
    kind = what.output.kind
    if kind == "probability1":
        return maps[:, 0]
    if kind == "probability2":
        return maps[:, 1]
    if kind == "logit1":
        return _sigmoid(maps[:, 0])
    if kind == "logits2":
        return _sigmoid(maps[:, 1] - maps[:, 0])
    weights = np.exp(maps - maps.max(1, keepdims=True))
    return np.asarray(weights[:, list(what.changed)].sum(1) / weights.sum(1), np.float32)


def as_maps(output: NDArray[Any], layout: Layout | None) -> NDArray[Any]:
    """Returns an output as (B, N, T, T); ``layout`` is that of :func:`output_layout`."""
    if layout is None:
        return output[:, None]
    return output if layout == "NCHW" else output.transpose(0, 3, 1, 2)


def output_layout(shape: tuple[int, ...], what: Declaration, tile: int) -> Layout | None:
    """Returns the layout of an output of ``shape``; None if it has no axis of channels: (B, T, T).

    The output of a network whose images are NHWC may be NCHW, and vice versa; if both fit, the images decide.

    Raises:
        InputError: The output has other axes, another number of channels, or another size than the tile.
    """
    channels, maps = what.output.channels, (tile, tile)
    fits: dict[Layout, bool] = {
        "NCHW": len(shape) == 4 and shape[1:] == (channels, *maps),
        "NHWC": len(shape) == 4 and shape[1:] == (*maps, channels),
    }
    if channels == 1 and shape[1:] == maps:
        return None
    if fits[what.layout]:
        return what.layout
    found: list[Layout] = [layout for layout, holds in fits.items() if holds]
    if found:
        return found[0]
    sizes = " x ".join(map(str, shape[1:])) or "nothing"
    raise InputError(
        f"the network's output '{what.output_name}' is {sizes} for each pair of {tile} x {tile} px tiles, but "
        f"{what.output} needs {channels} x {tile} x {tile}; check --model-output, and resize the output to the size "
        "of the images inside the network"
    )


def _date(images: Images, what: Declaration) -> NDArray[Any]:
    maps = normalise(images, what.normalization)
    arranged = maps if what.layout == "NCHW" else maps.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(arranged.astype(what.dtype))


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)

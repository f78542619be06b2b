"""Finds out what a network in PyTorch is: by its parameters, and by running it on random images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from misgnet_export.sources.declaration import Declaration, Found
from misgnet_export.sources.factory_code import own_code
from misgnet_export.sources.network_calls import Separate, arranged, call, outputs_of, random_dates
from misgnet_export.sources.options import ModelIo, ModelOptions
from misgnet_export.sources.reference import output_layout
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.pixels import MOST_BANDS

_SIDES = (256, 512, 224, 384, 128, 64)  # px of the images that a network is tried with, until one fits
_FORMS: dict[int, tuple[ModelIo, ...]] = {1: ("stacked", "time"), 2: ("pair",)}  # by the number of inputs
TOLERANCE = 1e-4  # between two ways to compute an output; relative above 1


class Trials:
    """Runs a network on random images, to find out what it accepts and returns."""

    def __init__(self, network: nn.Module, name: str, options: ModelOptions) -> None:
        self.network, self.name, self.options = network, name, options
        parameters = _parameters(network)
        required = tuple(parameter for parameter, needed in parameters.items() if needed)
        self.shown = tuple(parameters) if options.model_inputs else required  # names that the user may choose from
        # The parameters that take images; none: they are given in their order.
        self.names = options.model_inputs or required
        multiple = options.multiple or 1
        self.first_side = -(-_SIDES[0] // multiple) * multiple

    def run(self, io: ModelIo, bands: int, side: int) -> dict[str, Tensor]:
        """Returns the tensors of the output by name. Raises InputError with the network's own exception."""
        images = arranged(io, *random_dates(bands, side))
        shapes = " and ".join(str(tuple(image.shape)) for image in images)
        with own_code(f"{self.name}: the network on images {shapes}"), torch.inference_mode():
            return outputs_of(call(self.network, self.names, images))

    def accepted(self, ios: Sequence[ModelIo], bands: Sequence[int], side: int) -> list[_Accepted]:
        """Returns which of the forms the network accepts."""
        found = []
        for io, count in product(ios, bands):
            with suppress(InputError):
                found.append(_Accepted(io, count, self.run(io, count, side)))
        return found


@dataclass(frozen=True)
class _Accepted:
    """A form of images that a network accepts, and what it returns for them."""

    io: ModelIo
    bands: int
    outputs: dict[str, Tensor]


def inspect_network(trials: Trials) -> Found:
    """Returns what the network shows by its parameters and its first convolution, and by what it accepts."""
    options, count = trials.options, len(trials.names)
    ios = _FORMS.get(count, ("pair", "stacked", "time"))
    bands, accepted, side = _possible_bands(trials.network, options), [], trials.first_side
    sides = [side for side in _SIDES if side % (options.multiple or 1) == 0]
    for side in dict.fromkeys((trials.first_side, *sides)):
        if accepted := trials.accepted(ios, bands, side):
            break
    if len({one.io for one in accepted}) > 1:
        accepted = [one for one in accepted if one.io == options.model_io] or accepted
    if len({one.bands for one in accepted}) > 1:
        accepted = [one for one in accepted if one.bands == options.bands] or accepted
    if not accepted:
        return Found(inputs=trials.shown, outputs=(), layout="NCHW", dtype="float32")
    outputs = accepted[0].outputs
    return Found(
        inputs=trials.shown, outputs=tuple(outputs), io=_only({one.io for one in accepted}), layout="NCHW",
        dtype="float32", bands=_only({one.bands for one in accepted}), channels=_channels(outputs, options, side),
        tile=None if side == trials.first_side else side,
    )  # fmt: skip


def _parameters(network: nn.Module) -> dict[str, bool]:
    """Returns the parameters of ``forward`` that have names, and whether they are required."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(network.forward).parameters.values()
    return {one.name: one.default is one.empty for one in found if one.kind in kinds}


def _possible_bands(network: nn.Module, options: ModelOptions) -> list[int]:
    """Returns how many bands a date may have: the channels of the first convolution, half of them, or as declared."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
    channels = first.in_channels if first is not None else 0
    found = [channels, *([channels // 2] if channels % 2 == 0 else []), options.bands or 0]
    return [bands for bands in dict.fromkeys(found) if 1 <= bands <= MOST_BANDS]


def _only(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else None


def _channels(outputs: Mapping[str, Tensor], options: ModelOptions, side: int) -> int | None:
    """Returns the channels of the output that is chosen or alone."""
    chosen = [output for name, output in outputs.items() if options.model_output_name in (None, name)]
    if len(chosen) != 1 or chosen[0].ndim not in (3, 4):
        return None
    shape = chosen[0].shape
    if len(shape) == 3:
        return 1
    return shape[3] if shape[1:3] == (side, side) and shape[2:] != (side, side) else shape[1]


def check_output(trials: Trials, what: Declaration, side: int) -> tuple[bool, str]:
    """Checks the output of the network; returns whether it encodes the dates separately, and that in words.

    Raises:
        InputError: The network does not accept images as declared, or its output has another form.
    """
    output, network = trial_output(trials, what, side), trials.network
    if not all(callable(getattr(network, method, None)) for method in ("encode", "compare")):
        return False, "without encode(image) and compare(features_a, features_b): no parts for series"
    try:
        with own_code(f"{type(network).__name__}.encode and compare"), torch.inference_mode():
            parts = Separate(network, what.output_name)
            found = parts(*random_dates(what.bands, side))
    except InputError as error:
        return False, f"{error}: no parts for series"
    if found.shape != output.shape:
        shapes = f"encode and compare return {list(found.shape)}, forward {list(output.shape)}"
        return False, f"{shapes}: no parts for series"
    difference = float((found - output).abs().max() / output.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        return False, f"encode and compare differ from forward by {difference:.2g}: no parts for series"
    return True, "encodes each date separately: --split makes parts for series"


def trial_output(trials: Trials, what: Declaration, side: int) -> Tensor:
    """Returns the checked output of the network for random images with ``side`` px."""
    outputs = trials.run(what.io, what.bands, side)
    if what.output_name not in outputs:
        raise UsageError(f"--model-output-name is '{what.output_name}', but the outputs are {', '.join(outputs)}")
    output = outputs[what.output_name]
    if not output.is_floating_point():
        raise InputError(f"{trials.name}: the network outputs {output.dtype}; it must output logits or probabilities")
    output_layout(tuple(output.shape), what, side)
    return output

"""Calls a network in PyTorch with images of both dates, as it takes them, and names what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from misgnet_export.sources.options import ModelIo
from misgnet_runtime.errors import InputError

ONE_OUTPUT = "output"  # name of the output of a network that has no names


def random_dates(bands: int, side: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Returns the same random images of two dates each time, float32 (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn((2, batch, bands, side, side), generator=generator)
    return before, after


def outputs_of(output: Any) -> dict[str, Tensor]:
    """Returns the tensors that a network outputs by name: by key of a dict, or by position in a list or tuple.

    Raises:
        InputError: There are none.
    """
    if isinstance(output, Tensor):
        return {ONE_OUTPUT: output}
    items = (
        output.items() if isinstance(output, Mapping) else enumerate(output if isinstance(output, list | tuple) else ())
    )
    if found := {str(name): value for name, value in items if isinstance(value, Tensor)}:
        return found
    raise InputError(
        f"the network returned {type(output).__name__}; it must return a tensor, or a dict or list of tensors"
    )


def call(network: nn.Module, names: Sequence[str], images: Sequence[Tensor]) -> Any:
    return network(**dict(zip(names, images, strict=True))) if names else network(*images)


def arranged(io: ModelIo, before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """Returns images (B, C, H, W) of both dates as a network takes them."""
    if io == "pair":
        return before, after
    return (torch.cat((before, after), 1) if io == "stacked" else torch.stack((before, after), 1),)


class Pair(nn.Module):
    """A network with an input for each date, and one output."""

    def __init__(self, network: nn.Module, names: Sequence[str], output: str) -> None:
        super().__init__()
        self.network, self.names, self.output = network, tuple(names), output

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return outputs_of(call(self.network, self.names, (before, after)))[self.output]


class Together(Pair):
    """A network with one input for both dates, and one output."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return outputs_of(call(self.network, self.names, (images,)))[self.output]


class Separate(nn.Module):
    """A network that encodes both dates as one batch and compares them, so that its graph can be cut between."""

    network: Any

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        features = self.network.encode(torch.cat((before, after)))
        dates = [maps.reshape(2, -1, *maps.shape[1:]) for maps in maps_of(features)]
        first, second = ([both[date] for both in dates] for date in (0, 1))
        if isinstance(features, Tensor):
            return outputs_of(self.network.compare(first[0], second[0]))[self.output]
        kind = type(features)
        return outputs_of(self.network.compare(kind(first), kind(second)))[self.output]


def maps_of(features: Any) -> list[Tensor]:
    """Returns the maps (B, C, h, w) that ``encode`` returned. Raises InputError if it returned something else."""
    maps = [features] if isinstance(features, Tensor) else list(features) if type(features) in (list, tuple) else []
    if not maps or not all(isinstance(one, Tensor) and one.ndim == 4 for one in maps):
        raise InputError("encode must return a map (B, C, h, w), or a list or tuple of such maps")
    return maps


class DatesApart(TorchFunctionMode):
    """Writes ``chunk`` and ``split`` along the batch as reshapes; ONNX has no plain operator for that size.

    Many networks encode both dates as one batch and take it apart in this way.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), more: dict[str, Any] | None = None
    ) -> Any:
        if function in (torch.chunk, Tensor.chunk):
            maps, count, axis = _chunk_arguments(*arguments, **(more or {}))
            if axis == 0 and maps.shape[0] % count == 0:
                apart = maps.reshape(count, -1, *maps.shape[1:])
                return tuple(apart[index] for index in range(count))
        if function in (torch.split, Tensor.split):
            maps, size, axis = _split_arguments(*arguments, **(more or {}))
            if axis == 0 and isinstance(size, torch.SymInt) and maps.shape[0] == 2 * size:
                apart = maps.reshape(2, -1, *maps.shape[1:])
                return apart[0], apart[1]
        return function(*arguments, **(more or {}))


def _split_arguments(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, Any, int]:
    return tensor, split_size_or_sections, dim


def _chunk_arguments(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, int, int]:
    return input, chunks, dim

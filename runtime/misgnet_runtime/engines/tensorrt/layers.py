"""Defines the kernels that a builder made of a graph, by optimization profile, and what one inference of them moves.

Bytes: what a kernel reads is the sum of its inputs and constants (weights, scales, biases), what it writes the sum of
its outputs. A tensor's size is that of its dimensions and its data type; a tensor that one kernel reads twice counts
once, with its largest view. Whether a cache saves some of it is not known here.

MACs: those of convolutions, matrix products and fused attention. Element-wise work is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from misgnet_runtime.bundle.manifest import PlanProfile
from misgnet_runtime.storage.schema import Count, Struct

Precision = Literal["int8", "float16", "float32", "other"]
Kind = Literal["convolution", "product", "attention", "move", "other"]
GUIDANCE = "MGLNet"  # prefix of the parts that compute the semantic guidance


class Kernel(Struct, frozen=True):
    """One kernel of a plan."""

    # The builder's name of it.
    name: str
    # Part of the network that most of its ONNX operators belong to, for example "backbone stage 1" or "MGLNet0".
    part: str
    # What it does. "move": it only moves or converts values (transposes, casts, reformats, quantization).
    kind: Kind
    # Of a convolution or product, the wider type of its two operands; else the type of its largest output.
    precision: Precision
    # Number of the stream that it runs in.
    stream: int
    # Bytes of its inputs and constants; null: its shapes are dynamic.
    read: Count | None
    # Bytes of its outputs; null: its shapes are dynamic.
    written: Count | None
    # Multiply-accumulate operations; null: its shapes are dynamic, or their roles are not known.
    macs: Count | None = 0
    # Whether an INT8 convolution or product writes FP32, which another kernel must scale and convert.
    int8_writes_float32: bool = False

    @property
    def moved(self) -> int | None:
        """Bytes that it reads and writes."""
        return None if self.read is None or self.written is None else self.read + self.written


class Share(Struct, frozen=True):
    """Kernels that have a part or a precision in common."""

    kernels: Count
    # Bytes that they read and write; null: shapes are dynamic.
    bytes_moved: Count | None
    macs: Count | None


class ProfileLayers(Struct, frozen=True):
    """The kernels of one optimization profile, in the order of execution."""

    kernels: list[Kernel]
    # Device memory for the activations of one stream, in bytes; null: not known.
    context_bytes: Count | None = None

    def total(self) -> Share:
        return _share(self.kernels)

    def guidance(self) -> Share:
        """Returns the kernels of the semantic guidance."""
        return _share(kernel for kernel in self.kernels if kernel.part.startswith(GUIDANCE))

    def by_precision(self) -> dict[str, Share]:
        return _shares((kernel.precision, kernel) for kernel in self.kernels)

    def by_part(self) -> dict[str, Share]:
        """Returns the parts of the network in the order of their names."""
        return dict(sorted(_shares((kernel.part, kernel) for kernel in self.kernels).items()))

    def moves(self) -> int:
        """Returns the number of kernels that only move or convert values."""
        return sum(kernel.kind == "move" for kernel in self.kernels)

    def int8_writes_float32(self) -> int:
        """Returns the number of INT8 convolutions and products that write FP32."""
        return sum(kernel.int8_writes_float32 for kernel in self.kernels)

    def streams(self) -> int:
        return len({kernel.stream for kernel in self.kernels})


class PlanLayers(Struct, frozen=True):
    """The kernels of a plan. ``profiles`` is empty if they are not known; ``note`` then says why."""

    profiles: list[ProfileLayers] = msgspec.field(default_factory=list)
    note: str = ""


def described(batches: Sequence[tuple[int, int, int]], layers: PlanLayers) -> tuple[PlanProfile, ...]:
    """Returns the optimization profiles of a plan, with what one inference of each costs as far as it is known."""
    if not layers.profiles:
        return tuple(PlanProfile(each) for each in batches)
    return tuple(
        PlanProfile(each, found.context_bytes, found.total().kernels, found.total().bytes_moved)
        for each, found in zip(batches, layers.profiles, strict=True)
    )


def _share(kernels: Iterable[Kernel]) -> Share:
    found = list(kernels)
    return Share(len(found), _sum(kernel.moved for kernel in found), _sum(kernel.macs for kernel in found))


def _shares(kernels: Iterable[tuple[str, Kernel]]) -> dict[str, Share]:
    groups: dict[str, list[Kernel]] = {}
    for name, kernel in kernels:
        groups.setdefault(name, []).append(kernel)
    return {name: _share(group) for name, group in groups.items()}


def _sum(values: Iterable[int | None]) -> int | None:
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def most_frequent(names: Iterable[str]) -> str | None:
    """Returns the most frequent name, the first one of equals; None if there is none."""
    found = Counter(names).most_common(1)
    return found[0][0] if found else None

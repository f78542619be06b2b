"""Generates golden parameters and inputs of MISGNet from a seed, and locates the logits of the published network.

The values are uniform draws of PCG64 streams that depend only on a seed and a key, so that every NumPy release
generates the same values. ``data/golden_logits.npz`` holds the float32 logits of the published network by case. It is
a subset of the full arrays, cut as ``full[:, :, 1::4, 2::4]`` (every 4th row from 1, every 4th column from 2),
compressed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from misgnet.network import MISGNet, build_misgnet
from support.paths import DATA

SUBSET = (..., slice(1, None, 4), slice(2, None, 4))
COMPACT = DATA / "golden_logits.npz"
_NAME = re.compile(r"seed(\d+)_(\d+)x(\d+)x(\d+)_guidance(\d+)_norm(\d+)")


@dataclass(frozen=True)
class Golden:
    """One case."""

    name: str  # key in the archive
    tolerance: float  # maximum absolute difference of logits

    @property
    def numbers(self) -> tuple[int, ...]:
        """Returns seed, batch, height, width, guidance factor and norm factor."""
        found = _NAME.fullmatch(self.name)
        assert found
        return tuple(int(n) for n in found.groups())

    def network(self) -> MISGNet:
        seed, *_, guidance, norm = self.numbers
        return make_network(seed, guidance, norm)

    def images(self) -> tuple[Tensor, Tensor]:
        return make_images(*self.numbers[:4])


CASES = (
    Golden("seed20260101_1x256x256_guidance1_norm1", 1e-4),
    Golden("seed20260102_2x96x160_guidance10_norm1", 1e-4),
    Golden("seed20260103_2x128x192_guidance1_norm4", 1e-3),
)


def make_network(seed: int, guidance: float = 1, norm: float = 1) -> MISGNet:
    """Returns the network in evaluation mode with golden parameters.

    ``guidance`` scales the node convolutions of the semantic guidance. ``norm`` scales the stage norms of the encoder,
    so that some graph nodes receive no pixels.
    """
    network = build_misgnet()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(make_state(shapes, seed, guidance, norm))
    return network.eval()


def make_state(
    shapes: Mapping[str, tuple[int, ...]], seed: int, guidance: float = 1, norm: float = 1
) -> dict[str, Tensor]:
    return {key: _entry(key, shape, seed, guidance, norm) for key, shape in shapes.items()}


def make_images(seed: int, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns both dates, normalised; they have the same left half."""
    shape = (batch, 3, height, width)
    before, after = (4 * (_uniform(seed, key, shape) - 0.5) for key in ("before", "after"))
    after[..., : width // 2] = before[..., : width // 2]
    return torch.from_numpy(before.astype(np.float32)), torch.from_numpy(after.astype(np.float32))


def _entry(key: str, shape: tuple[int, ...], seed: int, guidance: float, norm: float) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    value = _scaled(key, shape, _uniform(seed, key, shape)).astype(np.float32)
    if ".mutualnet0.x" in key and key.endswith(".0.conv.weight"):
        value *= np.float32(guidance)
    if re.fullmatch(r"backbone\.norm[123]\.weight", key):
        value *= np.float32(norm)
    return torch.from_numpy(value)


def _scaled(key: str, shape: tuple[int, ...], u: np.ndarray) -> np.ndarray:
    """Maps uniform numbers in [0, 1) to the range of this kind of parameter."""
    if key.endswith("running_var"):
        return 0.5 + u
    if key.endswith("running_mean"):
        return 0.2 * (u - 0.5)
    if key.endswith(("anchor", "sigma")):
        return u
    if len(shape) == 1:
        return 0.8 + 0.4 * u if key.endswith("weight") else 0.1 * (u - 0.5)
    fan_in = shape[0] if ".gcn" in key else int(np.prod(shape[1:]))
    return (u - 0.5) * np.sqrt(12.0 / fan_in)


def _uniform(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())])).random(shape)

"""The source for weights of this project's network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from misgnet.checkpoint import read_network
from misgnet.evaluation import predict_probability
from misgnet.network import MISGNet
from misgnet.tensors import normalise, unit_range
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.statistics.tile_selection import FeatureExtractor
from misgnet_export.graph.export import export_graph
from misgnet_export.sources.declaration import Declaration
from misgnet_export.sources.float_model import FloatModel, Source
from misgnet_export.sources.options import KEEP_FLOAT32, ModelOptions
from misgnet_export.sources.resolve import check_resolution
from misgnet_export.sources.torch_threads import tile_per_core
from misgnet_runtime.bundle import Interface, ModelEntry
from misgnet_runtime.callables import Predict
from misgnet_runtime.errors import UsageError

MULTIPLE = 32  # of the tile size: the encoder divides it by 2, five times
_ALLOWED = ("--resolution", "--keep-float32")
_HALVED_FROM = 128  # px; half the resolution distinguishes tiles equally well in a quarter of the time


@dataclass(frozen=True, kw_only=True)
class MisgnetCheckpoint(Source):
    """A MISGNet with its weights."""

    network: MISGNet
    keep_float32: tuple[str, ...] = ()

    def float_model(self, interface: Interface) -> FloatModel:
        return FloatModel(
            interface=interface, export=partial(export_graph, self.network, interface),
            predict=torch_predictor(self.network), reference="PyTorch float32",
            features=encoder_features(self.network), splits=True, network=self.network,
            known=MISGNET.keeping_float32(self.keep_float32, KEEP_FLOAT32),
        )  # fmt: skip


def open_checkpoint(name: str, options: ModelOptions) -> MisgnetCheckpoint:
    """Reads a checkpoint of a MISGNet.

    Raises:
        InputError: The file is missing, damaged, or holds another network.
        UsageError: ``options`` describe a network, which the checkpoint determines.
    """
    if described := [flag for flag in options.given() if flag not in _ALLOWED]:
        raise UsageError(
            f"{', '.join(described)}: for an ONNX file or a PyTorch factory, but {name} is read as a checkpoint of a "
            "MISGNet, which needs no description"
        )
    check_resolution(options)
    network, sha256 = read_network(Path(name))
    count = sum(weight.numel() for weight in network.parameters())
    entry = ModelEntry(source="misgnet", name=Path(name).name, parameters=count, resolution=options.resolution)
    return MisgnetCheckpoint(
        entry=entry, sha256=sha256, declaration=Declaration(multiple=MULTIPLE), network=network,
        keep_float32=options.keep_float32, findings=(f"MISGNet with {count:,} parameters",),
    )  # fmt: skip


def torch_predictor(network: MISGNet) -> Predict:
    """Returns the network as a function of uint8 tiles; computes a tile per core."""
    return tile_per_core(partial(predict_probability, network))


def encoder_features(network: MISGNet) -> FeatureExtractor:
    """Returns a function from uint8 tiles (B, T, T, 3) of both dates to features float32 (B, F).

    Features are the mean and the standard deviation of every channel of every stage: of each, the mean over both dates
    and their absolute difference, so that swapping the dates changes nothing.
    """

    @torch.inference_mode()
    def features(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = normalise(unit_range(np.concatenate((before, after))))
        if images.shape[-1] >= _HALVED_FROM:
            images = F.avg_pool2d(images, 2)
        return statistics_of(network.backbone(images))

    return tile_per_core(features)


def statistics_of(maps: Sequence[Tensor]) -> NDArray[np.float32]:
    """Returns features float32 (B, F) of maps (2B, C, h, w) of both dates; see :func:`encoder_features`."""
    first, second = torch.cat([_moments(x) for x in maps], 1).chunk(2)
    return torch.cat(((first + second) / 2, (first - second).abs()), 1).numpy()


def _moments(maps: Tensor) -> Tensor:
    """Returns mean and standard deviation per channel: (B, C, h, w) -> (B, 2C)."""
    flat = maps.flatten(2)
    return torch.cat((flat.mean(2), flat.std(2)), 1)

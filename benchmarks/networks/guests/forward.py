"""Runs a network in PyTorch as its declaration says: images to its inputs, its output to a probability of change.

Nothing here comes from ``misgnet_export``, so that the comparison of a bundle with these results is independent of it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import factories
import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from safetensors.torch import load_file
from torch import Tensor, nn

Request = dict[str, Any]


def request() -> Request:
    """Returns the JSON object in the file that the command line names."""
    torch.set_num_threads(1)  # threads of PyTorch spin while other processes use the cores
    found: Request = json.loads(Path(sys.argv[1]).read_bytes())
    return found


def make(factory: str) -> nn.Module:
    """Returns the network of a factory; its random weights are always the same."""
    torch.manual_seed(0)
    network: nn.Module = getattr(factories, factory)()
    return network


def load(asked: Request, factory: str) -> nn.Module:
    """Returns the network of a factory with the weights of the request, ready for predictions.

    The weights were written by the PyTorch way's network, which may hold the ONNX way's network as ``network``.
    """
    network = make(factory)
    weights = load_file(asked["weights"])
    if factory != asked["factory"]:
        weights = {name.removeprefix("network."): value for name, value in weights.items()}
    network.load_state_dict(weights)
    return network.eval()


def read(path: Path) -> NDArray[np.generic]:
    """Returns an image as (H, W, C)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        image = rasterio.open(path)
    with image:
        pixels: NDArray[np.generic] = image.read()
    return pixels.transpose(1, 2, 0)


def read_pairs(folder: str) -> list[tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.bool_]]]:
    """Returns (before, after, label) of each tile of a folder with A/, B/ and label/."""
    names = sorted(path.name for path in Path(folder, "A").iterdir())
    return [(*(read(Path(folder, d, n)) for d in "AB"), read(Path(folder, "label", n))[..., 0] > 0) for n in names]


def normalised(asked: Request, images: NDArray[np.float32]) -> Tensor:
    """Returns pixels (B, 2, C, H, W) as the network was trained with."""
    mean, std = (torch.tensor(asked[name]).reshape(1, 1, -1, 1, 1) for name in ("mean", "std"))
    return (torch.from_numpy(images) * asked["scale"] - mean) / std


def inputs_of(images: Tensor, io: str) -> tuple[Tensor, ...]:
    """Returns images (B, 2, C, H, W) as the inputs of a network."""
    if io == "time":
        return (images,)
    return (images[:, 0], images[:, 1]) if io == "pair" else (images.flatten(1, 2),)


def run(network: nn.Module, asked: Request, images: Tensor) -> Tensor:
    """Returns the output about change for normalised images (B, 2, C, H, W)."""
    found: Tensor | dict[str, Tensor] = network(*inputs_of(images, asked["io"]))
    if isinstance(found, dict):  # ChangeStar
        return found["bi_change_logit"][:, 0].sigmoid() if network.training else found["change_prob"]
    return found


def probability_of(output: Tensor, kind: str) -> Tensor:
    """Returns the probability of change (B, H, W)."""
    if kind == "logit1":
        return output[:, 0].sigmoid()
    if kind.startswith("probability"):
        return output[:, -1]
    return 1 - output.softmax(1)[:, 0]


@torch.inference_mode()
def predict(
    network: nn.Module, asked: Request, before: NDArray[np.generic], after: NDArray[np.generic]
) -> NDArray[np.float32]:
    """Returns the probability of change (H, W) of one pair (H, W, C)."""
    images = np.stack([before, after]).transpose(0, 3, 1, 2)[None].astype(np.float32)
    output = run(network, asked, normalised(asked, images))
    found: NDArray[np.float32] = probability_of(output, asked["output"])[0].numpy()
    return found

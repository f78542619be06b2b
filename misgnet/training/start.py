"""Initialises the weights of a run, loads a pretrained encoder and freezes parts of the network."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from misgnet.checkpoint import read_tensors
from misgnet.network import MISGNet
from misgnet.training.recipe import Freeze
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural

_PRIOR = 0.05  # assumed share of changed pixels; it is 0.047 in LEVIR-CD
_LAST_STD = 0.01
_GUIDANCE_SCALE = 0.1
_GUIDANCE_SCALES = [
    f"MGLNet{level}.mutualnet0.{date}.conv.0.bn.weight" for level in range(3) for date in ("r2e", "r2e2")
]
# Key patterns of PVTv2 files of the timm library, and their replacements in the original PVTv2 files and this encoder.
_TIMM_NAMES = (
    (re.compile(r"^patch_embed\."), lambda _: "patch_embed1."),
    (re.compile(r"^stages\.(\d+)\.downsample\."), lambda m: f"patch_embed{int(m[1]) + 1}."),
    (re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\."), lambda m: f"block{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"^stages\.(\d+)\.norm\."), lambda m: f"norm{int(m[1]) + 1}."),
    (re.compile(r"\.mlp\.dwconv\.(?!dwconv\.)"), lambda _: ".mlp.dwconv.dwconv."),
)
# Keys that PVTv2 files have and the encoder does not: stage 4 and the ImageNet classifier.
_UNUSED = re.compile(r"^(patch_embed4|block4|norm4|head)\.")
_PREFIXES = ("module.", "backbone.", "encoder.")


def initialise(network: MISGNet) -> None:
    """Sets random initial weights for training from scratch.

    - Encoder: linear layers from a narrow normal distribution and convolutions scaled by their fan-out, as in its
      paper. PyTorch's defaults learn slowly.
    - Guidance: its output starts small, so that the first differences come from the two dates and not from two random
      branches. Goyal et al. ("Accurate, Large Minibatch SGD", 2017, section 5.1) start such branches at 0; here the
      following ReLU would then block all gradients.
    - Last convolution: its bias encodes the prior that few pixels change, and its weights are small (Lin et al.,
      "Focal Loss for Dense Object Detection", ICCV 2017, section 4.1).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    weights = dict(network.named_parameters())
    for name in _GUIDANCE_SCALES:
        nn.init.constant_(weights[name], _GUIDANCE_SCALE)
    nn.init.normal_(weights["final2.1.conv.weight"], std=_LAST_STD)
    with torch.no_grad():
        weights["final2.1.conv.bias"].copy_(torch.tensor([0.5, -0.5]) * math.log((1 - _PRIOR) / _PRIOR))


def load_encoder(network: MISGNet, path: str | os.PathLike[str]) -> None:
    """Loads the weights of the encoder from a PVTv2-B1 file trained on ImageNet.

    The file is safetensors or a pickle (its code is not executed), with the original key names or those of timm.
    Raises InputError, naming the first such key, if a key is missing, unexpected or has another shape.
    """
    found = {name: value for key, value in read_tensors(path).items() if not _UNUSED.match(name := _own_name(key))}
    expected = network.backbone.state_dict()
    where = f"encoder weights {path}"
    missing = [key for key in expected if key not in found]
    if len(missing) == len(expected):
        raise InputError(
            f"{where} are not from a PVTv2: their first key is '{next(iter(found), '')}'; pass a PVTv2-B1 file"
        )
    if missing:
        raise InputError(f"{where} lack {len(missing)} of {len(expected)} keys, the first is '{missing[0]}'")
    if unexpected := [key for key in found if key not in expected]:
        raise InputError(f"{where} have {plural(len(unexpected), 'unexpected key')}, the first is '{unexpected[0]}'")
    for key, value in expected.items():
        if found[key].shape != value.shape:
            shapes = f"{list(found[key].shape)}, PVTv2-B1 has {list(value.shape)}"
            raise InputError(f"{where}: '{key}' has shape {shapes}; other sizes of PVTv2 are not supported")
    network.backbone.load_state_dict({key: found[key] for key in expected})


def freeze(network: MISGNet, parts: Sequence[Freeze]) -> None:
    """Excludes parts of the network from training: the whole encoder, or the weights of all batch norms."""
    if "encoder" in parts:
        network.backbone.requires_grad_(False)
    if "norms" in parts:
        for norm in batch_norms(network):
            norm.requires_grad_(False)


def set_training(network: MISGNet, parts: Sequence[Freeze]) -> None:
    """Sets training mode; frozen batch norms stay in evaluation mode and use their running statistics."""
    network.train()
    if "norms" in parts:
        for norm in batch_norms(network):
            norm.eval()


def batch_norms(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _own_name(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    for pattern, name in _TIMM_NAMES:
        key = pattern.sub(name, key, count=1)
    return key


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that are trained, by name."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def to_channels_last(network: MISGNet) -> MISGNet:
    """Converts the network to channels-last (NHWC) memory; tokens have the same layout, which avoids transposes."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

"""Where a run starts from: random weights, an ImageNet encoder, and what of the network is frozen."""

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

_PRIOR = 0.05  # share of changed pixels; in LEVIR-CD 0.047
_LAST_STD = 0.01
_GUIDANCE_SCALE = 0.1
_GUIDANCE_SCALES = [
    f"MGLNet{level}.mutualnet0.{date}.conv.0.bn.weight" for level in range(3) for date in ("r2e", "r2e2")
]
# PVTv2 file of the timm library -> names of the original file, which are also this encoder's.
_TIMM_NAMES = (
    (re.compile(r"^patch_embed\."), lambda _: "patch_embed1."),
    (re.compile(r"^stages\.(\d+)\.downsample\."), lambda m: f"patch_embed{int(m[1]) + 1}."),
    (re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\."), lambda m: f"block{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"^stages\.(\d+)\.norm\."), lambda m: f"norm{int(m[1]) + 1}."),
    (re.compile(r"\.mlp\.dwconv\.(?!dwconv\.)"), lambda _: ".mlp.dwconv.dwconv."),
)
# In the file and not in the encoder: stage 4, and the classifier of ImageNet's classes.
_UNUSED = re.compile(r"^(patch_embed4|block4|norm4|head)\.")
_PREFIXES = ("module.", "backbone.", "encoder.")


def initialise(network: MISGNet) -> None:
    """Start values for training from scratch.

    Encoder: narrow normal linear layers and fan-out scaled convolutions, as in its paper; without them it learns
    slowly. Guidance: its output starts small, so that the first differences are those of the two dates and not of
    two random branches (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1, start such branches at 0,
    where the ReLU behind this one would stay shut). Last convolution: it starts from the prior that few pixels
    change, near to every answer (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4.1).
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
    """Start the encoder from a PVTv2-B1 file trained on ImageNet, with the original or timm's key names.

    safetensors, or a pickle, of which nothing is run. Raises InputError, naming the first key, where one is
    missing, has another shape or does not belong to a PVTv2.
    """
    found = {name: value for key, value in read_tensors(path).items() if not _UNUSED.match(name := _own_name(key))}
    expected = network.backbone.state_dict()
    where = f"encoder weights {path}"
    missing = [key for key in expected if key not in found]
    if len(missing) == len(expected):
        raise InputError(f"{where} are no PVTv2: its first key is '{next(iter(found), '')}'; give a PVTv2-B1 file")
    if missing:
        raise InputError(f"{where} lack {len(missing)} of {len(expected)} keys, the first is '{missing[0]}'")
    if unexpected := [key for key in found if key not in expected]:
        raise InputError(f"{where} have {len(unexpected)} unexpected keys, the first is '{unexpected[0]}'")
    for key, value in expected.items():
        if found[key].shape != value.shape:
            shapes = f"{list(found[key].shape)}, PVTv2-B1 has {list(value.shape)}"
            raise InputError(f"{where}: '{key}' has shape {shapes}; other sizes of PVTv2 do not fit")
    network.backbone.load_state_dict({key: found[key] for key in expected})


def freeze(network: MISGNet, parts: Sequence[Freeze]) -> None:
    """Leave parts of the network as they are: the whole encoder, the weights of batch norms."""
    if "encoder" in parts:
        network.backbone.requires_grad_(False)
    if "norms" in parts:
        for norm in batch_norms(network):
            norm.requires_grad_(False)


def set_training(network: MISGNet, parts: Sequence[Freeze]) -> None:
    """Training mode, in which frozen batch norms keep using their running statistics."""
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
    """The parameters that are trained, by name."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def to_channels_last(network: MISGNet) -> MISGNet:
    """Convolutions on NHWC memory: tokens are laid out so already, and nothing is transposed between the two."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

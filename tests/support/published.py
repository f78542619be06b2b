"""Builds checkpoints in the formats that others publish; the pickled classes cannot be imported afterwards.

Every tensor repeats one number that depends only on its key (and ``salt``), and is stored as this one number with
strides of zero. Files are therefore small, and a value under a wrong key is detected.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from misgnet.network import build_misgnet

State = dict[str, Tensor]
STAGE_4 = {
    "backbone.patch_embed4.proj.weight": (512, 320, 3, 3),
    "backbone.patch_embed4.proj.bias": (512,),
    "backbone.block4.0.attn.kv.weight": (1024, 512),
    "backbone.block4.0.mlp.fc1.weight": (2048, 512),
    "backbone.block4.0.mlp.fc2.weight": (512, 2048),
    "backbone.block4.1.attn.kv.weight": (1024, 512),
    "backbone.block4.1.mlp.fc1.weight": (2048, 512),
    "backbone.block4.1.mlp.fc2.weight": (512, 2048),
    "backbone.norm4.weight": (512,),
}


def light_state(salt: str = "", *, stage_4: bool = True) -> State:
    """Returns a state dict whose tensors each take one number on disk."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_misgnet().state_dict().items()}
    shapes.update({key: torch.Size(shape) for key, shape in STAGE_4.items()} if stage_4 else {})
    return {key: _number(key + salt).expand(shape) for key, shape in shapes.items()}


def heavy_state() -> State:
    """Returns a state dict that is stored in full, including stage 4, with the size of a published one."""
    return {key: value.contiguous() for key, value in light_state().items()}


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def snapshot(model: object) -> dict[str, Any]:
    """Returns a dict like those that training scripts save at the end of an epoch."""
    step = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    group = {"lr": 4e-4, "betas": (0.9, 0.999), "params": [0, 1]}
    optimizer = {"state": {0: step, 1: step}, "param_groups": [group]}
    arguments = Namespace(lr=4e-4, crop=(256, 256), names=["a"], path=Path("runs"), flags={"x", "y"})
    return {
        "model": model, "optimizer": optimizer, "lr_scheduler": {"last_epoch": 7, "_step_count": 8},
        "epoch": 7, "args": arguments,
    }  # fmt: skip


@contextmanager
def foreign_class(module: str, name: str) -> Iterator[type[nn.Module]]:
    """Yields an nn.Module class that can be pickled within the block and cannot be imported after it."""
    parents = [module.rsplit(".", n)[0] for n in range(module.count(".") + 1)]
    assert not any(parent in sys.modules for parent in parents)
    made = type(name, (nn.Module,), {"__module__": module})
    for parent in parents:
        sys.modules[parent] = ModuleType(parent)
    setattr(sys.modules[module], name, made)
    try:
        yield made
    finally:
        for parent in parents:
            del sys.modules[parent]


def save_network(path: Path, state: State, *, wrapper: str | None = None) -> None:
    """Pickles the whole network; ``wrapper`` "module" wraps it as data-parallel training does."""
    with foreign_class("models.mynet.mynet4", "MyNet") as network:
        torch.save(_wrapped(_build(network, state), wrapper), path)


def save_ema(
    path: Path,
    averaged: State,
    online: State,
    *,
    plain: str = "",
    inner: str | None = None,
    outer: str | None = None,
) -> None:
    """Pickles a whole EMA wrapper; the attribute ``plain`` is stored in a list or directly, not as a submodule."""
    with (
        foreign_class("models.mynet.mynet4", "MyNet") as network,
        foreign_class("ema_pytorch.ema_pytorch", "EMA") as ema,
    ):
        wrapper = ema()
        networks = {
            "online_model": _wrapped(_build(network, online), inner),
            "ema_model": _wrapped(_build(network, averaged), inner),
        }
        for name, value in networks.items():
            if name == plain:
                wrapper.__dict__[name] = [value] if name == "online_model" else value
            else:
                setattr(wrapper, name, value)
        wrapper.register_buffer("initted", torch.tensor(True))
        wrapper.register_buffer("step", torch.tensor(100))
        torch.save(_wrapped(wrapper, outer), path)


def ema_state(averaged: State, online: State) -> State:
    """Returns the state dict of an EMA wrapper."""
    extra = {"initted": torch.tensor(True), "step": torch.tensor(100)}
    return {**prefixed(online, "online_model."), **prefixed(averaged, "ema_model."), **extra}


def write_archive(
    path: Path, pickled: bytes, storages: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Writes a file in the zip format of torch.save with any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def read_archive(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Returns the pickle and the storages of a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    storages = {name[5:]: data for name, data in entries.items() if name.startswith("data/")}
    return entries["data.pkl"], storages


def _number(name: str) -> Tensor:
    draw = zlib.crc32(name.encode()) % 256
    return torch.tensor(draw if "num_batches_tracked" in name else draw / 256)  # also exact in bfloat16


def _wrapped(module: nn.Module, name: str | None) -> nn.Module:
    if name is None:
        return module
    outer = nn.Module()
    outer.add_module(name, module)
    return outer


def _build(kind: type[nn.Module], state: State) -> nn.Module:
    """Builds nested modules of class ``kind`` with the entries of ``state``."""
    root = kind()
    for key, value in state.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, kind())
            module = module.get_submodule(part)
        if name.startswith(("running_", "num_batches")):
            module.register_buffer(name, value)
        else:
            module.register_parameter(name, nn.Parameter(value))
    return root

"""MISGNet in PyTorch: the network, its checkpoints, training, evaluation, and a generator of synthetic tiles.

Public names are imported on first use, so that the generator (``misgnet.synthetic``) runs without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from misgnet.checkpoint import load_checkpoint, load_network, save_checkpoint
    from misgnet.network import MISGNet, build_misgnet

__all__ = ["MISGNet", "build_misgnet", "load_checkpoint", "load_network", "save_checkpoint"]

_MODULES = {
    "MISGNet": "misgnet.network",
    "build_misgnet": "misgnet.network",
    "load_checkpoint": "misgnet.checkpoint",
    "load_network": "misgnet.checkpoint",
    "save_checkpoint": "misgnet.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'misgnet' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)

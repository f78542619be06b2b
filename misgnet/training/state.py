"""What a run needs to go on after a kill: one safetensors file, replaced whole.

It holds the network, its average and AdamW's moments as tensors; the counters stand in the file's metadata.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.atomic import write_file

STATE_FILE = "state.safetensors"
_FORMAT = "misgnet-training-1"


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Where a run stands: steps done in all, and in the epoch that comes next or goes on."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    seconds: float = 0.0
    best_f1: float = -1.0
    finished: bool = False


def save_state(
    path: Path,
    counters: Counters,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler,
) -> None:
    """Write the state, whole or not at all; InputError where the disk is full."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    names = _names(network, optimizer)
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adamw.{kind}.{names[index]}": torch.as_tensor(value) for kind, value in moments.items()}
    metadata = {"format": _FORMAT, "counters": json.dumps(asdict(counters)), "scaler": json.dumps(scaler.state_dict())}
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, metadata)
    write_file(path, content)


def load_state(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Counters:
    """Put a saved state into the parts of a run; InputError where the file is missing or is none of these."""
    metadata, tensors = _read(path)
    try:
        network.load_state_dict(_under("network.", tensors))
        average.load_state_dict(_under("average.", tensors))
        _load_moments(network, optimizer, _under("adamw.", tensors))
        scaler.load_state_dict(json.loads(metadata["scaler"]))
        return Counters(**json.loads(metadata["counters"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} does not fit this run: {error}; start anew with --force") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: the run has saved no state yet; start it with --force") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}; start the run anew with --force") from error
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path} is no training state of this version ('{metadata.get('format')}', not '{_FORMAT}')")
    return metadata, tensors


def _load_moments(network: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """A parameter without moments has not been trained yet."""
    indices = {name: index for index, name in enumerate(_names(network, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for key, value in moments.items():
        kind, name = key.split(".", 1)
        state.setdefault(indices[name], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimised parameters, in the optimiser's order."""
    names = {id(value): name for name, value in network.named_parameters()}
    return [names[id(value)] for group in optimizer.param_groups for value in group["params"]]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

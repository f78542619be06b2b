"""Saves and loads the state of a run in one safetensors file, which is replaced atomically.

Network, averaged network and AdamW moments are stored as tensors, counters and gradient scaler in the file's metadata.
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
    """Progress of a run."""

    step: int = 0  # steps done
    epoch: int = 0  # epochs done
    epoch_step: int = 0  # steps done in the current epoch
    seconds: float = 0.0  # training time
    best_f1: float = -1.0  # highest validation F1; -1 before the first validation
    finished: bool = False  # whether the run has reached its end


def save_state(
    path: Path,
    counters: Counters,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler,
) -> None:
    """Writes the state atomically; raises InputError if the disk is full."""
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
    """Loads a saved state into the parts of a run; raises InputError if the file is missing or does not fit."""
    metadata, tensors = _read(path)
    try:
        network.load_state_dict(_under("network.", tensors))
        average.load_state_dict(_under("average.", tensors))
        _load_moments(network, optimizer, _under("adamw.", tensors))
        scaler.load_state_dict(json.loads(metadata["scaler"]))
        return Counters(**json.loads(metadata["counters"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} does not fit this run: {error}; start over with --force") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: the run has not saved a state; start over with --force") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}; start over with --force") from error
    if metadata.get("format") != _FORMAT:
        found = metadata.get("format")
        raise InputError(
            f"{path} is not a training state of this version: its format is '{found}', not '{_FORMAT}'; start over "
            "with --force"
        )
    return metadata, tensors


def _load_moments(network: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Loads the moments of AdamW; parameters that have not been trained yet have none."""
    indices = {name: index for index, name in enumerate(_names(network, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for key, value in moments.items():
        kind, name = key.split(".", 1)
        state.setdefault(indices[name], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Returns the names of the optimised parameters in the order of the optimiser."""
    names = {id(value): name for name, value in network.named_parameters()}
    return [names[id(value)] for group in optimizer.param_groups for value in group["params"]]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

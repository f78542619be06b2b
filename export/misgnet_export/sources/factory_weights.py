"""Loads a state dict into the network of a factory; every key must fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from misgnet.checkpoint import StoredTensor, read_state
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural, printable
from misgnet_runtime.limits import WEIGHTS_BYTES

# Added to every key by data-parallel training, by training frameworks and by torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_COUNTER = "num_batches_tracked"  # of batch norms, which older files lack
_NESTED = 3  # prefixes at most
_SHOWN = 3  # keys of a kind in a message


def load_weights(network: nn.Module, path: Path, key: str | None) -> str:
    """Loads the weights in a file into ``network``; returns the SHA-256 of the file.

    Args:
        network: The network, whose tensors are replaced in place.
        path: safetensors or a pickle, which is read without running code from it.
        key: What holds the state dict; default: found by itself.

    Raises:
        InputError: The file cannot be read, or does not fit; one message names all that does not.
        UsageError: ``key`` is missing in the file, or several state dicts are there and it is None.
    """
    stored, sha256 = read_state(path, key)
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    stored = _without_prefix(stored, expected)
    if problems := _problems(stored, expected):
        raise InputError(f"weights {path} do not fit the network; {'; '.join(problems)}")
    size = 4 * sum(math.prod(stored[name].shape) for name in expected if name in stored)
    if size > WEIGHTS_BYTES:  # tensors may share a storage, so a small file can declare any number of large ones
        raise InputError(f"weights {path} declare {size} bytes; the limit is {WEIGHTS_BYTES}")
    values = {name: stored[name].read() for name in expected if name in stored}
    _check_values(path, values, expected, dict(network.named_parameters(remove_duplicate=False)))
    network.load_state_dict(values, strict=False)
    return sha256


def _without_prefix(stored: dict[str, StoredTensor], expected: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Removes the prefixes with which most keys fit; the fewest, if several fit equally well."""
    chains = ["".join(chain) for count in range(_NESTED + 1) for chain in product(_PREFIXES, repeat=count)]
    best = max(
        chains, key=lambda chain: sum(name.startswith(chain) and name[len(chain) :] in expected for name in stored)
    )
    return {name.removeprefix(best): entry for name, entry in stored.items()}


def _problems(stored: Mapping[str, StoredTensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Returns what does not fit: keys that are missing or unexpected, and other shapes."""
    present = {_identity(value) for name, value in expected.items() if name in stored}
    missing = [
        name for name, value in expected.items()
        if name not in stored and _identity(value) not in present and not name.endswith(_COUNTER)
    ]  # fmt: skip
    unexpected = [name for name in stored if name not in expected]
    shapes = [
        f"'{_shown(name)}' is {list(stored[name].shape)}, the network has {list(value.shape)}"
        for name, value in expected.items()
        if name in stored and stored[name].shape != tuple(value.shape)
    ]
    found = []
    if missing:
        found.append(f"missing: {len(missing)} of {plural(len(expected), 'key')} ({_some(missing)})")
    if unexpected:
        found.append(f"unexpected: {plural(len(unexpected), 'key')} ({_some(unexpected)})")
    if shapes:
        more = ", ..." * (len(shapes) > _SHOWN)
        found.append(f"other shapes: {plural(len(shapes), 'key')} ({', '.join(shapes[:_SHOWN])}{more})")
    return found


def _check_values(
    path: Path, values: Mapping[str, Tensor], expected: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """Raises InputError for NaN or Inf in a parameter, another kind of number, or one tensor with two values."""
    shared: dict[tuple[int, ...], str] = {}
    for name, value in values.items():
        counts = name.endswith(_COUNTER)  # converted to half precision with everything else by some
        if not counts and value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(
                f"weights {path}: '{_shown(name)}' holds {value.dtype}, the network has {expected[name].dtype}"
            )
        if name in parameters and not bool(torch.isfinite(value).all()):
            raise InputError(f"weights {path}: '{_shown(name)}' holds NaN or Inf")
        first = shared.setdefault(_identity(expected[name]), name)
        if first != name and not torch.equal(values[first], value):
            raise InputError(
                f"weights {path}: '{_shown(first)}' and '{_shown(name)}' are one tensor in the network, but differ"
            )


def _identity(value: Tensor) -> tuple[int, ...]:
    """Returns what two names of one tensor have in common; an empty tensor is only itself."""
    return (value.data_ptr(), *value.shape, -1, *value.stride()) if value.numel() else (id(value),)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(f"'{_shown(name)}'" for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def _shown(name: str) -> str:
    return printable(name if len(name) <= 120 else f"{name[:120]}...")

"""Reads MISGNet checkpoints in every published format, and writes them as safetensors; reads other networks' weights.

Code in a pickle is never executed (see :mod:`misgnet._unpickle`).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from misgnet._unpickle import Record, TensorRef, TorchArchive, shown
from misgnet.network import MISGNet, build_misgnet
from misgnet_runtime.bundle.fields import MANIFEST
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.limits import CHECKPOINT_ENTRIES, PICKLE_KEY, SAFETENSORS_HEADER_BYTES, WEIGHTS_BYTES
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.files import is_not_regular_file

# Published checkpoints contain encoder stage 4, which does not contribute to the output.
_UNUSED = ("backbone.patch_embed4.", "backbone.block4.", "backbone.norm4.")
_PREFIXES = ("module.", "_orig_mod.")
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "network")  # usual names in training snapshots
_AVERAGED = "ema_model."
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTS = (torch.int64, torch.int32, *_FLOATS)
_MAX_NESTING = 8  # far above the nesting of any published file
_PART = 1 << 20

# The exceptions that safetensors raises for damaged files and for types that PyTorch does not have.
_SAFETENSORS_ERRORS = (
    SafetensorError, json.JSONDecodeError, KeyError, ValueError, AssertionError, RuntimeError,
)  # fmt: skip

Value = TypeVar("Value")
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class StoredTensor:
    """One stored tensor that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]  # returns the tensor


@dataclass(frozen=True)
class _File:
    """The bytes of a checkpoint, read once: ``sha256`` describes the decoded bytes even if the file changes later."""

    path: Path
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Reads the state dict of a MISGNet from safetensors or any published pickle format.

    A restricted unpickler reads pickles without executing code from them. If the file holds an EMA wrapper, the
    averaged weights are returned.

    Args:
        path: Checkpoint file.

    Returns:
        Tensors by key: weights as float32, counters as int64.

    Raises:
        InputError: If a key is missing, unexpected or has the wrong shape, if a weight is NaN or Inf, or if the file
            is truncated or in another format. The message names the key or the position in the file.
    """
    return _state_dict(_read_file(Path(path)))


def read_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Reads all weights of a safetensors file or a pickle as float32, by the names in the file.

    Raises the errors of :func:`load_checkpoint`, except that keys and shapes are not checked.
    """
    path = Path(path)
    entries = _entries(_read_file(path))
    size = 4 * sum(math.prod(entry.shape) for entry in entries.values())
    if size > WEIGHTS_BYTES:  # tensors may share a storage, so a small file can declare any number of large tensors
        raise InputError(f"checkpoint {path} declares {size} bytes of weights; the limit is {WEIGHTS_BYTES}")
    return {key: _read_checked(path, key, entry) for key, entry in entries.items()}


def read_state(path: str | os.PathLike[str], key: str | None = None) -> tuple[dict[str, StoredTensor], str]:
    """Finds the state dict of any network in safetensors or a pickle, without running code from it.

    Dicts in the state dict are joined by dots; what is not a tensor is ignored. Keys are not checked.

    Args:
        path: The file.
        key: What holds the state dict in a pickle, with dots between nested keys; in safetensors, the first part of
            the names. Default: the only one that holds tensors, else the file itself.

    Returns:
        The tensors by name, and the SHA-256 of the file.

    Raises:
        InputError: The file cannot be read, or holds no tensor.
        UsageError: ``key`` is missing in the file, or it is None and several hold tensors.
    """
    file = _read_file(Path(path))
    if file.data[:2] == b"PK":
        archive = TorchArchive(file.path, io.BytesIO(file.data))
        refs = _named_state(file.path, archive.root, key)
        found = {name: StoredTensor(ref.shape, partial(archive.tensor, ref)) for name, ref in refs.items()}
    else:
        found = _below(file.path, _entries(file), key)
    if not found:
        raise InputError(f"{path} holds no tensors")
    return found, file.sha256


def load_network(path: str | os.PathLike[str]) -> MISGNet:
    """Builds the network and loads its weights from a checkpoint.

    Args:
        path: Checkpoint file, in any format that :func:`load_checkpoint` reads.

    Returns:
        The network on the CPU, in float32 and in evaluation mode.

    Raises:
        InputError: As in :func:`load_checkpoint`.
    """
    return read_network(path)[0]


def read_network(path: str | os.PathLike[str]) -> tuple[MISGNet, str]:
    """Returns the network of :func:`load_network` and the SHA-256 of the bytes that its weights were decoded from."""
    file = _read_file(Path(path))
    network = build_misgnet()
    network.load_state_dict(_state_dict(file))
    return network.eval(), file.sha256


def save_checkpoint(
    network: MISGNet,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the state dict of a network as safetensors, atomically; an existing file is replaced.

    Args:
        network: Network to save.
        path: File to write.
        half: Store floating-point tensors as float16 instead of float32.
        metadata: Strings to store in the file's header.

    Raises:
        UsageError: If ``path`` exists and is not a regular file.
        StorageError: If the file cannot be written.
    """
    dtype = torch.float16 if half else torch.float32
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for key, value in network.state_dict().items()
    }
    write_file(Path(path), save(state, metadata={"format": "pt", **(metadata or {})}))


def _state_dict(file: _File) -> dict[str, torch.Tensor]:
    """Decodes and checks the state dict of a file that was read; see :func:`load_checkpoint`."""
    named = _averaged(_entries(file))
    used = {key: entry for key, entry in named.items() if not key.startswith(_UNUSED)}
    _check_keys(file.path, used)
    return {key: _read_checked(file.path, key, entry) for key, entry in used.items()}


def _read_file(path: Path) -> _File:
    if is_not_regular_file(path):
        found = "is not a regular file"
        if (path / MANIFEST).is_file():
            found = "is a bundle; misgnet-run runs it, and misgnet-export parity evaluates it"
        raise InputError(f"checkpoint {path} {found}")
    try:
        with path.open("rb") as file:
            size = min(os.fstat(file.fileno()).st_size, WEIGHTS_BYTES)  # read(n) allocates n bytes
            data = file.read(size + 1)
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise InputError(f"checkpoint {path} does not fit into the available memory") from None
    if len(data) > WEIGHTS_BYTES:
        raise InputError(f"checkpoint {path} is larger than {WEIGHTS_BYTES} bytes, which is the limit")
    return _File(path, data)


def _entries(file: _File) -> dict[str, StoredTensor]:
    head = file.data[:16]
    if head[:2] == b"PK":
        return _archive_entries(file.path, TorchArchive(file.path, io.BytesIO(file.data)))
    if head == _LEGACY_MAGIC[:16]:
        form = "in the pickle format of PyTorch before 1.6"
        raise InputError(f"checkpoint {file.path} is {form}; save it again with a newer PyTorch")
    if len(head) < 9 or head[8:9] != b"{":
        found = f"it begins with {head[:8]!r}" if head else "it is empty"
        raise InputError(f"checkpoint {file.path} is neither safetensors nor a file of torch.save: {found}")
    if (length := int.from_bytes(head[:8], "little")) > SAFETENSORS_HEADER_BYTES:
        raise InputError(
            f"checkpoint {file.path} has a header of {length} bytes; the limit is {SAFETENSORS_HEADER_BYTES}"
        )
    return _safetensors_entries(file)


def _safetensors_entries(file: _File) -> dict[str, StoredTensor]:
    try:
        tensors = load(file.data)
    except _SAFETENSORS_ERRORS as error:
        size = len(file.data)
        raise InputError(f"checkpoint {file.path} is damaged or truncated at {size} bytes: {error}") from error
    return {key: StoredTensor(tuple(value.shape), value.detach) for key, value in tensors.items()}


def _archive_entries(path: Path, archive: TorchArchive) -> dict[str, StoredTensor]:
    refs = _find_tensors(archive.root)
    if len(refs) > CHECKPOINT_ENTRIES:  # tensors may share a storage, so a small file can declare any number of them
        raise InputError(f"checkpoint {path} holds more than {CHECKPOINT_ENTRIES} tensors")
    if not refs:
        raise InputError(f"checkpoint {path} does not contain a network: found neither a state dict nor a module")
    return {key: StoredTensor(ref.shape, partial(archive.tensor, ref)) for key, ref in refs.items()}


def _find_tensors(root: Any) -> dict[str, TensorRef]:
    """Returns the tensors of a state dict, of the state dict inside a training snapshot, or of a pickled module."""
    for _ in range(_MAX_NESTING):
        if isinstance(root, Record):
            averaged = root.attributes().get("ema_model")
            if not isinstance(averaged, Record):
                return _module_tensors(root)
            root = averaged
            continue
        if not isinstance(root, dict):
            return {}
        names = ("model_ema", "ema_model", "model", "state_dict", "model_state_dict")
        inner = [root[name] for name in names if isinstance(root.get(name), dict | Record)]
        if not inner:
            return {k: v for k, v in _string_items(root) if isinstance(v, TensorRef)}
        root = inner[0]
    return {}


def _module_tensors(module: Record) -> dict[str, TensorRef]:
    """Returns the parameters and buffers of a pickled module by dotted name; each submodule is visited once.

    Returns nothing if tensors and submodules together exceed ``CHECKPOINT_ENTRIES``.
    """
    found: dict[str, TensorRef] = {}
    seen: set[int] = set()
    stack: list[tuple[str, Record]] = [("", module)]
    entries = 0
    while stack:
        prefix, record = stack.pop()
        if id(record) in seen or len(prefix) > PICKLE_KEY:
            continue
        seen.add(id(record))
        state = record.attributes()
        tensors = _string_items(state.get("_parameters")) + _string_items(state.get("_buffers"))
        children = _string_items(state.get("_modules"))
        entries += len(tensors) + len(children)
        if entries > CHECKPOINT_ENTRIES:
            return {}
        found.update({prefix + k: v for k, v in tensors if isinstance(v, TensorRef)})
        stack.extend((f"{prefix}{k}.", v) for k, v in children if isinstance(v, Record))
    return found


def _named_state(path: Path, root: Any, key: str | None) -> dict[str, TensorRef]:
    """Returns the tensors at ``key`` of a pickle, or of its only state dict; see :func:`read_state`."""
    if key is not None:
        inner = _at(root, key)
        if inner is None or not (state := _flat(path, inner)):
            raise UsageError(f"--state-key is {shown(key)}, but {path} has no tensors there; {_keys_in(path, root)}")
        return state
    names = _states_in(path, root)
    named = [name for name in _STATE_KEYS if name in names]
    whole = isinstance(root, Record) or any(isinstance(value, TensorRef) for _, value in _string_items(root))
    if not names or (whole and not named):
        return _flat(path, root)
    if len(names) > 1:
        raise UsageError(f"{path} holds {len(names)} state dicts; add --state-key; {_keys_in(path, root)}")
    return _flat(path, root[names[0]])


def _states_in(path: Path, root: Any) -> list[str]:
    """Returns the keys that hold tensors; of several that hold the same dict, the first one."""
    seen: set[int] = set()  # of all keys, so that a dict in many of them is visited once
    return [name for name, value in _string_items(root) if _flat(path, value, seen)]


def _at(root: Any, key: str) -> Any:
    """Returns the value under a key, or under nested keys that are joined by dots; None if there is none."""
    for part in [key] if isinstance(root, dict) and key in root else key.split("."):
        root = root.attributes() if isinstance(root, Record) else root
        root = root.get(part) if isinstance(root, dict) else None
    return root


def _keys_in(path: Path, root: Any) -> str:
    names = _states_in(path, root)
    return f"tensors are in {', '.join(map(shown, names[:8])) or 'no key'}"


def _flat(path: Path, group: Any, seen: set[int] | None = None) -> dict[str, TensorRef]:
    """Returns the tensors in nested dicts, or of a module, by dotted names; a dict that occurs twice is read once.

    Dicts and modules whose identity is in ``seen`` are left out; the others are added to it.
    """
    seen = set() if seen is None else seen
    if isinstance(group, Record) and id(group) not in seen:
        seen.add(id(group))
        return _module_tensors(group)
    found: dict[str, TensorRef] = {}
    stack: list[tuple[str, dict[str, Any]]] = [("", group)] if isinstance(group, dict) else []
    while stack:
        prefix, inner = stack.pop()
        if id(inner) in seen or len(prefix) > PICKLE_KEY:
            continue
        seen.add(id(inner))
        items = _string_items(inner)
        found.update({prefix + name: value for name, value in items if isinstance(value, TensorRef)})
        stack.extend((f"{prefix}{name}.", value) for name, value in reversed(items) if isinstance(value, dict))
        if len(found) > CHECKPOINT_ENTRIES:  # a small file can declare any number of them
            raise InputError(f"{path} holds more than {CHECKPOINT_ENTRIES} tensors")
    return found


def _below(path: Path, entries: dict[str, StoredTensor], key: str | None) -> dict[str, StoredTensor]:
    """Returns the tensors whose names begin with ``key`` and a dot, without it."""
    if key is None:
        return entries
    found = {name.removeprefix(f"{key}."): entry for name, entry in entries.items() if name.startswith(f"{key}.")}
    if not found:
        first = shown(next(iter(entries), ""))
        raise UsageError(f"--state-key is {shown(key)}, but no name in {path} begins with it; the first is {first}")
    return found


def _string_items(group: Any) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in group.items() if isinstance(k, str)] if isinstance(group, dict) else []


def _averaged(entries: dict[str, Value]) -> dict[str, Value]:
    """Returns the entries of the network without prefixes; of an EMA wrapper, the entries of the averaged network."""
    entries = _strip_prefixes(entries)
    averaged = {k.removeprefix(_AVERAGED): v for k, v in entries.items() if k.startswith(_AVERAGED)}
    return _strip_prefixes(averaged or entries)


def _strip_prefixes(entries: dict[str, Value]) -> dict[str, Value]:
    """Removes the prefixes that data-parallel training and torch.compile add to every key."""
    for prefix in _PREFIXES * 2:
        if all(k.startswith(prefix) for k in entries):
            entries = {k.removeprefix(prefix): v for k, v in entries.items()}
    return entries


def _check_keys(path: Path, entries: Mapping[str, StoredTensor]) -> None:
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in build_misgnet().state_dict().items()}
    missing = [k for k in expected if k not in entries]
    unexpected = [k for k in entries if k not in expected]
    where = f"checkpoint {path}"
    if len(missing) == len(expected):
        found = f"it has {plural(len(entries), 'key')}, none is known; the first is {shown(next(iter(entries), ''))}"
        raise InputError(f"{where} is not a MISGNet: {found}")
    if missing:
        raise InputError(f"{where} lacks {len(missing)} of {len(expected)} keys, the first is '{missing[0]}'")
    if unexpected:
        found = f"{plural(len(unexpected), 'unexpected key')}, the first is {shown(unexpected[0])}"
        raise InputError(f"{where} has {found}")
    for key, shape in expected.items():
        found_shape = entries[key].shape
        if found_shape != shape:
            raise InputError(f"{where}: '{key}' has shape {list(found_shape)}, MISGNet needs {list(shape)}")


def _read_checked(path: Path, key: str, entry: StoredTensor) -> torch.Tensor:
    value = entry.read()
    if key.endswith("num_batches_tracked"):
        if value.dtype not in _COUNTS:
            raise InputError(f"checkpoint {path}: '{key}' holds {value.dtype}, a counter must be int64")
        return value.to(torch.int64, copy=True)
    if value.dtype not in _FLOATS:
        raise InputError(f"checkpoint {path}: '{key}' holds {value.dtype}, weights must be floating point")
    value = value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not all(bool(torch.isfinite(part).all()) for part in value.flatten().split(_PART)):
        raise InputError(f"checkpoint {path}: '{key}' holds NaN or Inf")
    return value

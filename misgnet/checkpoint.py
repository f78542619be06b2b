"""Checkpoints: every published form in, safetensors out. Nothing of a file is ever run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from misgnet._unpickle import Record, TensorRef, TorchArchive
from misgnet.network import MISGNet, build_misgnet
from misgnet_runtime.errors import InputError
from misgnet_runtime.outputs import replace_file

# Encoder stage 4 is in published checkpoints and never reaches the output.
_UNUSED = ("backbone.patch_embed4.", "backbone.block4.", "backbone.norm4.")
_PREFIXES = ("module.", "_orig_mod.")
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class _Entry:
    """One stored tensor: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The network's state dict in float32, from safetensors or any published pickle form.

    A pickle is read by a restricted unpickler that runs none of it. Of an EMA wrapper the averaged network
    is taken. Raises InputError, naming the key or the place, for a missing, unexpected or wrongly shaped
    key, for NaN or Inf, and for a truncated or foreign file.
    """
    path = Path(path)
    with _open_entries(path) as entries:
        named = _strip_prefixes(entries)
        used = {key: entry for key, entry in named.items() if not key.startswith(_UNUSED)}
        _check_keys(path, used)
        return {key: _read_checked(path, key, entry) for key, entry in used.items()}


def load_network(path: str | os.PathLike[str]) -> MISGNet:
    """The network with the weights of ``path``, in evaluation mode; raises as :func:`load_checkpoint`."""
    network = build_misgnet()
    network.load_state_dict(load_checkpoint(path))
    return network.eval()


def save_checkpoint(
    network: MISGNet, path: str | os.PathLike[str], *, half: bool = False, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the network's state dict as safetensors, atomically; ``half`` stores float16."""
    dtype = torch.float16 if half else torch.float32
    state = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in network.state_dict().items()}
    with replace_file(Path(path)) as temporary:
        save_file(state, temporary, metadata={"format": "pt", **(metadata or {})})


@contextmanager
def _open_entries(path: Path) -> Iterator[dict[str, _Entry]]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if head[:2] == b"PK":
                file.seek(0)
                yield _archive_entries(path, TorchArchive(path, file))
                return
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if head == _LEGACY_MAGIC[:16]:
        raise InputError(f"checkpoint {path} has the pickle form of PyTorch before 1.6; save it again with a newer one")
    if len(head) < 9 or head[8:9] != b"{":
        raise InputError(f"checkpoint {path} is neither safetensors nor a file of torch.save (byte 0: {head[:8]!r})")
    yield from _safetensors_entries(path)


def _safetensors_entries(path: Path) -> Iterator[dict[str, _Entry]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield {
                key: _Entry(tuple(file.get_slice(key).get_shape()), lambda key=key: file.get_tensor(key))
                for key in file.keys()  # noqa: SIM118 - safe_open is no mapping
            }
    except (SafetensorError, json.JSONDecodeError) as error:
        size = path.stat().st_size
        raise InputError(f"checkpoint {path} is damaged or truncated at {size} bytes: {error}") from error


def _archive_entries(path: Path, archive: TorchArchive) -> dict[str, _Entry]:
    refs = _find_tensors(archive.root)
    if not refs:
        raise InputError(f"checkpoint {path} holds no network: no state dict and no module was found in it")
    return {key: _Entry(ref.shape, lambda ref=ref: archive.tensor(ref)) for key, ref in refs.items()}  # type: ignore[misc]


def _find_tensors(root: Any) -> dict[str, TensorRef]:
    """The state dict within a plain state dict, a training snapshot, a pickled module or an EMA wrapper."""
    if isinstance(root, Record):
        children = root.attributes().get("_modules")
        if isinstance(children, dict) and isinstance(children.get("ema_model"), Record):
            return _find_tensors(children["ema_model"])
        return _module_tensors(root)
    if not isinstance(root, dict):
        return {}
    for key in ("model_ema", "ema_model", "model", "state_dict", "model_state_dict"):
        if isinstance(root.get(key), dict | Record):
            return _find_tensors(root[key])
    tensors = {k: v for k, v in root.items() if isinstance(k, str) and isinstance(v, TensorRef)}
    averaged = {k.removeprefix("ema_model."): v for k, v in tensors.items() if k.startswith("ema_model.")}
    return averaged or tensors


def _module_tensors(module: Record) -> dict[str, TensorRef]:
    """Parameters and buffers of a pickled module by dotted name; a module seen before is not entered again."""
    found: dict[str, TensorRef] = {}
    seen: set[int] = set()
    stack: list[tuple[str, Record]] = [("", module)]
    while stack:
        prefix, record = stack.pop()
        if id(record) in seen:
            continue
        seen.add(id(record))
        for group in ("_parameters", "_buffers"):
            items = _string_items(record.attributes().get(group))
            found.update({prefix + k: v for k, v in items if isinstance(v, TensorRef)})
        children = _string_items(record.attributes().get("_modules"))
        stack.extend((f"{prefix}{k}.", v) for k, v in children if isinstance(v, Record))
    return found


def _string_items(group: Any) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in group.items() if isinstance(k, str)] if isinstance(group, dict) else []


def _strip_prefixes(entries: dict[str, _Entry]) -> dict[str, _Entry]:
    """Drop the prefixes that data-parallel training and torch.compile put before every key."""
    while entries and any(all(k.startswith(p) for k in entries) for p in _PREFIXES):
        entries = {k.split(".", 1)[1]: v for k, v in entries.items()}
    return entries


def _check_keys(path: Path, entries: Mapping[str, _Entry]) -> None:
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in build_misgnet().state_dict().items()}
    missing = [k for k in expected if k not in entries]
    unexpected = [k for k in entries if k not in expected]
    if len(missing) == len(expected):
        raise InputError(f"checkpoint {path} is not a MISGNet: none of its {len(entries)} keys is known, the first is '{unexpected[0] if unexpected else ''}'")
    if missing:
        raise InputError(f"checkpoint {path} lacks {len(missing)} of {len(expected)} keys, the first is '{missing[0]}'")
    if unexpected:
        raise InputError(f"checkpoint {path} has {len(unexpected)} unexpected keys, the first is '{unexpected[0]}'")
    for key, shape in expected.items():
        if entries[key].shape != shape:
            raise InputError(f"checkpoint {path}: '{key}' has shape {list(entries[key].shape)}, MISGNet needs {list(shape)}")


def _read_checked(path: Path, key: str, entry: _Entry) -> torch.Tensor:
    value = entry.read()
    if key.endswith("num_batches_tracked"):
        return value.to(torch.int64)
    if not value.is_floating_point():
        raise InputError(f"checkpoint {path}: '{key}' holds {value.dtype}, weights must be floating point")
    value = value.to(torch.float32)
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"checkpoint {path}: '{key}' holds NaN or Inf")
    return value

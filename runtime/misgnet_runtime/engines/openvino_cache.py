"""Stores graphs that OpenVINO compiled on this machine, in ``openvino/`` of the user's cache, to open them faster.

    KEY.compiled    a line of JSON that describes the graph, then the bytes that OpenVINO exported

KEY is the digest of everything that determines the exported bytes; see :class:`CompiledKey`. OpenVINO does not check
what it imports, so a file is used only from a folder that no other user can write, and only if its contents match their
digest. A cache that cannot be used is reported, and the graph is compiled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from misgnet_runtime.engines.base import TensorSpec
from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.limits import COMPILED_GRAPH_BYTES, COMPILED_GRAPHS_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.machine import cpu_flags, describe_machine
from misgnet_runtime.storage.private import NoFolderError, PrivateFolder
from misgnet_runtime.storage.schema import JSON_ERRORS, Sha256, Struct

FORMAT = 1
_SUFFIX = ".compiled"


class CompiledKey(Struct, frozen=True):
    """Identifies a compiled graph by everything that determines it."""

    format: int
    graph_sha256: Sha256
    openvino: str  # full version, with the commit
    options: dict[str, str]
    processor: str
    flags: list[str]  # instruction sets; processors of one name may differ in them

    @classmethod
    def of(cls, graph: bytes, openvino: str, options: dict[str, Any]) -> CompiledKey:
        """Returns the key of a graph that is compiled on this machine."""
        return cls(
            FORMAT, hashlib.sha256(graph).hexdigest(), openvino, {name: str(value) for name, value in options.items()},
            str(describe_machine()["processor"]), sorted(cpu_flags()),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The name of the file."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32] + _SUFFIX


class _Header(Struct, frozen=True):
    key: CompiledKey
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class CompiledGraph:
    """A compiled graph."""

    inputs: tuple[TensorSpec, ...]  # of the graph before its batch was fixed
    outputs: tuple[TensorSpec, ...]
    exported: bytes


def kept(key: CompiledKey) -> CompiledGraph | None:
    """Reads a compiled graph; None if there is none. One that cannot be used is logged and ignored."""
    try:
        data = _folder().read_sealed(key.name, COMPILED_GRAPH_BYTES)
        if data is None:
            return None
        line, _, exported = data.partition(b"\n")
        header = msgspec.json.decode(line, type=_Header)
        if header.key != key:
            raise InputError(f"{key.name} holds another graph")
    except NoFolderError:
        return None
    except (InputError, OSError, *JSON_ERRORS) as error:
        current().warning(f"the compiled graph in the cache is not used: {error}; the graph is compiled again")
        return None
    return CompiledGraph(header.inputs, header.outputs, exported)


def keep(key: CompiledKey, graph: CompiledGraph) -> None:
    """Writes a compiled graph, and removes the oldest ones if all take too much room. Logs a failure."""
    data = msgspec.json.encode(_Header(key, graph.inputs, graph.outputs)) + b"\n" + graph.exported
    if len(data) > COMPILED_GRAPH_BYTES:
        return
    try:
        _folder().write_within(COMPILED_GRAPHS_BYTES, key.name, data, "stores a compiled graph")
    except NoFolderError:
        return
    except (InputError, StorageError, OSError) as error:
        current().info(f"the compiled graph is not kept for the next run: {error}")


def _folder() -> PrivateFolder:
    return PrivateFolder.of("openvino")

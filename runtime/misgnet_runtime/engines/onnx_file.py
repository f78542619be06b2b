"""Reads ONNX graphs and rejects those with external weights, which would be loaded from the working directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.errors import InputError

_DEEPEST = 100  # nesting limit, the same as in protobuf's own parsers
_VARINT, _LENGTH, _GROUP, _GROUP_END = 0, 2, 3, 4  # wire types
_SIZES = {1: 8, 5: 4, 6: 0, 7: 0}  # bytes of the other wire types; 6 and 7 are undefined
_MOST_VARINT = 10  # bytes
_FIELD = (1 << 32) - 1  # protobuf drops the higher bits of a key, too
_LOCATION, _EXTERNAL_DATA = 14, 13  # field numbers of TensorProto


@dataclass(frozen=True)
class _Message:
    """A message type of the ONNX schema, reduced to the fields (by number) that may contain a tensor."""

    fields: dict[int, _Message] = field(default_factory=dict)
    is_tensor: bool = False


_TENSOR, _NODE, _ATTRIBUTE, _GRAPH = _Message(is_tensor=True), _Message(), _Message(), _Message()
_SPARSE = _Message({1: _TENSOR, 2: _TENSOR})
_NODE.fields.update({5: _ATTRIBUTE})
_ATTRIBUTE.fields.update({5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE})
_GRAPH.fields.update({1: _NODE, 5: _TENSOR, 15: _SPARSE})
_MODEL = _Message({7: _GRAPH, 20: _Message({1: _GRAPH, 2: _GRAPH}), 25: _Message({7: _NODE, 11: _ATTRIBUTE})})


def read_graph(files: CheckedFiles, relative: str) -> bytes:
    """Reads an ONNX graph of a bundle.

    Raises InputError if the file fails its check or has external weights.
    """
    data = files.read(relative)
    refuse_external_data(data, str(files.name / relative))
    return data


def refuse_external_data(data: bytes, name: str) -> None:
    """Raises InputError if ``data`` keeps weights in another file. Damaged files are left to the engine to report."""
    with suppress(ValueError):
        if _is_external(memoryview(data), _MODEL, 0):
            raise InputError(f"graph {name} keeps weights in another file; build the bundle again")


def _is_external(data: memoryview, message: _Message, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    for number, value in _fields(data):
        if message.is_tensor and number in (_LOCATION, _EXTERNAL_DATA) and value:
            return True
        inner = message.fields.get(number)
        if inner is not None and isinstance(value, memoryview) and _is_external(value, inner, depth + 1):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yields the fields of a protobuf message as (number, bytes or integer); raises ValueError if it is damaged."""
    position = groups = 0  # groups: a deprecated encoding of messages, which parsers skip
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = (key & _FIELD) >> 3, key & 7
        if kind in (_GROUP, _GROUP_END):
            groups += 1 if kind == _GROUP else -1
            continue
        value: memoryview | int
        if kind == _VARINT:
            value, position = _varint(data, position)
        else:
            size, position = _varint(data, position) if kind == _LENGTH else (_SIZES[kind], position)
            value, position = data[position : position + size], position + size
        if position > len(data):
            raise ValueError("it ends too early")
        if groups == 0:
            yield number, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns the integer at ``position`` and the position behind it."""
    value = 0
    for index, byte in enumerate(data[position : position + _MOST_VARINT]):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, position + index + 1
    raise ValueError("it ends too early")

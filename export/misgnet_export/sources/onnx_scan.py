"""Inspects the bytes of an ONNX file before they are parsed: parsing makes an object of every two bytes if it must.

Walks the fields of the messages that the ONNX schema defines, without decoding numbers, text or tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx

from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import (
    ONNX_DEPTH,
    ONNX_FIELDS,
    ONNX_FUNCTIONS,
    ONNX_NODES,
    ONNX_NUMBER_BYTES,
    ONNX_TENSORS,
)

_MESSAGE = 11  # type of a field in a descriptor
_NUMBERS = (3, 4, 5, 8, 13, 14, 17, 18)  # types of fields whose values take 1 byte in the file and up to 8 in memory
_TEXT = 9
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5  # wire types
_COUNTED = {
    "NodeProto": ("nodes", ONNX_NODES), "TensorProto": ("tensors", ONNX_TENSORS),
    "FunctionProto": ("functions", ONNX_FUNCTIONS),
}  # fmt: skip
_CUT = "is not an ONNX file, or it is truncated"


@dataclass(frozen=True)
class _Kind:
    """What a type of message may hold, by the number of the field."""

    messages: dict[int, str]  # types of messages
    numbers: frozenset[int]  # fields of many numbers
    texts: frozenset[int]


def _kinds() -> dict[str, _Kind]:
    found: dict[str, _Kind] = {}
    waiting: list[Any] = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        if kind.name not in found:
            inner = [field for field in kind.fields if field.type == _MESSAGE]
            numbers, texts = (
                frozenset(field.number for field in kind.fields if field.type in types)
                for types in (_NUMBERS, (_TEXT,))
            )
            found[kind.name] = _Kind({field.number: field.message_type.name for field in inner}, numbers, texts)
            waiting += [field.message_type for field in inner]
    return found


_KINDS = _kinds()


def scan(data: bytes, name: str) -> None:
    """Checks that ``data`` is a well-formed protobuf message with as many fields, nodes and tensors as are accepted.

    Raises:
        InputError: It is not; the message starts with ``name``.
    """
    counts = dict.fromkeys(_COUNTED, 0)
    fields = numbers = at = 0
    inside = [(len(data), _KINDS["ModelProto"])]  # the end and the kind of each message around the position
    while inside:
        end, kind = inside[-1]
        if at == end:
            inside.pop()
            continue
        fields += 1
        if fields > ONNX_FIELDS:
            raise InputError(f"{name} has more than {ONNX_FIELDS:,} protobuf fields, which is the limit")
        tag, at = _varint(data, at, end, name)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(data, at, end, name)
            continue
        size, at = _varint(data, at, end, name) if wire == _LENGTH else (_fixed(wire, name), at)
        if size > end - at:
            raise InputError(f"{name} {_CUT}: a field ends beyond its message")
        if wire == _LENGTH and number in kind.messages:
            _count(counts, kind.messages[number], name)
            if len(inside) > ONNX_DEPTH:
                raise InputError(f"{name} is nested deeper than {ONNX_DEPTH} messages, which is the limit")
            inside.append((at + size, _KINDS[kind.messages[number]]))
            continue
        numbers += size if number in kind.numbers else 0
        if numbers > ONNX_NUMBER_BYTES:
            raise InputError(
                f"{name} has more than {ONNX_NUMBER_BYTES} bytes of integers that are not raw data, which is the limit"
            )
        if number in kind.texts and not _is_utf8(data[at : at + size]):  # the parser would return bytes
            raise InputError(f"{name} {_CUT}: it has text that is not UTF-8")
        at += size


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


def _fixed(wire: int, name: str) -> int:
    """Returns the size of a field without a stated size."""
    if wire not in (_EIGHT, _FOUR):
        raise InputError(f"{name} is not an ONNX file: it has a field of the unknown wire type {wire}")
    return 8 if wire == _EIGHT else 4


def _count(counts: dict[str, int], kind: str, name: str) -> None:
    if kind in counts:
        counts[kind] += 1
        what, limit = _COUNTED[kind]
        if counts[kind] > limit:
            raise InputError(f"{name} has more than {limit:,} {what}, which is the limit")


def _varint(data: bytes, at: int, end: int, name: str) -> tuple[int, int]:
    """Returns the number at ``at``, and the position behind it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InputError(f"{name} {_CUT}: a number does not end")

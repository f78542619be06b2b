"""Defines Hypothesis strategies that damage good files: random bytes, and structural edits with valid checksums.

Each strategy draws a whole file. Structural edits (a JSON value, a TIFF tag, a PNG chunk) reach code behind the first
check of a reader, which random bytes rarely pass.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from hypothesis import strategies as st

Files = st.SearchStrategy[bytes]

_NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63]
_TEXTS = [
    "", "\0", "..", "../../../etc/passwd", "/etc/passwd", "a\n", "\N{RIGHT-TO-LEFT OVERRIDE}", "x" * 70_000, "nan",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00", "0" * 64, "float32", "uint8",
    "object", "O", "-1", "1e400", "[/red]", "$(touch pwned)",
]  # fmt: skip
# Values as JSON text, because Python's json module would refuse some of them or write them differently.
_VALUES = [
    "null", "true", "-1", "0", "1", "1.5", "-0.0", "1e308", "1e999", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "1" + "0" * 400, "9" * 5_000, '"\\ud800"', "[]", "{}", "[[]]", "[" * 5_000 + "]" * 5_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000, "[" + "0," * 20_000 + "0]", "[1073741824,1073741824]", "[-1,0,0]", "NaN",
]  # fmt: skip
_WORDS = [
    "yes",
    "no",
    "1,2",
    "1,2,3,4",
    "98,2",
    "-1,200",
    "inf",
    "1e9",
    "a.tif",
    "a/b.png",
    "./a.tif",
    "//a.tif",
    "a.tif/",
    "9" * 5_000,
]
_MARK = "\N{REPLACEMENT CHARACTER}mark"  # placeholder for raw text until the rest is encoded


def damaged_bytes(seeds: Sequence[bytes], tokens: Sequence[bytes] = ()) -> Files:
    """Draws one of ``seeds`` with a few edits, or any bytes.

    Edits set, remove or repeat bytes, insert tokens, or cut off the end.
    """
    few = st.lists(_edit([*_PACKED, *tokens]), min_size=0, max_size=6)
    return st.builds(_apply, st.sampled_from(list(seeds)), few) | st.binary(max_size=300)


def damaged_json(seeds: Sequence[bytes]) -> Files:
    """Replaces, removes, repeats or adds a value at any depth in one of ``seeds``."""
    edits = st.lists(st.tuples(st.integers(0, 1 << 16), _ACTIONS, _RAW), min_size=1, max_size=3)
    return st.builds(_edit_json, st.sampled_from(list(seeds)), edits)


def damaged_lines(seeds: Sequence[bytes]) -> Files:
    """Edits, removes, repeats, exchanges or truncates lines of files with one JSON value per line."""
    return st.builds(
        _edit_lines, st.sampled_from(list(seeds)), st.integers(0, 1 << 16),
        st.sampled_from(["edit"] * 5 + _LINE_ACTIONS), st.tuples(st.integers(0, 1 << 16), _ACTIONS, _RAW),
    )  # fmt: skip


def damaged_png(seeds: Sequence[bytes]) -> Files:
    """Edits chunks of PNG files and corrects their checksums; pixels may be decompressed for the edit."""
    return st.builds(_edit_png, st.sampled_from(list(seeds)), st.integers(0, 1 << 16), _few_edits(), st.booleans())


def damaged_tiff(seeds: Sequence[bytes]) -> Files:
    """Changes types, counts and values of tags of little-endian TIFFs."""
    numbers = st.sampled_from(_NUMBERS[:-2]) | st.integers(0, 70_000)
    edit = st.tuples(st.integers(0, 1 << 16), st.sampled_from(["tag", "type", "count", "value"]), numbers)
    return st.builds(_edit_tiff, st.sampled_from(list(seeds)), st.lists(edit, min_size=1, max_size=4))


def damaged_zip(seeds: Sequence[bytes], tokens: Sequence[bytes] = ()) -> Files:
    """Edits one entry of an archive and writes a valid archive with any compression method."""
    packed = st.sampled_from([zipfile.ZIP_STORED] * 5 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    few = st.lists(_edit([*_PACKED, *tokens]), min_size=1, max_size=4)
    return st.builds(_edit_zip, st.sampled_from(list(seeds)), st.integers(0, 1 << 16), few, packed)


def damaged_features(seeds: Sequence[bytes]) -> Files:
    """Edits the footer of a feature file and corrects its digest and length."""

    def edit(seed: bytes, edits: list[Any]) -> bytes:
        length = int.from_bytes(seed[-16:-8], "little")
        content = _edit_json(seed[-48 - length : -48], edits)
        tail = hashlib.sha256(content).digest() + len(content).to_bytes(8, "little") + seed[-8:]
        return seed[: -48 - length] + content + tail

    edits = st.lists(st.tuples(st.integers(0, 1 << 16), _ACTIONS, _RAW), min_size=1, max_size=3)
    return st.builds(edit, st.sampled_from(list(seeds)), edits)


def damaged_table(seeds: Sequence[bytes]) -> Files:
    """Replaces cells of a CSV file; the result is a valid CSV file."""

    def edit(seed: bytes, edits: list[tuple[int, int, str]]) -> bytes:
        rows = list(csv.reader(io.StringIO(seed.decode("utf-8-sig"))))
        for row, column, word in edits:
            cells = rows[row % len(rows)]
            cells[column % len(cells)] = word
        out = io.StringIO()
        csv.writer(out).writerows(rows)
        return out.getvalue().encode("utf-8", "surrogatepass")

    words = st.sampled_from([*_TEXTS, *_WORDS]) | st.text(
        alphabet="aZ09 ,;\"'\n\r\t\0./\\-\u00e4\u0308\u2028\U0001f697", max_size=12
    )
    edits = st.lists(st.tuples(st.integers(1, 99), st.integers(0, 99), words), min_size=1, max_size=4)
    return st.builds(edit, st.sampled_from(list(seeds)), edits)


def damaged_safetensors(seeds: Sequence[bytes]) -> Files:
    """Edits the header of a safetensors file and corrects its length."""

    def edit(seed: bytes, edits: list[Any]) -> bytes:
        length = int.from_bytes(seed[:8], "little")
        header = _edit_json(seed[8 : 8 + length], edits)
        return len(header).to_bytes(8, "little") + header + seed[8 + length :]

    edits = st.lists(st.tuples(st.integers(0, 1 << 16), _ACTIONS, _RAW), min_size=1, max_size=3)
    return st.builds(edit, st.sampled_from(list(seeds)), edits)


def damaged_onnx(seeds: Sequence[bytes]) -> Files:
    """Sets, adds, repeats or removes fields of any message in an ONNX file."""
    edit = st.tuples(
        st.integers(0, 1 << 16), st.integers(0, 1 << 16), st.sampled_from(["set", "set", "set", "repeat", "clear"]),
        st.sampled_from(_NUMBERS) | st.integers(-2, 30), st.sampled_from(_TEXTS) | st.text(max_size=8),
    )  # fmt: skip
    return st.builds(_edit_onnx, st.sampled_from(list(seeds)), st.lists(edit, min_size=1, max_size=3))


def _edit_onnx(seed: bytes, edits: list[tuple[int, int, str, int, str]]) -> bytes:
    import onnx

    model = onnx.load_from_string(seed)
    for which, where, action, number, text in edits:
        messages = list(_messages(model))
        message = messages[which * len(messages) >> 17]
        fields = message.DESCRIPTOR.fields
        field = fields[where * len(fields) >> 17]
        try:
            _edit_field(message, field, action, number, text)
        except (ValueError, TypeError, OverflowError):  # the number or text does not fit the field
            continue
    return model.SerializeToString()


def _messages(message: Any) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for one in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _messages(one)


def _edit_field(message: Any, field: Any, action: str, number: int, text: str) -> None:
    value = getattr(message, field.name)
    if action == "clear":
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        value.add() if hasattr(value, "add") else value.SetInParent()
    elif hasattr(value, "append"):
        value.extend(list(value) if action == "repeat" else [_field_value(field, number, text)])
    else:
        setattr(message, field.name, _field_value(field, number, text))


def _field_value(field: Any, number: int, text: str) -> Any:
    if field.type == field.TYPE_STRING:
        return text
    return text.encode("utf-8", "replace") if field.type == field.TYPE_BYTES else number


_PACKED = [
    struct.pack(code, n & (1 << 8 * size) - 1) for n in _NUMBERS for code, size in (("<I", 4), (">I", 4), ("<Q", 8))
]
_ACTIONS = st.sampled_from(["replace"] * 6 + ["remove", "repeat", "add"])
_LINE_ACTIONS = ["remove", "repeat", "exchange", "cut", "blank"]
_RAW = st.sampled_from(_VALUES) | st.sampled_from([json.dumps(text) for text in _TEXTS]) | st.integers().map(str)
Edit = tuple[str, int, int, bytes]


def _edit(tokens: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    """Draws an edit: action, position (as a share of 2**16), number of bytes, and new bytes."""
    return st.tuples(
        st.sampled_from(["set", "set", "set", "insert", "remove", "repeat", "cut"]), st.integers(0, (1 << 16) - 1),
        st.integers(1, 40), st.binary(min_size=1, max_size=8) | st.sampled_from(list(tokens)),
    )  # fmt: skip


def _few_edits() -> st.SearchStrategy[list[Edit]]:
    return st.lists(_edit(_PACKED), min_size=1, max_size=4)


def _apply(data: bytes, edits: Sequence[Edit]) -> bytes:
    return reduce(_apply_one, edits, data)


def _apply_one(data: bytes, edit: Edit) -> bytes:
    action, share, length, token = edit
    at = share * len(data) >> 16
    return {
        "set": data[:at] + token + data[at + len(token) :],
        "insert": data[:at] + token + data[at:],
        "remove": data[:at] + data[at + length :],
        "repeat": data[:at] + data[at : at + length] * 3 + data[at + length :],
        "cut": data[:at],
    }[action]


def _edit_json(seed: bytes, edits: Sequence[tuple[int, str, str]]) -> bytes:
    value = json.loads(seed)
    raws: list[str] = []
    for where, action, raw in edits:
        positions = list(_positions(value))
        if not positions:
            break
        parent, key = positions[where % len(positions)]
        raws.append(raw)
        _change(parent, key, action, f"{_MARK}{len(raws) - 1};")
    text = json.dumps(value, ensure_ascii=False)
    for number, raw in enumerate(raws):
        text = text.replace(f'"{_MARK}{number};"', raw)
    return text.encode("utf-8", "surrogatepass")


def _change(parent: Any, key: Any, action: str, mark: str) -> None:
    if action == "remove":
        del parent[key]
    elif action == "repeat" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif action == "add" and isinstance(parent, dict):
        parent["added"] = mark
    else:
        parent[key] = mark


def _positions(value: Any) -> list[tuple[Any, Any]]:
    """Returns the container and the key of every value inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in list(items):
        found.append((value, key))
        found += _positions(inner)
    return found


def _edit_lines(seed: bytes, where: int, action: str, edit: tuple[int, str, str]) -> bytes:
    lines = seed.splitlines()
    at = where % len(lines)
    if action == "edit":
        lines[at] = _edit_json(lines[at], [edit])
    elif action == "remove":
        del lines[at]
    elif action == "repeat":
        lines.insert(at, lines[at])
    elif action == "exchange":
        lines[at], lines[0] = lines[0], lines[at]
    elif action == "blank":
        lines.insert(at, b"")
    whole = b"\n".join(lines) + b"\n"
    return whole[: -1 - where % 20] if action == "cut" else whole


def _edit_png(seed: bytes, where: int, edits: Sequence[Edit], unpack: bool) -> bytes:
    chunks, at = [], 8
    while at < len(seed):
        (length,) = struct.unpack(">I", seed[at : at + 4])
        chunks.append((seed[at + 4 : at + 8], seed[at + 8 : at + 8 + length]))
        at += 12 + length
    index = where % len(chunks)
    kind, data = chunks[index]
    inside = unpack and kind == b"IDAT"
    chunks[index] = kind, zlib.compress(_apply(zlib.decompress(data), edits)) if inside else _apply(data, edits)
    return seed[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _edit_tiff(seed: bytes, edits: Sequence[tuple[int, str, int]]) -> bytes:
    data = bytearray(seed)
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    for where, field, number in edits:
        entry = first + 2 + 12 * (where % count)
        at, code, most = {"tag": (0, "<H", 16), "type": (2, "<H", 16), "count": (4, "<I", 32), "value": (8, "<I", 32)}[
            field
        ]
        struct.pack_into(code, data, entry + at, number & (1 << most) - 1)
    return bytes(data)


def _edit_zip(seed: bytes, where: int, edits: Sequence[Edit], packed: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    name, data = entries[where % len(entries)]
    entries[where % len(entries)] = name, _apply(data, edits)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


Maker = Callable[[Sequence[bytes]], Files]


def any_of(*makers: Maker) -> Maker:
    """Returns a strategy that draws files of one of ``makers``."""
    return lambda seeds: st.one_of(*(maker(seeds) for maker in makers))

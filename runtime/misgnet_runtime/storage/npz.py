"""Reads the arrays of NumPy archives (``.npz``) without NumPy's detection of file types.

NumPy decides by a file's first bytes, so it may load a file as one large array that a zip reader would open as an
archive. Here one zip reader opens and checks the file. Arrays may hold numbers, booleans and text, but no objects.
"""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import ARCHIVE_BYTES, ARCHIVE_DIRECTORY_BYTES
from misgnet_runtime.storage.files import is_not_regular_file
from misgnet_runtime.storage.zips import ZIP_ERRORS, LimitedZip

READ_ERRORS = (*ZIP_ERRORS, TypeError, AttributeError, SyntaxError, tokenize.TokenError)
_KINDS = "biufU"  # booleans, integers, floating point, text
_HEADER = 10  # bytes before a header's text: magic, version, length
_MOST_TEXT = 10_000  # bytes of a header's text; NumPy's limit


def read_arrays(source: Path | io.BytesIO, names: Iterable[str]) -> list[NDArray[Any]]:
    """Returns the named arrays of an archive of :func:`numpy.savez`; no code in the file is run.

    Raises:
        READ_ERRORS: The archive is damaged, too large, lacks an array, or is compressed in a way that NumPy never uses.
    """
    if isinstance(source, Path) and is_not_regular_file(source):
        raise ValueError("not a regular file")
    with LimitedZip(source, ARCHIVE_DIRECTORY_BYTES) as archive:
        size = sum(entry.file_size for entry in archive.entries())
        if size > ARCHIVE_BYTES:
            raise ValueError(f"its arrays declare {size} bytes; the limit is {ARCHIVE_BYTES}")
        return [_array(name, archive.read(archive.entry(f"{name}.npy"), ARCHIVE_BYTES)) for name in names]


def read_archive(kind: str, path: Path, names: Iterable[str], data: bytes | None = None) -> list[NDArray[Any]]:
    """Returns the named arrays of a file, or of its bytes ``data``. Raises InputError, which names kind and path."""
    try:
        return read_arrays(path if data is None else io.BytesIO(data), names)
    except READ_ERRORS as error:
        raise InputError(f"{kind} {path} cannot be read: {error}") from error


def _array(name: str, data: bytearray) -> NDArray[Any]:
    """Returns a view of ``data``, the file of one array."""
    length = int.from_bytes(data[8:_HEADER], "little")
    if data[:8] != b"\x93NUMPY\x01\x00" or length > _MOST_TEXT:
        raise ValueError(f"its array {name} does not have NumPy's format 1.0")
    header = io.BytesIO(data[8 : _HEADER + length])
    shape, fortran, dtype = npy.read_array_header_1_0(header)
    if dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise ValueError(f"its array {name} holds {dtype}; expected numbers or text")
    if math.prod(shape) * dtype.itemsize != len(data) - _HEADER - length:
        raise ValueError(f"its array {name} has {len(data) - _HEADER - length} bytes for {list(shape)} of {dtype}")
    flat = np.frombuffer(memoryview(data)[_HEADER + length :], dtype)
    return flat.reshape(shape, order="F" if fortran else "C")

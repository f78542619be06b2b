"""The arrays of NumPy's archives (``.npz``), read without NumPy guessing what a file is.

NumPy looks at a file's first bytes, and takes for one large array what a zip reader takes for an archive. Here one zip
reader opens the file, and what it has checked is what becomes an array: numbers, logical values and text, no objects.
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
_KINDS = "biufU"  # logical values, whole numbers, floating point, text
_HEADER = 10  # bytes before the words of a header: magic, version, length
_MOST_TEXT = 10_000  # bytes of a header's words, as NumPy allows


def read_arrays(source: Path | io.BytesIO, names: Iterable[str]) -> list[NDArray[Any]]:
    """The arrays of an archive by :func:`numpy.savez`, nothing of which is run.

    Raises READ_ERRORS where it is damaged, lacks one, holds more than it may, or is packed as NumPy never does it.
    """
    if isinstance(source, Path) and is_not_regular_file(source):
        raise ValueError("not a regular file")
    with LimitedZip(source, ARCHIVE_DIRECTORY_BYTES) as archive:
        size = sum(entry.file_size for entry in archive.entries())
        if size > ARCHIVE_BYTES:
            raise ValueError(f"they declare {size} bytes, and {ARCHIVE_BYTES} are the most")
        return [_array(name, archive.read(archive.entry(f"{name}.npy"), ARCHIVE_BYTES)) for name in names]


def read_archive(kind: str, path: Path, names: Iterable[str], data: bytes | None = None) -> list[NDArray[Any]]:
    """As :func:`read_arrays`, of a file or of its bytes ``data``; InputError names its ``kind`` and ``path``."""
    try:
        return read_arrays(path if data is None else io.BytesIO(data), names)
    except READ_ERRORS as error:
        raise InputError(f"{kind} {path} cannot be read: {error}") from error


def _array(name: str, data: bytearray) -> NDArray[Any]:
    """A view of ``data``, which is the file of one array."""
    length = int.from_bytes(data[8:_HEADER], "little")
    if data[:8] != b"\x93NUMPY\x01\x00" or length > _MOST_TEXT:
        raise ValueError(f"{name} in it is no array of NumPy's format 1.0")
    header = io.BytesIO(data[8 : _HEADER + length])
    shape, fortran, dtype = npy.read_array_header_1_0(header)
    if dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise ValueError(f"{name} in it holds {dtype}, neither numbers nor text")
    if math.prod(shape) * dtype.itemsize != len(data) - _HEADER - length:
        raise ValueError(f"{name} in it has {len(data) - _HEADER - length} bytes for {list(shape)} of {dtype}")
    flat = np.frombuffer(memoryview(data)[_HEADER + length :], dtype)
    return flat.reshape(shape, order="F" if fortran else "C")

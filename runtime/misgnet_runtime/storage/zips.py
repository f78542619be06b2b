"""Reads untrusted zip files: neither the directory nor an entry takes more memory than allowed."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

ZIP_ERRORS = (  # what zipfile raises on damaged files
    zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, LookupError, MemoryError,
    OverflowError,
)  # fmt: skip
_TAIL = (1 << 16) + 22  # bytes: the longest comment, which zipfile searches for, and the record before it
_PART = 1 << 16
_RATIO = 1032  # the highest compression ratio of deflate; an entry that declares more is invalid
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Sparing(io.BufferedReader):
    """Refuses large reads: zipfile reads the whole directory at once and creates an object for each entry."""

    most: int
    length: int

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = self.length - self.tell()
        if size > max(self.most, _TAIL):
            raise zipfile.BadZipFile(f"its directory has {size} bytes; the limit is {self.most}")
        return super().read(size)


class LimitedZip:
    """An open zip file, a context manager. Raises ZIP_ERRORS.

    Args:
        source: A path, or the bytes of a file.
        directory: The largest accepted size of its directory in bytes; an entry takes about 50.
    """

    def __init__(self, source: Path | io.BytesIO, directory: int) -> None:
        raw: Any = io.FileIO(source) if isinstance(source, Path) else source
        self._file = _Sparing(raw)
        self._file.most, self._file.length = directory, raw.seek(0, io.SEEK_END)
        try:
            self._zip = zipfile.ZipFile(self._file)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> LimitedZip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def entries(self) -> list[zipfile.ZipInfo]:
        return self._zip.infolist()

    def entry(self, name: str) -> zipfile.ZipInfo:
        """Returns the entry called ``name``. Raises KeyError if there is none."""
        return self._zip.getinfo(name)

    def read(self, entry: zipfile.ZipInfo, most: int) -> bytearray:
        """Returns the bytes of an entry.

        Raises:
            ValueError: The entry declares more than ``most`` bytes, or more than its compressed bytes can hold.
        """
        if entry.compress_type not in _METHODS:
            raise ValueError(f"{entry.filename!a} is compressed by another method than deflate")
        if entry.file_size > most:
            raise ValueError(f"{entry.filename!a} declares {entry.file_size} bytes; the limit is {most}")
        if entry.file_size > _RATIO * entry.compress_size or (
            entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size
        ):
            raise ValueError(f"{entry.filename!a} declares {entry.file_size} bytes, which it cannot hold")
        data, filled = bytearray(entry.file_size), 0
        with self._zip.open(entry) as packed, memoryview(data) as view:
            while part := packed.read(_PART):  # until the end: the checksum is compared there
                view[filled : filled + len(part)] = part
                filled += len(part)
        if filled < len(data):
            raise EOFError(f"{entry.filename!a} holds {filled} of {len(data)} bytes")
        return data

"""Reads and writes journals of finished work: append-only JSON lines, one value per line.

A last line without a line end was being written when its process was killed: it is ignored, and the next line
overwrites it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import msgspec
from msgspec import Meta

from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.formatting import printable
from misgnet_runtime.limits import JOURNAL_LINE_BYTES
from misgnet_runtime.storage.atomic import resumable_errors, sync
from misgnet_runtime.storage.files import is_file
from misgnet_runtime.storage.lock import try_acquire
from misgnet_runtime.storage.schema import JSON_ERRORS, Struct

MOST_LINE = JOURNAL_LINE_BYTES
_MOST_TEXT = 200  # characters of a journal's own text in a message
Entry = TypeVar("Entry", bound=Struct)
# Files that a journal names are moved or read, so a name must not lead outside the journal's folder.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\x00]+$")]


class _Version(msgspec.Struct):
    """The only field of a first line that is read before its format is known."""

    format: int | None = None


class _FormatError(Exception):
    """Raised internally for a header whose format this version does not read."""


@dataclass(frozen=True, kw_only=True)
class JournalSchema(Generic[Entry]):
    """The types of the lines of one kind of journal."""

    # Type of the first line: its ``format``, and the digests and settings that later runs are compared with.
    header: Any
    # Union of the types of all other lines. If it includes the header's type, headers may appear on any line.
    entry: Any
    # The formats that are read; the last one is written.
    formats: tuple[int, ...]
    # The end of a message about a journal that cannot be read: what the user should do.
    advice: str
    # Error for a damaged line. A damaged first line and an unknown format always raise UsageError.
    damage: type[MisgnetError] = UsageError

    @property
    def format(self) -> int:
        return self.formats[-1]

    def read(self, handle: FileIO, path: Path) -> tuple[list[Entry], int]:
        """Reads all entries, line by line; returns them and the size of their lines in bytes.

        Raises:
            UsageError: The format is unknown, or the file is not a journal of this kind.
            MisgnetError: A line is damaged; the class is ``damage``.
            InputError: ``path`` cannot be read.
        """
        entries: list[Entry] = []
        length = 0
        handle.seek(0)
        with _read_errors(path), open(handle.fileno(), "rb", closefd=False) as file:
            while line := file.readline(MOST_LINE):
                if not line.endswith(b"\n") and len(line) < MOST_LINE and (entries or self._begins(line)):
                    break
                entries.append(self._decode(line, len(entries) + 1, path))
                length += len(line)
        return entries, length

    def _begins(self, torn: bytes) -> bool:
        """Returns whether an unfinished first line belongs to this kind of journal; other files are not truncated."""
        torn = torn.rstrip(b"\0")  # a crash of the machine may leave zeros
        return self._start.startswith(torn) or torn.startswith(self._start)

    def _decode(self, line: bytes, number: int, path: Path) -> Entry:
        try:
            return self._entry(line, number)
        except _FormatError as error:
            known = f"format{'s'[: len(self.formats) - 1]} {' and '.join(map(str, self.formats))}"
            raise UsageError(
                f"{path}, line {number} has format {error}, but this version reads {known}; {self.advice}"
            ) from error
        except JSON_ERRORS as error:
            kind = UsageError if number == 1 else self.damage
            raise kind(f"{path}, line {number} is damaged ({_short(str(error))}); {self.advice}") from error

    def _entry(self, line: bytes, number: int) -> Entry:
        if not line.endswith(b"\n"):
            raise ValueError(f"it has no line end within {MOST_LINE} bytes")
        if number == 1:  # headers of other versions may have other fields
            self._check(_VERSION.decode(line).format)
        decoder = self._decoders[0] if number == 1 else self._decoders[1]
        entry: Entry = decoder.decode(line)
        if isinstance(entry, self.header):
            self._check(entry.format)
        return entry

    def _check(self, found: int | None) -> None:
        if found is not None and found not in self.formats:
            raise _FormatError(found)

    @cached_property
    def _decoders(self) -> tuple[msgspec.json.Decoder[Entry], msgspec.json.Decoder[Entry]]:
        """Returns the decoder of the first line and that of all other lines."""
        first = self.entry if self.header in get_args(self.entry) else self.header
        return msgspec.json.Decoder(first), msgspec.json.Decoder(self.entry)

    @cached_property
    def _start(self) -> bytes:
        config = self.header.__struct_config__
        return b'{"%s":' % (config.tag_field or self.header.__struct_encode_fields__[0]).encode()


_VERSION = msgspec.json.Decoder(_Version)


class Journal(Generic[Entry]):
    """An open, locked journal. Lines can be appended, or all lines replaced.

    Attributes:
        path: The file.
        entries: The entries that the journal held when it was opened.
        lines: The current number of lines.
    """

    def __init__(self, handle: FileIO, path: Path, schema: JournalSchema[Entry], *, force: bool = False) -> None:
        self.path = path
        self._handle = handle
        self.entries: list[Entry] = []
        self._length = 0
        try:
            self.entries, self._length = schema.read(handle, path)
        except MisgnetError:
            if not force:
                raise
        self.lines = len(self.entries)

    def append(self, *entries: Entry, sync: bool = True) -> None:
        """Appends lines; with ``sync``, these and all earlier lines are on the disk when the call returns.

        Raises:
            StorageError: The lines cannot be written. Partly written lines are ignored; a later call may succeed.
        """
        with resumable_errors(self.path):
            if self._size() != self._length:  # truncating a complete file would change its times
                self._handle.truncate(self._length)
            write_all(self._handle, memoryview(b"".join(map(encode_line, entries))))
            if sync:
                os.fsync(self._handle)
            self._length = self._size()
        self.lines += len(entries)

    def start_over(self, *entries: Entry) -> None:
        """Replaces all lines in the same file: a crash meanwhile may leave fewer lines. Raises StorageError."""
        self._length = self.lines = 0
        self.append(*entries)

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replaces all lines atomically: a crash at any moment leaves either the old or the new lines. Keeps the lock.

        Raises:
            StorageError: The lines cannot be written; the old lines stay.
        """
        kept = list(entries)
        temporary = self.path.with_name(f".{self.path.name}.new")  # overwrites the file of a killed process
        with resumable_errors(self.path):
            handle = temporary.open("a+b", buffering=0)
            try:
                self._fill(handle, temporary, kept)
                temporary.replace(self.path)
            except BaseException:
                handle.close()
                with suppress(OSError):
                    temporary.unlink()
                raise
            self._handle.close()
            self._handle, self.lines = handle, len(kept)
            self._length = self._size()
            sync(self.path.parent)

    def _fill(self, handle: FileIO, path: Path, entries: list[Entry]) -> None:
        try_acquire(handle.fileno())  # before it gets the journal's name, so that no other process can lock it first
        handle.truncate(0)
        path.chmod(stat.S_IMODE(os.fstat(self._handle.fileno()).st_mode))
        for start in range(0, len(entries), 1000):
            write_all(handle, memoryview(b"".join(map(encode_line, entries[start : start + 1000]))))
        os.fsync(handle)

    def _size(self) -> int:
        return os.fstat(self._handle.fileno()).st_size

    def close(self) -> None:
        self._handle.close()


@contextmanager
def open_journal(
    path: Path, schema: JournalSchema[Entry], busy: str, *, force: bool = False
) -> Iterator[Journal[Entry]]:
    """Opens and locks the journal at ``path``; creates it and its folder if they do not exist.

    Args:
        path: The file. A link is followed; :meth:`Journal.rewrite` replaces its target.
        schema: The types of its lines.
        busy: The message of the error if another process holds the journal.
        force: Treat a journal that cannot be read as empty.

    Raises:
        UsageError: Another process holds the journal; also as :meth:`JournalSchema.read`.
        StorageError: The file cannot be created.
    """
    path = Path(os.path.realpath(path))
    handle = _locked(path, busy)
    try:
        journal = Journal(handle, path, schema, force=force)
    except BaseException:
        handle.close()
        raise
    try:
        yield journal
    finally:
        journal.close()


def read_journal(path: Path, schema: JournalSchema[Entry]) -> list[Entry]:
    """Reads the entries of a journal that another process may hold; returns none if it does not exist.

    Raises as :meth:`JournalSchema.read`.
    """
    if not is_file(path):
        return []
    with _read_errors(path), path.open("rb", buffering=0) as handle:
        return schema.read(handle, path)[0]


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def is_held(path: Path) -> bool:
    """Returns whether a process holds the journal at ``path``."""
    with path.open("r+b", buffering=0) as handle:
        return not try_acquire(handle.fileno())


def _locked(path: Path, busy: str) -> FileIO:
    """Opens and locks the file at ``path``; raises as :func:`open_journal`."""
    while True:
        with resumable_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a+b", buffering=0)
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # reading a named pipe would wait forever
            handle.close()
            raise UsageError(f"{path} is not a regular file; move it away, or choose another -o")
        if not try_acquire(handle.fileno()):
            handle.close()
            raise UsageError(busy)
        if _is_at(handle, path):
            return handle
        handle.close()  # another process replaced the file after it was opened and before it was locked


def _is_at(handle: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except OSError:
        return False


def difference(then: dict[str, str], now: dict[str, str]) -> str | None:
    """Returns the first setting that differs, such as "--overlap 16, and now it is 8"; None if all are equal."""
    for name in sorted(then.keys() | now.keys()):
        old, new = (settings.get(name, "not set") for settings in (then, now))
        if old != new:
            return f"{_short(name)} {_short(old)}, and now it is {_short(new)}"
    return None


def encode_line(value: Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def write_all(handle: FileIO, data: memoryview) -> None:
    """Writes all of ``data``. Raises OSError; a full disk may then hold a part of it."""
    while data:  # an unbuffered write may write only a part
        data = data[handle.write(data) :]


def _short(text: str) -> str:
    return printable(text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}...")

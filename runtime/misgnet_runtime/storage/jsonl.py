"""JSON lines: append-only journals of finished work, one value a line.

A line without its end was being written when its process was killed: it does not count, and the next line replaces it.
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
_MOST_TEXT = 200  # of a journal's own text in a message
Entry = TypeVar("Entry", bound=Struct)
# What a journal names is moved or looked for: never what lies outside the journal's folder.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\x00]+$")]


class _Version(msgspec.Struct):
    """All that is read of a first line before its format is known."""

    format: int | None = None


class _FormatError(Exception):
    """A header's format is unknown here."""


@dataclass(frozen=True, kw_only=True)
class JournalSchema(Generic[Entry]):
    """The lines of one kind of journal."""

    # The first line's type: its ``format``, and what later runs are compared with (digests, settings).
    header: Any
    # The union of all other lines' types. With the header's type among them it may come at any place, and again.
    entry: Any
    # The formats that are read; the last one is written.
    formats: tuple[int, ...]
    # What a user should do about a journal that cannot be read.
    advice: str
    # Raised for a damaged line; UsageError where the first one is, or its format is unknown.
    damage: type[MisgnetError] = UsageError

    @property
    def format(self) -> int:
        return self.formats[-1]

    def read(self, handle: FileIO, path: Path) -> tuple[list[Entry], int]:
        """Read all entries, line by line; how many bytes their lines take.

        Raises UsageError for a format that is unknown here, or a file that is no journal of this kind; an error of the
        kind ``damage`` for a damaged line; InputError where ``path`` cannot be read.
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
        """Whether a first line that was not finished is one of this kind's: another program's file is not cut."""
        torn = torn.rstrip(b"\0")  # what a crash of the machine may leave
        return self._start.startswith(torn) or torn.startswith(self._start)

    def _decode(self, line: bytes, number: int, path: Path) -> Entry:
        try:
            return self._entry(line, number)
        except _FormatError as error:
            known = f"format{'s'[: len(self.formats) - 1]} {' and '.join(map(str, self.formats))}"
            raise UsageError(
                f"{path}, line {number} has format {error}, and this version reads {known}; {self.advice}"
            ) from error
        except JSON_ERRORS as error:
            kind = UsageError if number == 1 else self.damage
            raise kind(f"{path}, line {number} is damaged ({_short(str(error))}); {self.advice}") from error

    def _entry(self, line: bytes, number: int) -> Entry:
        if not line.endswith(b"\n"):
            raise ValueError(f"it has no end, or none within {MOST_LINE} bytes")
        if number == 1:  # another version's header may lack fields, and have others
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
        """Of the first line, and of all others."""
        first = self.entry if self.header in get_args(self.entry) else self.header
        return msgspec.json.Decoder(first), msgspec.json.Decoder(self.entry)

    @cached_property
    def _start(self) -> bytes:
        config = self.header.__struct_config__
        return b'{"%s":' % (config.tag_field or self.header.__struct_encode_fields__[0]).encode()


_VERSION = msgspec.json.Decoder(_Version)


class Journal(Generic[Entry]):
    """An open journal: JSON lines that are appended, or all replaced. One process at a time holds it.

    Attributes:
        path: of the file.
        entries: what was there when the journal was opened.
        lines: how many there are now.
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
        """Add lines; with ``sync`` they, and all before them, are on the disk when the call returns.

        Raises StorageError where the disk refuses; what it took of the lines does not count, and a later call may
        succeed.
        """
        with resumable_errors(self.path):
            if self._size() != self._length:  # else a file that is complete would change
                self._handle.truncate(self._length)
            write_all(self._handle, memoryview(b"".join(map(encode_line, entries))))
            if sync:
                os.fsync(self._handle)
            self._length = self._size()
        self.lines += len(entries)

    def start_over(self, *entries: Entry) -> None:
        """Replace all lines where they are: a crash meanwhile may leave fewer. Raises StorageError."""
        self._length = self.lines = 0
        self.append(*entries)

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replace all lines: after a crash at any moment the old ones are there or the new ones. The lock stays.

        Raises StorageError where the disk refuses; then the old lines stay.
        """
        kept = list(entries)
        temporary = self.path.with_name(f".{self.path.name}.new")  # a killed process's is overwritten
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
        try_acquire(handle.fileno())  # before it has the journal's name: no other process can lock it in between
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
    """Open the journal at ``path``, created with its folder where there is none.

    Args:
        path: where a link points to is opened, and replaced by :meth:`Journal.rewrite`.
        schema: its lines.
        busy: the message where another process holds it.
        force: a journal that cannot be read counts as empty.

    Raises:
        UsageError: where another process holds the journal; else as :meth:`JournalSchema.read`.
        StorageError: where the disk refuses.
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
    """Read the entries of a journal that another process may hold; none where there is none. Raises as its schema."""
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
    """Whether a process holds the journal at ``path``."""
    with path.open("r+b", buffering=0) as handle:
        return not try_acquire(handle.fileno())


def _locked(path: Path, busy: str) -> FileIO:
    """The file at ``path``, locked; raises as :func:`open_journal`."""
    while True:
        with resumable_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a+b", buffering=0)
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # a named pipe would wait for ever
            handle.close()
            raise UsageError(f"{path} is not a regular file; move it away, or choose another -o")
        if not try_acquire(handle.fileno()):
            handle.close()
            raise UsageError(busy)
        if _is_at(handle, path):
            return handle
        handle.close()  # its holder replaced it between the opening and the lock


def _is_at(handle: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except OSError:
        return False


def difference(then: dict[str, str], now: dict[str, str]) -> str | None:
    """Name the first setting of a run that is not what it was: "--overlap 16, and now it is 8"."""
    for name in sorted(then.keys() | now.keys()):
        old, new = (settings.get(name, "not set") for settings in (then, now))
        if old != new:
            return f"{_short(name)} {_short(old)}, and now it is {_short(new)}"
    return None


def encode_line(value: Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def write_all(handle: FileIO, data: memoryview) -> None:
    """Write all of ``data``; a full disk may leave a part of it. Raises OSError."""
    while data:  # without a buffer, a full disk may take a part
        data = data[handle.write(data) :]


def _short(text: str) -> str:
    return printable(text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}...")

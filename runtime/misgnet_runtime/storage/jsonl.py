"""Records of finished work: one JSON value a line, only ever appended; a line without its end does not count."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import msgspec
from msgspec import Meta

from misgnet_runtime.errors import UsageError
from misgnet_runtime.limits import JOURNAL_LINE_BYTES
from misgnet_runtime.storage.atomic import resumable_errors, sync
from misgnet_runtime.storage.lock import try_acquire
from misgnet_runtime.storage.schema import JSON_ERRORS, Struct

MOST_LINE = JOURNAL_LINE_BYTES  # a longer line is read in parts, and none of them is whole
Entry = TypeVar("Entry", bound=Struct)
# What a record names is moved or looked for: never what lies outside the record's folder.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\x00]+$")]


def encode_line(value: Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


@contextmanager
def open_held(path: Path, busy: str) -> Iterator[FileIO]:
    """A record to read and to append to, made with its folder where there is none; nobody else holds it meanwhile.

    UsageError with the words ``busy`` where another process holds it, StorageError where the disk refuses.
    """
    with _locked(path, busy) as handle:
        yield handle


def _locked(path: Path, busy: str) -> FileIO:
    """The file at ``path``, locked; raises as :func:`open_held`."""
    while True:
        with resumable_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a+b", buffering=0)
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


def add_line(handle: FileIO, length: int, value: Struct, *, sync: bool = True) -> int:
    """Append a line to the ``length`` bytes that count, with ``sync`` on the disk; how many bytes count then.

    StorageError where the disk refuses: a part of a line that it left does not count, and goes with the next call.
    """
    with resumable_errors(Path(str(handle.name))):
        handle.truncate(length)
        append_line(handle, value)
        if sync:
            os.fsync(handle)
        return os.fstat(handle.fileno()).st_size


def append_line(handle: FileIO, value: Struct) -> None:
    """Write all of a line; a full disk may leave a part of it. Raises OSError."""
    write_all(handle, memoryview(encode_line(value)))


def write_all(handle: FileIO, data: memoryview) -> None:
    """Write all of ``data``; a full disk may leave a part of it. Raises OSError."""
    while data:  # without a buffer, a full disk may take a part
        data = data[handle.write(data) :]


def decode_lines(handle: FileIO, decode: Callable[[bytes, int], Entry]) -> tuple[list[Entry], int]:
    """What ``decode`` makes of each line and its number, from 1, and how many bytes these lines take.

    Line by line, so that a file of any size takes no more memory than what is made of it. UsageError for no file.
    """
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # a named pipe would wait for ever
        raise UsageError(f"{handle.name!r} is no file; move it away, or choose another -o")
    entries: list[Entry] = []
    length = 0
    handle.seek(0)
    with open(handle.fileno(), "rb", closefd=False) as file:
        while line := file.readline(MOST_LINE):
            if not line.endswith(b"\n") and len(line) < MOST_LINE:
                break
            entries.append(decode(line.removesuffix(b"\n"), len(entries) + 1))
            length += len(line)
    return entries, length


@contextmanager
def line_errors(path: Path, number: int, without: str) -> Iterator[None]:
    """Around decoding a line: UsageError where it is damaged; ``without``: what follows where the record is gone."""
    try:
        yield
    except JSON_ERRORS as error:
        raise UsageError(
            f"{path}, line {number} is damaged, or another version's ({error}); choose another -o, or move it away: "
            f"then {without}"
        ) from error


class _Version(msgspec.Struct):
    """All that is read of a header before its format is known."""

    format: int | None = None


@dataclass(frozen=True)
class JournalSchema(Generic[Entry]):
    """The lines of one kind of journal."""

    # The first line's type; it has a ``format`` and holds what later runs are compared with: digests, settings.
    header: Any
    # The union of all other lines' types. With the header's type among them it may come at any place, and again.
    entry: Any
    # The formats that are read; the last one is written.
    formats: tuple[int, ...]
    # What a user should do about a damaged journal.
    advice: str

    @property
    def format(self) -> int:
        return self.formats[-1]

    def decode(self, line: bytes, number: int) -> Entry:
        """The entry of line ``number``, from 1. Raises one of JSON_ERRORS for a damaged line."""
        if number == 1:  # another version's header may lack fields, and have others
            self._check(msgspec.json.decode(line, type=_Version).format)
        first = number == 1 and self.header not in get_args(self.entry)
        entry: Entry = msgspec.json.decode(line, type=self.header if first else self.entry)
        if isinstance(entry, self.header):
            self._check(entry.format)
        return entry

    def _check(self, found: int | None) -> None:
        if found is not None and found not in self.formats:
            raise ValueError(f"it has format {found}")

    def read(self, handle: FileIO, path: Path) -> tuple[list[Entry], int]:
        """All entries and how many bytes they take; UsageError names the first line that is damaged."""

        def decode(line: bytes, number: int) -> Entry:
            try:
                return self.decode(line, number)
            except JSON_ERRORS as error:
                known = " and ".join(map(str, self.formats))
                raise UsageError(
                    f"{path}, line {number} is damaged or of another version ({error}; this version reads format "
                    f"{known}); {self.advice}"
                ) from error

        return decode_lines(handle, decode)


class Journal(Generic[Entry]):
    """An open journal: JSON lines that are only appended, or all replaced in one step. One process at a time has it."""

    def __init__(self, handle: FileIO, path: Path, schema: JournalSchema[Entry]) -> None:
        self.path = path
        self.entries, self._length = schema.read(handle, path)  # what was there when the journal was opened
        self.lines = len(self.entries)
        self._handle = handle

    def append(self, *entries: Entry, sync: bool = True) -> None:
        """Add lines; with ``sync`` they are on the disk when the call returns.

        Raises StorageError where the disk refuses; what it took of the lines does not count, and a later call may
        succeed.
        """
        with resumable_errors(self.path):
            self._handle.truncate(self._length)
            write_all(self._handle, memoryview(b"".join(map(encode_line, entries))))
            if sync:
                os.fsync(self._handle)
            self._length = os.fstat(self._handle.fileno()).st_size
        self.lines += len(entries)

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replace all lines: after a crash at any moment the old ones are there or the new ones. The lock stays.

        Raises StorageError where the disk refuses; then the old lines stay.
        """
        kept = list(entries)
        temporary = self.path.with_name(f".{self.path.name}.new")  # a killed process's is overwritten
        with resumable_errors(self.path):
            handle = temporary.open("a+b", buffering=0)
            try:
                self._fill(handle, kept)
                temporary.replace(self.path)
            except BaseException:
                handle.close()
                with suppress(OSError):
                    temporary.unlink()
                raise
            self._handle.close()
            self._handle, self.lines = handle, len(kept)
            self._length = os.fstat(handle.fileno()).st_size
            sync(self.path.parent)

    def _fill(self, handle: FileIO, entries: list[Entry]) -> None:
        try_acquire(
            handle.fileno()
        )  # before it has the journal's name, so that no other process can lock it in between
        handle.truncate(0)
        os.fchmod(handle.fileno(), stat.S_IMODE(os.fstat(self._handle.fileno()).st_mode))
        for start in range(0, len(entries), 1000):
            write_all(handle, memoryview(b"".join(map(encode_line, entries[start : start + 1000]))))
        os.fsync(handle)

    def close(self) -> None:
        self._handle.close()


@contextmanager
def open_journal(path: Path, schema: JournalSchema[Entry], busy: str) -> Iterator[Journal[Entry]]:
    """The journal at ``path``, created with its folder where there is none.

    Raises UsageError with the words ``busy`` where another process has it, UsageError where a line is damaged or of
    an unknown format, StorageError where the disk refuses.
    """
    path = Path(os.path.realpath(path))  # where it is a link, the file it points to is replaced
    handle = _locked(path, busy)
    try:
        journal = Journal(handle, path, schema)
    except BaseException:
        handle.close()
        raise
    try:
        yield journal
    finally:
        journal.close()

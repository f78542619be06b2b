"""Standard output and error that outlive their readers: ``misgnet-run info B | head -1`` is no failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from misgnet_runtime.errors import StorageError


class _Steady:
    """A text stream; what is written after its reader went away is lost, and nothing else happens.

    ``strict``: StorageError where the disk of its file refuses; else that is lost as well.
    """

    def __init__(self, stream: TextIO, *, strict: bool) -> None:
        self._stream, self._strict = stream, strict
        self._refused: StorageError | None = None  # the first time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self.give_up()
            return len(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self.give_up()
        except OSError as error:
            self._lose(error)

    def check(self) -> None:
        """StorageError where something was lost because the disk refused it."""
        self.flush()
        if self._refused is not None:
            raise self._refused

    def _lose(self, error: OSError) -> None:
        words = f"what this command prints cannot be written: {error.strerror or error}; make room for it"
        self._refused = self._refused or StorageError(words)
        if self._strict:
            raise self._refused from error

    def give_up(self) -> None:
        """From now on, and for what is still buffered when Python ends, the stream is the null device."""
        with suppress(OSError, ValueError):  # ValueError: a test's stream without a descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def steady_streams() -> Iterator[Callable[[], None]]:
    """Within this block ``sys.stdout`` and ``sys.stderr`` may be closed pipes, or closed by who started the process.

    Yields a function that raises StorageError where a part of standard output was lost to a disk without room.
    Characters that their encoding lacks are written as escapes.
    """
    before = sys.stdout, sys.stderr
    out, err = _Steady(_usable(before[0]), strict=True), _Steady(_usable(before[1]), strict=False)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        yield out.check
    finally:
        for stream in (out, err):
            try:
                stream.check()
            except StorageError:
                stream.give_up()  # Python would try once more, and end with another exit code
        sys.stdout, sys.stderr = before


def _usable(stream: TextIO | None) -> TextIO:
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors="backslashreplace")
    return stream

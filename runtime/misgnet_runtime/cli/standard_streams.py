"""Makes standard output and error survive a closed pipe: ``misgnet-run info B | head -1`` succeeds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from misgnet_runtime.errors import StorageError


class _Steady:
    """Text stream that silently discards text written after its reader closed the pipe.

    Other write errors, such as a full disk, raise StorageError if ``strict``; else that text is discarded too.
    """

    def __init__(self, stream: TextIO, *, strict: bool) -> None:
        self._stream, self._strict = stream, strict
        self._refused: StorageError | None = None  # the first write error

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
        """Flushes the stream; raises StorageError if any text was lost to a write error."""
        self.flush()
        if self._refused is not None:
            raise self._refused

    def _lose(self, error: OSError) -> None:
        message = f"cannot write this command's output: {error.strerror or error}; free some space and rerun it"
        self._refused = self._refused or StorageError(message)
        if self._strict:
            raise self._refused from error

    def give_up(self) -> None:
        """Redirects the stream to the null device, also for text still buffered when Python exits."""
        with suppress(OSError, ValueError):  # ValueError: the stream has no descriptor, as in tests
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def steady_streams() -> Iterator[Callable[[], None]]:
    """Lets ``sys.stdout`` and ``sys.stderr`` be closed pipes, or closed by the parent process, within the block.

    Yields a function that raises StorageError if part of standard output was lost to a write error. Characters that
    the streams' encoding lacks are written as escapes.
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
                stream.give_up()  # else Python flushes again at exit and changes the exit code
        sys.stdout, sys.stderr = before


def _usable(stream: TextIO | None) -> TextIO:
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors="backslashreplace")
    return stream

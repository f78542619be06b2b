"""Watches a reader for forbidden actions: running code, accessing outside files, and using too much time or memory.

RLIMIT_AS limits the memory and a timer the processor time. Python's audit events report opened files, processes,
sockets and executed code. They do not report files that a C library opens itself; GDAL's driver and options limit its
access, which tests/runtime/raster/test_scene_reading.py checks.
"""

from __future__ import annotations

import codecs
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from misgnet_runtime.errors import MisgnetError

_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "ctypes.dlopen", "exec")


_CODECS = (  # Python imports these modules on first use
    "cp437", "latin-1", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le", "utf-8-sig", "idna",
)  # fmt: skip


class Broken(BaseException):
    """Raised when a promise is broken; a BaseException, so that no reader handles it as an ordinary error."""


class Guard:
    """Watches this process. Readers may open files in ``folder`` and files that good inputs opened (see ``learn``)."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._known: set[str] = set()
        self._watching = self._learning = False
        self._broken: list[str] = []
        self._seconds = 0.0
        for name in _CODECS:
            codecs.lookup(name)
        cell_len("\u6f22")  # reads a table of the library, which the first message with wide characters would read
        sys.addaudithook(self._on_event)
        signal.signal(signal.SIGVTALRM, self._on_timeout)

    def learn(self, call: Callable[[], object]) -> bool:
        """Reads a good input and allows the files that it opens; returns whether it was read without an error."""
        self._learning = True
        try:
            call()
        except MisgnetError:  # expected for good files of another kind
            return False
        finally:
            self._learning = False
        return True

    def check(self, call: Callable[[], object], seconds: float) -> str:
        """Reads an input and returns the name of the project's error, or "read" if there was none.

        Raises Broken for a forbidden action, or if it takes more than ``seconds`` of processor time.
        """
        self._broken.clear()
        self._watching = True
        self._seconds = seconds
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            call()
            found = "read"
        except MisgnetError as error:
            found = type(error).__name__
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            self._watching = False
        if self._broken:
            raise Broken("; ".join(self._broken))
        return found

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if not (self._watching or self._learning):
            return
        if event == "open" and isinstance(args[0], str | bytes):
            name = os.fsdecode(args[0])
            if args[1] is None and not os.path.isabs(name) and ".." not in name.split("/"):  # noqa: PTH117
                return  # opened by os.open relative to an open folder
            self._on_open(os.path.realpath(os.fsdecode(args[0])))
        elif self._watching and event.startswith(_RUNS):
            self._broken.append(f"{event} {str(args)[:200]}")

    def _on_open(self, path: str) -> None:
        if self._learning:
            self._known.add(path)
        elif not path.startswith(f"{self._folder}/") and path not in self._known and path != self._folder:
            self._broken.append(f"opened {path}")

    def _on_timeout(self, *_: object) -> None:
        raise Broken(f"took more than {self._seconds} s of processor time")


@contextmanager
def memory(more: int) -> Iterator[None]:
    """Limits the address space to ``more`` bytes beyond the current use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

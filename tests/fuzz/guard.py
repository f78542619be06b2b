"""Watches a reader while it reads an input, which must not run code, open other files, or take much time or memory.

Memory is limited by RLIMIT_AS and processor time by a timer. Python's audit events report opened files, processes,
sockets and executed code. Files opened by C libraries are not reported; GDAL is restricted by its driver and options,
which the tests of scene reading check.
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


_CODECS = (  # imported when they are first needed
    "cp437", "latin-1", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le", "utf-8-sig", "idna",
)  # fmt: skip


class Broken(BaseException):
    """A promise is broken. It derives from BaseException, so that readers do not catch it."""


class Guard:
    """Watches this process. Only files in ``folder``, and files that good inputs opened before, may be opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._known: set[str] = set()
        self._watching = self._learning = False
        self._broken: list[str] = []
        self._seconds = 0.0
        for name in _CODECS:
            codecs.lookup(name)
        cell_len("\u6f22")  # loads a table of the library that is first needed for messages with wide characters
        sys.addaudithook(self._on_audit_event)
        signal.signal(signal.SIGVTALRM, self._on_timeout)

    def learn(self, call: Callable[[], object]) -> bool:
        """Reads a good input and permits the files that it opens; returns whether it was accepted."""
        self._learning = True
        try:
            call()
        except MisgnetError:  # expected for some seeds, which are valid files of another kind
            return False
        finally:
            self._learning = False
        return True

    def check(self, call: Callable[[], object], seconds: float) -> str:
        """Runs ``call``; returns the type of the project's error, or "read".

        Raises:
            Broken: A promise is broken, such as taking more than ``seconds`` of processor time.
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

    def _on_audit_event(self, event: str, args: tuple[Any, ...]) -> None:
        if not (self._watching or self._learning):
            return
        if event == "open" and isinstance(args[0], str | bytes):
            name = os.fsdecode(args[0])
            if args[1] is None and not os.path.isabs(name) and ".." not in name.split("/"):  # noqa: PTH117
                return  # os.open relative to a folder that is open already
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
    """Limits the address space to ``more`` bytes beyond those in use now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

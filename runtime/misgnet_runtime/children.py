"""Starts child processes that import nothing from the working directory; every child of this project starts here.

A data folder may contain a ``statistics.py``. ``python -m``, ``python -c`` and processes that the standard library
spawns search the working directory first, and an empty entry of PYTHONPATH also means the working directory.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

from misgnet_runtime.errors import UnavailableError

_START = Path(__file__).with_name("child.py")
_PACKAGE = __name__.partition(".")[0]


def python_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Returns the command that runs ``module`` like ``python -m``, without the working directory on its import path.

    Start it with :func:`environment`. The interpreter ``python`` needs none of this project's packages.
    """
    user_site = ["-s"] if sys.flags.no_user_site else []
    return [python, *user_site, str(_START.absolute()), module, *arguments]


def environment(*modules: str, **changes: str) -> dict[str, str]:
    """Returns this process's environment for a child that imports the same packages.

    PYTHONPATH becomes this process's import path without the working directory. The working directory stays if
    PYTHONPATH names it by its absolute path, or if it holds one of ``modules`` or this package. ``changes`` are added.
    """
    path = os.pathsep.join(import_path(*modules))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path, **changes}


def import_path(*modules: str) -> list[str]:
    """Returns the ``sys.path`` of a child process; see :func:`environment`."""
    named = {os.path.realpath(e) for e in os.environ.get("PYTHONPATH", "").split(os.pathsep) if _is_absolute(e)}
    here = {os.path.realpath(folder) for folder in (_STARTED_IN, _working_directory()) if folder} - named
    kept = [
        entry
        for entry in sys.path
        if _is_absolute(entry)
        and os.pathsep not in entry  # PYTHONPATH would split it into two entries
        and os.path.realpath(entry) not in here
    ]
    roots = [_root(module) for module in (_PACKAGE, *modules)]
    return list(dict.fromkeys([*kept, *filter(None, roots)]))


@contextmanager
def away_from_working_directory() -> Iterator[None]:
    """Changes to the folder of this package's code within the block.

    Used with libraries that put the working directory on the import path of their own child processes. Nothing else in
    this process may run meanwhile.
    """
    if not hasattr(os, "fchdir"):  # Windows cannot open folders, and never removes or moves the working directory
        name = Path.cwd()
        os.chdir(_START.parents[1])
        try:
            yield
        finally:
            os.chdir(name)
        return
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(_START.parents[1])
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _is_absolute(entry: str) -> bool:
    return Path(entry).is_absolute()


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return None


_STARTED_IN = _working_directory()  # the first entry of sys.path may name it


def _root(module: str) -> str | None:
    """Returns the import path entry that ``module`` is found in; None if it is not known or not a folder."""
    spec = find_spec(module.partition(".")[0])
    if spec and spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).absolute().parent)
    return str(Path(spec.origin).absolute().parent) if spec and spec.origin and spec.has_location else None


@dataclass(frozen=True)
class Child:
    """A child process that runs a function, and the parent's connection to it. Dropping the object ends the process."""

    process: subprocess.Popen[bytes]
    connection: Connection
    _lifeline: Connection

    def kill(self) -> int:
        """Ends the process if it still runs, closes its connections and returns its exit code."""
        self.process.kill()
        return self.release()

    def release(self) -> int:
        """Waits until the process has ended and returns its exit code; a negative code is the signal that ended it."""
        code = self.process.wait()
        self.connection.close()
        self._lifeline.close()
        return code


def start(target: Callable[..., object], *arguments: object) -> Child:
    """Runs ``target(connection, *arguments)`` in a new interpreter, not in a fork.

    ``target`` is a top-level function of an importable module. It communicates through ``connection``; standard input
    is empty. The process ends when ``target`` returns, and as soon as this process ends for any reason.

    Raises:
        UnavailableError: On Windows.
    """
    if os.name == "nt":  # Windows does not pass file descriptors to other processes
        raise UnavailableError(
            "this command runs pairs and workers in child processes, which need Linux or macOS; use predict instead"
        )
    ours, theirs = multiprocessing.Pipe()
    alive, lifeline = multiprocessing.Pipe(duplex=False)
    handles = theirs.fileno(), alive.fileno()
    process = subprocess.Popen(
        python_command(__name__, *map(str, handles)), stdin=subprocess.DEVNULL, pass_fds=handles,
        env=environment(target.__module__),
    )  # fmt: skip
    theirs.close()
    alive.close()
    child = Child(process, ours, lifeline)
    with suppress(OSError):  # the child has ended already: the caller notices when it uses the connection
        ours.send((target.__module__, target.__qualname__, pickle.dumps(arguments)))
    return child


def _run(connection: Connection, alive: Connection) -> None:
    Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    module, name, arguments = connection.recv()
    getattr(importlib.import_module(module), name)(connection, *pickle.loads(arguments))


def _end_with_parent(alive: Connection) -> None:
    """Ends this process when the parent ends, even if the parent was killed."""
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


if __name__ == "__main__":
    _run(Connection(int(sys.argv[1])), Connection(int(sys.argv[2]), writable=False))

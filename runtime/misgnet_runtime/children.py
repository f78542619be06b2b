"""Child processes that import nothing from the working directory: every child of this project starts here.

A folder that holds data may hold a ``statistics.py`` as well. ``python -m``, ``python -c`` and the standard library's
spawned processes search the working directory first, and an empty entry of PYTHONPATH means it too.
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
    """The command that runs ``module`` as ``python -m`` would, without the working directory on its import path.

    Start it with :func:`environment`. ``python``: the interpreter, which needs none of this project's packages.
    """
    user_site = ["-s"] if sys.flags.no_user_site else []
    return [python, *user_site, str(_START.absolute()), module, *arguments]


def environment(*modules: str, **changes: str) -> dict[str, str]:
    """This process's environment, for a child that imports what this process imports.

    PYTHONPATH becomes this process's import path without the working directory, unless PYTHONPATH names that by its
    absolute path or ``modules`` (or this package) lie there. ``changes`` are added.
    """
    path = os.pathsep.join(import_path(*modules))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path, **changes}


def import_path(*modules: str) -> list[str]:
    """``sys.path`` as a child process gets it, see :func:`environment`."""
    named = {os.path.realpath(e) for e in os.environ.get("PYTHONPATH", "").split(os.pathsep) if _is_absolute(e)}
    here = {os.path.realpath(folder) for folder in (_STARTED_IN, _working_directory()) if folder} - named
    kept = [
        entry
        for entry in sys.path
        if _is_absolute(entry)
        and os.pathsep not in entry  # PYTHONPATH would hold two other entries
        and os.path.realpath(entry) not in here
    ]
    roots = [_root(module) for module in (_PACKAGE, *modules)]
    return list(dict.fromkeys([*kept, *filter(None, roots)]))


@contextmanager
def away_from_working_directory() -> Iterator[None]:
    """Work in the folder of this package's code for a moment: for libraries that put the working directory on the
    import path of processes of their own. Nothing else of this process may run meanwhile."""
    if not hasattr(os, "fchdir"):  # Windows neither opens folders nor removes or moves the working directory
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


_STARTED_IN = _working_directory()  # which the first entry of sys.path may name


def _root(module: str) -> str | None:
    """The folder that the import path must hold for ``module`` to be found; None: not known or not in a folder."""
    spec = find_spec(module.partition(".")[0])
    if spec and spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).absolute().parent)
    return str(Path(spec.origin).absolute().parent) if spec and spec.origin and spec.has_location else None


@dataclass(frozen=True)
class Child:
    """A process that runs a function, and this end of the connection to it. Dropping this object ends the process."""

    process: subprocess.Popen[bytes]
    connection: Connection
    _lifeline: Connection

    def kill(self) -> int:
        """End the process if it still runs, release what belongs to it, and return its exit code."""
        self.process.kill()
        return self.release()

    def release(self) -> int:
        """Wait until the process has ended and return its exit code; negative: the signal that ended it."""
        code = self.process.wait()
        self.connection.close()
        self._lifeline.close()
        return code


def start(target: Callable[..., object], *arguments: object) -> Child:
    """Run ``target(connection, *arguments)`` in a new process, which starts from nothing and not as a fork.

    ``target`` is a function at the top of an importable module. It talks through ``connection``; standard input is
    empty. The process ends when ``target`` returns, and at once when this process ends, however that happens.
    Raises UnavailableError on Windows.
    """
    if os.name == "nt":  # it passes no numbers of open files to other processes
        raise UnavailableError("processes of their own for pairs and workers need Linux or macOS; predict needs none")
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
    with suppress(OSError):  # it ended already: the caller learns that from the connection
        ours.send((target.__module__, target.__qualname__, pickle.dumps(arguments)))
    return child


def _run(connection: Connection, alive: Connection) -> None:
    Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    module, name, arguments = connection.recv()
    getattr(importlib.import_module(module), name)(connection, *pickle.loads(arguments))


def _end_with_parent(alive: Connection) -> None:
    """A parent that was killed leaves no child behind."""
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


if __name__ == "__main__":
    _run(Connection(int(sys.argv[1])), Connection(int(sys.argv[2]), writable=False))

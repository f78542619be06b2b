"""Injects faults at every write: full disk, disk error, short write, kill -9.

Run from the root of the repository:

    python tests/faults                       # every operation, every call that changes a file, each kind of fault
    python tests/faults scene batch           # only these operations
    python tests/faults --points 20           # this number of calls per operation, evenly spread, alternating kinds

Requires a C compiler (``cc``) on Linux. Afterwards each result must be the old one or the new one, the error must be
one of the project's own, and a rerun must succeed. Prints violations; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), *(str(ROOT / part) for part in ("tests", "", "export", "calibration", "runtime"))]

from looking import State
from operations import OPERATIONS, Operation

from misgnet_runtime.errors import MisgnetError

_COUNT, _FAIL, _SHORT, _KILL = range(4)  # as in faults.c
KINDS = {
    "ENOSPC": (_FAIL, errno.ENOSPC, True), "EIO": (_FAIL, errno.EIO, False), "short": (_SHORT, errno.ENOSPC, True),
    "kill": (_KILL, 0, False),
}  # fmt: skip
_OWN_ERROR, _BUG = 2, 3
PATIENCE = 60  # seconds


@dataclass(frozen=True)
class End:
    """How a run ended."""

    # Exit status, or a negative signal number.
    status: int
    # Number of calls that change files.
    calls: int
    # Error message or traceback.
    words: str

    @property
    def well(self) -> bool:
        return self.status == 0


def main() -> int:
    options = _options()
    if "MISGNET_FAULTS" not in os.environ:
        return _preloaded()
    problems = 0
    for name in options.operations:
        problems += _Trial(name, OPERATIONS[name]).all(options.points)
    return 1 if problems else 0


def _preloaded() -> int:
    """Runs this program again with the fault injection library preloaded; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "faults.so")
        options = ["-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"]
        subprocess.run(["cc", *options, "-o", str(library), str(HERE / "faults.c"), "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "MISGNET_FAULTS": folder, "OMP_NUM_THREADS": "1"}
        for variable in ("MISGNET_STATE", "MISGNET_CACHE"):
            environment[variable] = str(Path(folder, variable))
        return subprocess.run([sys.executable, str(HERE), *sys.argv[1:]], env=environment, check=False).returncode


class _Trial:
    """Runs one operation repeatedly from the same initial state."""

    def __init__(self, name: str, operation: Operation) -> None:
        self._name, self._operation = name, operation
        base = Path(os.environ["MISGNET_FAULTS"], name)
        self._template, self.root = base / "template", base / "work"
        self._words = base / "words"
        for module in operation.modules:
            importlib.import_module(module)
        prepared = _child(lambda: operation.prepare(self._template), self._words)
        assert prepared.well, prepared.words
        self._library = ctypes.CDLL(None)

    def all(self, points: int | None) -> int:
        """Runs all faults; returns the number of problems."""
        start, ends = time.monotonic(), Counter[str]()
        self._renew()
        before = self._operation.results(self.root)
        clean = self._run("count", 0)
        assert clean.well, clean.words
        after, calls = self._operation.results(self.root), clean.calls
        assert before != after
        problems = 0
        for kind, number in _plan(calls, points):
            found, end = self._problem(kind, number, before, after)
            ends[end] += 1
            if found:
                problems += 1
                print(f"{self._name}: {kind} at call {number} of {calls}: {found}", flush=True)
        counts = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        print(
            f"{self._name}: {sum(ends.values())} faults at {calls} calls in {time.monotonic() - start:.0f} s: "
            f"{counts}; {problems} problems", flush=True,
        )  # fmt: skip
        return problems

    def _problem(self, kind: str, number: int, before: State, after: State) -> tuple[str | None, str]:
        self._renew()
        end = self._run(kind, number)
        try:
            found = self._check(end, before, after)
        except Exception as error:  # an unreadable result
            found = f"a result is broken: {type(error).__name__}: {error}"
        outcome = {0: "succeeded", _OWN_ERROR: "reported", _BUG: "crashed"}.get(end.status, "killed")
        return (found and f"{found} (outcome of the run: {outcome}) {end.words}"), outcome

    def _check(self, end: End, before: State, after: State) -> str | None:
        if end.status == _BUG:
            return "the error is not one of the project's own"
        if end.status not in (0, _OWN_ERROR, -signal.SIGKILL):
            return f"ended by {end.status}"
        state = self._operation.results(self.root)
        for name in {*before, *after, *state}:
            if state.get(name) not in (before.get(name), after.get(name)):
                return f"{name} is neither old nor new"
        if end.well and state != after:
            return "the run succeeded, but its results are missing"
        again = self._run("count", 0)
        # All results were complete, and only the removal of the progress files was interrupted.
        finished = state == after and "exists; choose another name" in again.words
        if not (again.well or finished):
            return f"the rerun ended with {again.status}: {again.words}"
        if self._operation.results(self.root) != after:
            return "the rerun has different results"
        return None

    def _renew(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._template, self.root, symlinks=True)

    def _run(self, kind: str, number: int) -> End:
        mode, code, stays = KINDS.get(kind, (_COUNT, 0, False))

        def body() -> None:
            self._library.fault_arm(os.fsencode(self.root), ctypes.c_long(number), mode, code, stays)
            self._operation.run(self.root)

        return _child(body, self._words, self._library)


def _child(body: object, words: Path, library: ctypes.CDLL | None = None) -> End:
    """Runs ``body`` in a fork of this process, which has opened no engine yet, for at most 60 s."""
    words.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = _BUG
        try:
            signal.alarm(PATIENCE)
            for stream in (1, 2):  # discard the output of hundreds of runs
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            body()  # type: ignore[operator]
            status = 0
        except MisgnetError as error:
            status = _OWN_ERROR
            words.write_text(str(error))
        except BaseException:
            words.write_text("".join(traceback.format_exc().splitlines(keepends=True)[-14:]))
        finally:
            if library is not None:
                os.write(writing, str(library.fault_count()).encode())
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        calls = int(pipe.read() or b"0")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = words.read_text() if words.exists() else ""
    words.unlink(missing_ok=True)
    return End(status, calls, text)


def _plan(calls: int, points: int | None) -> list[tuple[str, int]]:
    """Returns (kind, call): every kind at every call, or alternating kinds at ``points`` calls."""
    if points is None:
        return [(kind, number) for kind in KINDS for number in range(1, calls + 1)]
    chosen = sorted({1 + index * calls // points for index in range(points)})
    return [(list(KINDS)[index % len(KINDS)], number) for index, number in enumerate(chosen)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/faults", description=__doc__.splitlines()[0])
    parser.add_argument(
        "operations", nargs="*", default=list(OPERATIONS), metavar="OPERATION",
        help=f"Operations to test (default: all): {', '.join(OPERATIONS)}.",
    )  # fmt: skip
    parser.add_argument("--points", type=int, help="Calls per operation (default: every call, with every kind).")
    options = parser.parse_args()
    if unknown := set(options.operations) - set(OPERATIONS):
        parser.error(f"unknown operation: {', '.join(sorted(unknown))}; choose from {', '.join(OPERATIONS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())

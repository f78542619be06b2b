"""Runs guests: child processes that serve requests, usually in a contender's own environment."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from misgnet_runtime.children import environment as child_environment
from misgnet_runtime.children import python_command
from misgnet_runtime.errors import MisgnetError

Reply = dict[str, Any]
GUESTS = Path(__file__).with_name("guests")


class ContenderFailed(MisgnetError):  # noqa: N818 - not always an error
    """A contender could not be installed, crashed, took too long, or returned an invalid result."""


@dataclass(frozen=True)
class Program:
    """The command that starts a guest."""

    # Used in messages.
    name: str
    command: tuple[str, ...]
    # Environment variables.
    environment: Mapping[str, str] = field(repr=False)


def foreign(python: Path, script: str) -> Program:
    """Returns a program that runs a script of ``guests/`` with the interpreter of a contender's environment."""
    return Program(script, (str(python), str(GUESTS / script)), foreign_environment())


def own(module: str, **environment: str) -> Program:
    """Returns a program that runs a module of this checkout with this interpreter; adds ``environment``."""
    command = tuple(python_command(module))
    return Program(module.rpartition(".")[2], command, child_environment(module, **environment))


class Guest:
    """A process that serves requests, see ``guests/exchange.py``. Use it in a ``with`` block.

    Its stderr is appended to ``log``. ``limit_s``: time limit for one request in seconds.
    """

    def __init__(self, program: Program, log: Path, limit_s: float) -> None:
        self._script = program.name
        self._limit_s = limit_s
        self._log = log
        self._paused = False
        with log.open("ab") as stderr:
            self._log_start = stderr.tell()
            self._process = subprocess.Popen(
                program.command, bufsize=0, cwd=log.parent, env=program.environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip

    def call(self, do: str, **request: Any) -> Reply:
        """Sends a request and returns the reply; raises ContenderFailed with the guest's message if it fails."""
        assert self._process.stdin
        line = json.dumps({"do": do, **request}, default=str).encode() + b"\n"
        if self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            raise self._failure() from None
        reply: Reply = json.loads(self._read_line())
        return reply

    def pause(self) -> None:
        """Stops the process until the next request, so that its busy-waiting threads use no CPU time."""
        self._process.send_signal(signal.SIGSTOP)
        self._paused = True

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_line(self) -> bytes:
        """Reads one line from the process as it arrives, with a time limit."""
        assert self._process.stdout
        deadline = time.monotonic() + self._limit_s
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ContenderFailed(f"{self._script} did not reply within {self._limit_s / 60:g} minutes")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._failure()
            line += part
        return line

    def _failure(self) -> ContenderFailed:
        code = self._process.wait()
        with self._log.open("rb") as stderr:
            stderr.seek(self._log_start)
            lines = stderr.read().decode(errors="replace").strip().splitlines() or ["no message"]
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
        return ContenderFailed(f"{self._script} {reason}: {lines[-1].strip()}")


def foreign_environment() -> dict[str, str]:
    """Returns the parent's environment without its import path, so that a guest sees only its own packages."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    # CI: prevents the contenders' libraries from sending usage statistics.
    return {**{k: v for k, v in os.environ.items() if k not in hidden}, "CI": "true", "PYTHONNOUSERSITE": "1"}

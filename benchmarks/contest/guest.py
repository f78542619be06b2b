"""The parent's end of a guest: a process of its own, most often in a contender's own environment."""

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

Answer = dict[str, Any]
GUESTS = Path(__file__).with_name("guests")


class ContenderFailed(MisgnetError):  # noqa: N818 - it may be as it should be
    """A contender could not be installed, crashed, took too long, or answered what is no answer."""


@dataclass(frozen=True)
class Program:
    """How a guest is started: its name in messages, the command, and the environment that it sees."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


def foreign(python: Path, script: str) -> Program:
    """A script of ``guests/`` with the interpreter of a contender's own environment."""
    return Program(script, (str(python), str(GUESTS / script)), foreign_environment())


def own(module: str, **environment: str) -> Program:
    """A module of this checkout with this interpreter and all that it can import; ``environment`` is added."""
    command = tuple(python_command(module))
    return Program(module.rpartition(".")[2], command, child_environment(module, **environment))


class Guest:
    """One process that answers requests, see ``guests/exchange.py``. Use it in a ``with`` block.

    Its words go to the end of ``log``. ``limit_s``: the longest that one request may take, in seconds.
    """

    def __init__(self, program: Program, log: Path, limit_s: float) -> None:
        self._script = program.name
        self._limit_s = limit_s
        self._log = log
        self._paused = False
        with log.open("ab") as words:
            self._start_of_words = words.tell()
            self._process = subprocess.Popen(
                program.command, bufsize=0, cwd=log.parent, env=program.environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words,
            )  # fmt: skip

    def ask(self, do: str, **request: Any) -> Answer:
        """The answer to one request; ContenderFailed in the guest's own words where there is none."""
        assert self._process.stdin
        line = json.dumps({"do": do, **request}, default=str).encode() + b"\n"
        if self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            raise self._failure() from None
        answer: Answer = json.loads(self._read_line())
        return answer

    def pause(self) -> None:
        """Stop the process until it is asked again: threads that look for work all the time take none of others'."""
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
        """One line of the answers: read as it comes, so that a silent guest can be given up."""
        assert self._process.stdout
        deadline = time.monotonic() + self._limit_s
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ContenderFailed(f"{self._script} gave no answer within {self._limit_s / 60:g} minutes")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._failure()
            line += part
        return line

    def _failure(self) -> ContenderFailed:
        code = self._process.wait()
        with self._log.open("rb") as words:
            words.seek(self._start_of_words)
            lines = words.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
        return ContenderFailed(f"{self._script} {ended}: {lines[-1].strip()}")


def foreign_environment() -> dict[str, str]:
    """The parent's environment without its import path: a guest sees its own packages only."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    # CI: the contenders' libraries send no usage statistics then.
    return {**{k: v for k, v in os.environ.items() if k not in hidden}, "CI": "true", "PYTHONNOUSERSITE": "1"}

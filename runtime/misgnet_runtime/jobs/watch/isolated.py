"""Processes pairs in a child process, which is killed if a pair takes longer than ``--max-seconds``."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from misgnet_runtime import errors
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.children import Child, start
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.watch.pairing import FilePair
from misgnet_runtime.jobs.watch.processing import LocalProcessor
from misgnet_runtime.log import EventLog

_OPEN_SECONDS = 600.0  # limit for opening an engine
_MAX_WAIT = 3600.0  # seconds of a single wait for the process


class PairCrashedError(InputError):
    """The child process exited on its own while it processed a pair."""


class UnforeseenError(InputError):
    """An unexpected error; its type is in the message."""


@dataclass(frozen=True)
class Setup:
    """Settings of the child process: the bundle and its expected digest, the signature policy, output and options."""

    bundle: Path
    digest: str
    trust: Trust | None
    output: Path
    options: WatchOptions


@dataclass(frozen=True)
class _Raised:
    """An error of the child process in a form that can be sent."""

    # Class name of a MisgnetError; None for other errors.
    kind: str | None
    message: str
    # The errno of the error or of its cause.
    number: int | None

    @classmethod
    def of(cls, error: Exception) -> _Raised:
        cause = error if isinstance(error, OSError) else error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        if isinstance(error, MisgnetError):
            kind = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
            return cls(kind, str(error), number)
        return cls(None, f"{type(error).__name__}: {error}", number)

    def error(self) -> Exception:
        cause = None if self.number is None else OSError(self.number, os.strerror(self.number))
        if self.kind is None:
            return cause or UnforeseenError(self.message)
        found: MisgnetError = getattr(errors, self.kind)(self.message)
        found.__cause__ = cause
        return found


class IsolatedProcessor:
    """Runs a processor in a child process, which is restarted after it was killed. ``seconds``: limit per pair."""

    def __init__(self, setup: Setup, seconds: float, log: EventLog) -> None:
        self._setup, self._seconds, self._log = setup, seconds, log
        self._child: Child | None = None
        self._pair, self._left, self._end = "", 0.0, 0.0
        self.engine, self.title = self._start()

    def digests(self, pair: FilePair, folder: Path) -> tuple[str, str]:
        self._start_timer(pair)
        found: tuple[str, str] = self._call("digests", pair, folder)
        self._left = self._end - time.monotonic()
        return found

    def process(self, pair: FilePair, folder: Path) -> dict[str, Any]:
        if self._pair != pair.name:
            self._start_timer(pair)
        else:  # time since ``digests``, such as waiting for a disk, does not count towards the pair's limit
            self._end = time.monotonic() + self._left
        self._pair = ""
        found: dict[str, Any] = self._call("process", pair, folder)
        return found

    def recover(self) -> None:
        self._restart()
        self._end = time.monotonic() + _OPEN_SECONDS
        with _engine_errors():
            self._call("check")

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _start(self) -> tuple[str, str]:
        self.close()
        self._child = start(_serve, self._setup)
        self._end = time.monotonic() + _OPEN_SECONDS
        found: tuple[str, str] = self._receive(self._child)
        return found

    def _restart(self) -> None:
        with _engine_errors():
            self._start()

    def _start_timer(self, pair: FilePair) -> None:
        """Starts the time limit of the pair."""
        if self._child is None:
            self._restart()
        self._pair, self._end = pair.name, time.monotonic() + self._seconds

    def _call(self, method: str, *arguments: object) -> Any:
        assert self._child is not None
        with suppress(OSError):  # the process has exited: receiving reports why
            self._child.connection.send((method, arguments))
        try:
            return self._receive(self._child)
        except TimeoutError:
            raise InputError(
                f"not finished within {self._seconds:g} s, so its process was stopped; raise the limit with "
                "--max-seconds"
            ) from None

    def _receive(self, child: Child) -> Any:
        """Returns the next result from the process and forwards its log events; reraises an error of the process.

        Raises:
            TimeoutError: The time limit has passed; the process was killed.
            PairCrashedError: The process has exited.
        """
        try:
            while self._has_reply(child):
                found = child.connection.recv()
                if isinstance(found, _Raised):
                    raise found.error()
                if not isinstance(found, _Event):
                    return found
                self._log.bind(**found.fields).log(found.level, found.message)
        except (EOFError, ConnectionError):
            self._child = None
            raise PairCrashedError(_exit_reason(child.release())) from None
        except (KeyboardInterrupt, SystemExit):
            self.close()
            raise
        self.close()
        raise TimeoutError

    def _has_reply(self, child: Child) -> bool:
        """Waits until the process sends a message or the time limit passes.

        Long limits are split into several waits, because the system rejects very long ones.
        """
        while (left := self._end - time.monotonic()) > 0:
            if child.connection.poll(min(left, _MAX_WAIT)):
                return True
        return False


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Converts any error of reopening and checking an engine to UnavailableError."""
    try:
        yield
    except UnavailableError:
        raise
    except MisgnetError as error:
        raise UnavailableError(f"the engine cannot be reopened: {error}") from error
    except TimeoutError:
        raise UnavailableError(f"the engine cannot be reopened within {_OPEN_SECONDS:g} s") from None


@dataclass(frozen=True)
class _Event:
    """A log event of the child process."""

    level: int
    message: str
    fields: dict[str, object]


class _Forward(logging.Handler):
    """Sends log events to the parent process."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(_Event(record.levelno, record.getMessage(), getattr(record, "fields", {})))


def _serve(connection: Connection, setup: Setup) -> None:
    """Runs the child process: opens the bundle, then executes the calls that it receives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills this process
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logger = logging.Logger("misgnet.watch", logging.INFO)
    logger.addHandler(_Forward(connection))
    try:
        processor = _opened(setup, EventLog(logger))
    except Exception as error:
        connection.send(_Raised.of(error))
        return
    connection.send((processor.engine, processor.title))
    with suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            connection.send(_done(partial(getattr(processor, method), *arguments)))


def _done(work: Callable[[], object]) -> object:
    try:
        return work()
    except Exception as error:
        return _Raised.of(error)


def _opened(setup: Setup, log: EventLog) -> LocalProcessor:
    bundle, options = read_bundle(setup.bundle, setup.trust), setup.options
    if bundle.digest() != setup.digest:
        raise UnavailableError(
            f"bundle {bundle.name} differs from the bundle with which the watcher was started; restart the watcher"
        )
    scene = options.scene
    return LocalProcessor(
        bundle, lambda name: open_detector(bundle, name, scene.execution, optimise_for=scene.optimise_for),
        setup.output, options, log,
    )  # fmt: skip


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"its process exited with code {code}"
    memory = "; possibly out of memory" if -code == signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{memory}"

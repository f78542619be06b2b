"""Pairs in a process of their own, which is ended where one takes longer than ``--max-seconds``."""

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

_PATIENCE = 600.0  # seconds that opening an engine may take
_LONGEST_WAIT = 3600.0  # seconds of one wait for the process


class PairCrashedError(InputError):
    """The process of a pair ended, and nobody ended it."""


class UnforeseenError(InputError):
    """What nobody foresaw, with its type in the message."""


@dataclass(frozen=True)
class Setup:
    """What the process opens: the bundle, its digest, by whom it must be signed; and what it does with pairs."""

    bundle: Path
    digest: str
    trust: Trust | None
    output: Path
    options: WatchOptions


@dataclass(frozen=True)
class _Raised:
    """An error that the process met, as far as it can be sent: a MisgnetError's class or none, and its errno."""

    kind: str | None
    message: str
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
    """A processor in a process that is started again when it was ended. ``seconds``: of each pair, at most."""

    def __init__(self, setup: Setup, seconds: float, log: EventLog) -> None:
        self._setup, self._seconds, self._log = setup, seconds, log
        self._child: Child | None = None
        self._pair, self._left, self._end = "", 0.0, 0.0
        self.engine, self.title = self._start()

    def digests(self, pair: FilePair, folder: Path) -> tuple[str, str]:
        self._begin(pair)
        found: tuple[str, str] = self._ask("digests", pair, folder)
        self._left = self._end - time.monotonic()
        return found

    def process(self, pair: FilePair, folder: Path) -> dict[str, Any]:
        if self._pair != pair.name:
            self._begin(pair)
        else:  # what a disk refused since then takes nothing of the pair's time
            self._end = time.monotonic() + self._left
        self._pair = ""
        found: dict[str, Any] = self._ask("process", pair, folder)
        return found

    def recover(self) -> None:
        self._restart()
        self._end = time.monotonic() + _PATIENCE
        with _engine_errors():
            self._ask("check")

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _start(self) -> tuple[str, str]:
        self.close()
        self._child = start(_serve, self._setup)
        self._end = time.monotonic() + _PATIENCE
        found: tuple[str, str] = self._answer(self._child)
        return found

    def _restart(self) -> None:
        with _engine_errors():
            self._start()

    def _begin(self, pair: FilePair) -> None:
        """The time of the pair runs from here."""
        if self._child is None:
            self._restart()
        self._pair, self._end = pair.name, time.monotonic() + self._seconds

    def _ask(self, method: str, *arguments: object) -> Any:
        assert self._child is not None
        with suppress(OSError):  # it has ended: the answer says how
            self._child.connection.send((method, arguments))
        try:
            return self._answer(self._child)
        except TimeoutError:
            raise InputError(
                f"it was not finished within {self._seconds:g} s, and its process was ended; allow more with "
                "--max-seconds"
            ) from None

    def _answer(self, child: Child) -> Any:
        """What the process sends next, events aside; raises what it raised.

        Raises TimeoutError where it takes too long and PairCrashedError where it ended; then it is gone.
        """
        try:
            while self._has_answer(child):
                found = child.connection.recv()
                if isinstance(found, _Raised):
                    raise found.error()
                if not isinstance(found, _Event):
                    return found
                self._log.bind(**found.fields).log(found.level, found.message)
        except (EOFError, ConnectionError):
            self._child = None
            raise PairCrashedError(_last_words(child.release())) from None
        except (KeyboardInterrupt, SystemExit):
            self.close()
            raise
        self.close()
        raise TimeoutError

    def _has_answer(self, child: Child) -> bool:
        """Wait until the process sends something, or its time is over; the system takes no wait of weeks."""
        while (left := self._end - time.monotonic()) > 0:
            if child.connection.poll(min(left, _LONGEST_WAIT)):
                return True
        return False


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Around opening and checking an engine again: UnavailableError for whatever goes wrong."""
    try:
        yield
    except UnavailableError:
        raise
    except MisgnetError as error:
        raise UnavailableError(f"the engine does not open again: {error}") from error
    except TimeoutError:
        raise UnavailableError(f"the engine does not open again within {_PATIENCE:g} s") from None


@dataclass(frozen=True)
class _Event:
    """Something that the process logs."""

    level: int
    message: str
    fields: dict[str, object]


class _Forward(logging.Handler):
    """Sends what is logged to the parent."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(_Event(record.levelno, record.getMessage(), getattr(record, "fields", {})))


def _serve(connection: Connection, setup: Setup) -> None:
    """The life of the process: it opens the bundle, then does what it is asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
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
        raise UnavailableError(f"bundle {bundle.name} is another one than where the watch began; start it again")
    scene = options.scene
    return LocalProcessor(
        bundle, lambda name: open_detector(bundle, name, scene.execution, optimise_for=scene.optimise_for),
        setup.output, options, log,
    )  # fmt: skip


def _last_words(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    memory = "; out of memory, maybe" if -code == signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-code).name}{memory}"

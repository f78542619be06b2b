"""Progress of a build, and how an interrupt ends it.

No exception may travel through the vendor's native code: one is kept here, the build is told to stop,
and the builder's caller raises it afterwards.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Progress = Callable[[str, int, int], None]


class Cancellation:
    """The exception that a build must end with, once there is one."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def raise_if_any(self) -> None:
        if self.error is not None:
            raise self.error


def make_monitor(module: Any, progress: Progress | None, cancellation: Cancellation) -> Any:
    """An ``IProgressMonitor`` of the vendor module.

    It calls ``progress(phase, steps done, steps in all)``; phases nest and their names are the vendor's.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)  # pybind11 wants the base initialised by name
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return cancellation.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            if progress is None or cancellation.error is not None:
                return
            try:
                progress(phase, done, self._steps.get(phase, done))
            except BaseException as error:
                cancellation.error = error

    return Monitor()


@contextmanager
def deferred_interrupt(cancellation: Cancellation) -> Iterator[None]:
    """Turn a first Ctrl-C into a kept KeyboardInterrupt; a second one acts as it did before.

    Python runs signal handlers between its own instructions, so a build notices at its next callback.
    Outside the main thread, or where SIGINT is not Python's, nothing is changed.
    """
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if in_main else None
    if not callable(previous):
        yield
        return

    def keep(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        cancellation.error = KeyboardInterrupt()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

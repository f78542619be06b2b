"""Reports the progress of a build, and stops it on an interrupt.

No exception may propagate through the vendor's native code: it is stored, the build is stopped at its next callback,
and the caller of the builder raises the exception afterwards.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Progress = Callable[[str, int, int], None]
Share = Callable[[float], None]  # called with the fraction of the build that is done, 0 to 1, never decreasing


class Cancellation:
    """Holds the exception that stops a build, or None."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def raise_if_any(self) -> None:
        if self.error is not None:
            raise self.error


class Phases:
    """The running phases of a build; each is a part of one step of its parent phase."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[str | None, int, int]] = {}  # by name: parent, steps done, steps in total
        self._reported = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._steps[name] = parent, 0, steps

    def step(self, name: str, done: int) -> None:
        parent, _, steps = self._steps.get(name, (None, 0, done))
        self._steps[name] = parent, done, steps

    def finish(self, name: str) -> None:
        self._steps.pop(name, None)

    def of(self, name: str) -> int:
        """Returns the total number of steps of a phase."""
        return self._steps[name][2]

    def share(self) -> float:
        """Returns the fraction of the outermost phase that is done, 0 to 1; it never decreases."""
        outermost = next((name for name, (parent, _, _) in self._steps.items() if parent is None), None)
        if outermost is not None:
            self._reported = max(self._reported, self._share(outermost))
        return self._reported

    def _share(self, name: str) -> float:
        _, done, steps = self._steps[name]
        within = sum(self._share(inner) for inner, (parent, _, _) in self._steps.items() if parent == name)
        return min(1.0, (done + min(1.0, within)) / max(1, steps))


def make_monitor(module: Any, progress: Progress | None, cancellation: Cancellation, share: Share | None = None) -> Any:
    """Creates an ``IProgressMonitor`` of the vendor module.

    It calls ``progress(phase, steps done, steps in total)``; phases nest, and TensorRT names them.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)  # pybind11 requires the base to be initialised by name
            self._phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step + 1)
            self._report(phase_name, step + 1)
            return cancellation.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

        def _report(self, phase: str, done: int) -> None:
            if cancellation.error is not None:
                return
            try:
                if progress is not None:
                    progress(phase, done, self._phases.of(phase))
                if share is not None:
                    share(self._phases.share())
            except BaseException as error:
                cancellation.error = error

    return Monitor()


@contextmanager
def deferred_interrupt(cancellation: Cancellation) -> Iterator[None]:
    """Stores the first Ctrl-C in ``cancellation`` as a KeyboardInterrupt; a second one acts as before.

    Python runs signal handlers between its own instructions, so a build stops at its next callback.
    Does nothing outside the main thread, or if SIGINT is not handled by Python.
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

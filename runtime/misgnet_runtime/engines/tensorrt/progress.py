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
Share = Callable[[float], None]  # told how much of the whole is done, 0 to 1, ever more


class Cancellation:
    """The exception that a build must end with, once there is one."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def raise_if_any(self) -> None:
        if self.error is not None:
            raise self.error


class Phases:
    """The phases that are under way, each a part of a step of the one that it was started in."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[str | None, int, int]] = {}  # by name: parent, steps done, steps in all
        self._told = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._steps[name] = parent, 0, steps

    def step(self, name: str, done: int) -> None:
        parent, _, steps = self._steps.get(name, (None, 0, done))
        self._steps[name] = parent, done, steps

    def finish(self, name: str) -> None:
        self._steps.pop(name, None)

    def of(self, name: str) -> int:
        """The steps of a phase in all."""
        return self._steps[name][2]

    def share(self) -> float:
        """How much of the outermost phase is done, 0 to 1; it never falls."""
        outermost = next((name for name, (parent, _, _) in self._steps.items() if parent is None), None)
        if outermost is not None:
            self._told = max(self._told, self._share(outermost))
        return self._told

    def _share(self, name: str) -> float:
        _, done, steps = self._steps[name]
        within = sum(self._share(inner) for inner, (parent, _, _) in self._steps.items() if parent == name)
        return min(1.0, (done + min(1.0, within)) / max(1, steps))


def make_monitor(module: Any, progress: Progress | None, cancellation: Cancellation, share: Share | None = None) -> Any:
    """An ``IProgressMonitor`` of the vendor module.

    It calls ``progress(phase, steps done, steps in all)``; phases nest and their names are the vendor's.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)  # pybind11 wants the base initialised by name
            self._phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step + 1)
            self._tell(phase_name, step + 1)
            return cancellation.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

        def _tell(self, phase: str, done: int) -> None:
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

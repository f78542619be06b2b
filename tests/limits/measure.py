"""Measures the processor time and memory for reading a file, each time in a new process."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

CPU_SECONDS = int(os.environ.get("MISGNET_CPU_SECONDS", "60"))  # the system kills a reader that takes more
ADDRESS_SPACE = 6 << 30  # limit for the reader, to protect other processes on the machine


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A measurement."""

    family: str
    # Whether the file is over a limit.
    over: bool
    # Processor time.
    seconds: float
    # MiB in addition to those used before.
    resident: float
    virtual: float
    # "read", the type and message of the project's error, or "broken" and the reason.
    end: str

    def line(self) -> str:
        name = f"{self.family}{', over the limit' if self.over else ''}"
        return f"| {name} | {self.seconds:.1f} | {self.resident:.0f} | {self.virtual:.0f} | {self.end[:100]} |"


def measured(families: list[str], folder: Path) -> Iterator[Reading]:
    """Yields a measurement of each family at its limit and over it; families with the same reader share its imports."""
    from families import FAMILIES

    prepared: dict[Callable[[Path], object], Callable[[Path], object]] = {}
    for family in families:
        found, path = FAMILIES[family], folder / "file"
        for over in (False, True) if found.has_over else (False,):
            for old in folder.glob("file*"):
                old.unlink()
            _in_a_child(partial(_make, found.make, path, over))
            if found.prepare not in prepared:
                home = folder / str(len(prepared))
                home.mkdir()
                prepared[found.prepare] = found.prepare(home)
            code, words = _in_a_child(partial(_measure, partial(prepared[found.prepare], path)))
            figures = json.loads(words) if code == 0 else (CPU_SECONDS, 0, 0, f"broken: killed by signal {-code}")
            seconds, resident, virtual, end = figures
            yield Reading(family=family, over=over, seconds=seconds, resident=resident, virtual=virtual, end=end)


def _make(make: Callable[[Path, bool], None], path: Path, over: bool) -> str:
    make(path, over)
    return ""


def _in_a_child(call: Callable[[], str]) -> tuple[int, str]:
    """Runs ``call`` in a forked process, to separate its memory; returns the exit status and the result."""
    source, sink = os.pipe()
    if child := os.fork():
        os.close(sink)
        with os.fdopen(source) as file:
            words = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words
    status = 1
    try:
        with os.fdopen(sink, "w") as file, redirect_stdout(sys.stderr):
            file.write(call())
        status = 0
    finally:
        os._exit(status)


def _measure(read: Callable[[], object]) -> str:
    from misgnet_runtime.errors import MisgnetError

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_memory()[1] + ADDRESS_SPACE,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the current use
    before, start = _memory(), _seconds()
    try:
        read()
        end = "read"
    except MisgnetError as error:
        end = f"{type(error).__name__}: {str(error)[:300]}"
    except BaseException as error:
        end = f"broken by {type(error).__name__}: {str(error)[:300]}"
    seconds, after = _seconds() - start, _memory(peak=True)
    resident, virtual = (max(0, then - now) / 2**20 for now, then in zip(before, after, strict=True))
    return json.dumps((round(seconds, 2), round(resident, 1), round(virtual, 1), end))


def _seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _memory(peak: bool = False) -> tuple[int, int]:
    """Returns the resident and virtual bytes, current or peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = ("VmHWM", "VmPeak") if peak else ("VmRSS", "VmSize")
    return tuple(int(lines[name].split()[0]) << 10 for name in names)  # type: ignore[return-value]


def as_json(reading: Reading) -> str:
    return json.dumps(asdict(reading))

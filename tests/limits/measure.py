"""What reading a file takes: processor time and memory, each time in a process of its own."""

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

CPU_SECONDS = int(os.environ.get("MISGNET_CPU_SECONDS", "60"))  # the system ends a reader that takes more
ADDRESS_SPACE = 6 << 30  # and gives it no more memory: the machine is not the reader's alone


@dataclass(frozen=True, kw_only=True)
class Reading:
    """``seconds`` of processor time; ``resident`` and ``virtual``: MiB beyond what the process had before; ``end``:
    the kind of the project's error and its message, "read", or what broke a promise."""

    family: str
    over: bool
    seconds: float
    resident: float
    virtual: float
    end: str

    def line(self) -> str:
        words = f"{self.family}{', over' if self.over else ''}"
        return f"| {words} | {self.seconds:.1f} | {self.resident:.0f} | {self.virtual:.0f} | {self.end[:100]} |"


def measured(families: list[str], folder: Path) -> Iterator[Reading]:
    """Each of ``families``, at its largest and over its limit; those of one reader share what it imports."""
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
            figures = json.loads(words) if code == 0 else (CPU_SECONDS, 0, 0, f"broken: ended by {-code}")
            seconds, resident, virtual, end = figures
            yield Reading(family=family, over=over, seconds=seconds, resident=resident, virtual=virtual, end=end)


def _make(make: Callable[[Path, bool], None], path: Path, over: bool) -> str:
    make(path, over)
    return ""


def _in_a_child(call: Callable[[], str]) -> tuple[int, str]:
    """The exit status and the words of ``call`` in another process: its memory is not the reader's."""
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
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
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
    """Resident and virtual bytes, now or at their peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = ("VmHWM", "VmPeak") if peak else ("VmRSS", "VmSize")
    return tuple(int(lines[name].split()[0]) << 10 for name in names)  # type: ignore[return-value]


def as_json(reading: Reading) -> str:
    return json.dumps(asdict(reading))

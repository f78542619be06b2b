"""What reading one file takes: processor time and memory, in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU_SECONDS = 100  # the system ends a reader that takes more
ADDRESS_SPACE = 6 << 30  # and gives it no more memory: this machine is not the reader's alone


@dataclass(frozen=True)
class Reading:
    """``seconds`` of processor time; ``resident`` and ``virtual``: MiB beyond what the process had before; ``end``:
    the kind of the project's error, "read", or what broke a promise."""

    seconds: float
    resident: float
    virtual: float
    end: str


def measure(family: str, folder: Path, *, over: bool = False) -> Reading:
    """Make a file of ``family`` in ``folder``, and read it in a new process; ``over``: just above a limit."""
    command = [sys.executable, str(HERE), "--read", family, "--folder", str(folder), *(["--over"] if over else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # each thread would have a stack and an arena
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        how = "no end" if ended.returncode == -24 else f"exit {ended.returncode}: {ended.stderr.strip()[-300:]}"
        return Reading(CPU_SECONDS, 0, 0, how)
    return Reading(**json.loads(ended.stdout.splitlines()[-1]))


def read_here(family: str, folder: Path, over: bool) -> str:
    """The child's part: make the file, read a good one, then measure; a line of JSON."""
    from families import FAMILIES

    from misgnet_runtime.errors import MisgnetError

    found = FAMILIES[family]
    read = found.prepare(folder)
    found.make(folder / "file", over)
    _limit()
    before, start = _memory(), _seconds()
    try:
        read(folder / "file")
        end = "read"
    except MisgnetError as error:
        end = f"{type(error).__name__}: {str(error)[:200]}"
    except BaseException as error:
        end = f"broken by {type(error).__name__}: {str(error)[:200]}"
    seconds, after = _seconds() - start, _memory(peak=True)
    resident, virtual = (max(0, then - now) / 2**20 for now, then in zip(before, after, strict=True))
    return json.dumps(asdict(Reading(round(seconds, 2), round(resident, 1), round(virtual, 1), end)))


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(_seconds()) + CPU_SECONDS, int(_seconds()) + CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_memory()[1] + ADDRESS_SPACE,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew


def _seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _memory(peak: bool = False) -> tuple[int, int]:
    """Resident and virtual bytes, now or at their peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = ("VmHWM", "VmPeak") if peak else ("VmRSS", "VmSize")
    return tuple(int(lines[name].split()[0]) << 10 for name in names)  # type: ignore[return-value]

"""The watcher's process: started, ended, started again, and measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATIENCE = 60  # seconds for a watcher that was asked to end


class Supervisor:
    """Starts the watcher whenever it has ended."""

    def __init__(self, root: Path, broken: str | None) -> None:
        self._root = root
        self._asked: int | None = None  # the signal that it was sent last
        self._asked_at = 0.0
        self._environment = {
            **os.environ, "PYTHONPATH": str(ROOT / "runtime"), "OMP_NUM_THREADS": "1", "SOAK_BROKEN": broken or "",
            "MISGNET_CACHE": str(root / "cache"),
        }  # fmt: skip
        self.ends: Counter[str] = Counter()
        self.memory: list[tuple[int, int]] = []  # MiB of a process that has run for seconds
        self.events, self.words = root / "events.jsonl", root / "words.jsonl"
        self._start()

    def look(self) -> None:
        """Start the watcher where it has ended, and measure its memory."""
        code = self._process.poll()
        if code is None and self._asked and time.monotonic() - self._asked_at > PATIENCE:
            self.ends[f"no end in {PATIENCE} s"] += 1
            self._process.kill()
            self._process.wait()
            self._asked = None
            self._start()
        elif code is None:
            self._measure()
        else:
            self.ends[self._name(code)] += 1
            self._asked = None
            self._start()

    def signal(self, name: str) -> None:
        """Not twice; and it is asked to end only where it can hear that, when its imports are done."""
        if self._process.poll() is None and self._asked is None and (name == "KILL" or self._is_watching()):
            self._asked = getattr(signal, f"SIG{name}")
            self._asked_at = time.monotonic()
            self._process.send_signal(self._asked)

    def end(self) -> str:
        """Ask the watcher to end, and say how it did."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._name(self._process.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            return f"nothing in {PATIENCE} s"
        finally:
            self._process.kill()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _start(self) -> None:
        command = [
            sys.executable, HERE / "watcher.py", "watch", self._root / "bundle", self._root / "in", "-o",
            self._root / "out", "--poll", "0.05", "--settle", "0.3", "--log", "json",
        ]  # fmt: skip
        with self.events.open("ab") as events, self.words.open("ab") as words:
            self._said = words.tell()
            self._process = subprocess.Popen(
                list(map(str, command)), env=self._environment, stdout=events, stderr=words
            )
        self._since = time.monotonic()

    def _is_watching(self) -> bool:
        with self.words.open("rb") as words:
            words.seek(self._said)
            return b'"watching ' in words.read()

    def _name(self, code: int) -> str:
        if code == -signal.SIGKILL and self._asked != signal.SIGKILL:
            return "crash"
        return f"code {code}" if code >= 0 else signal.Signals(-code).name

    def _measure(self) -> None:
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return
        found = [int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS:")]
        self.memory += [(int(time.monotonic() - self._since), size) for size in found]

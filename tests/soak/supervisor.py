"""Starts, stops, restarts and measures the watcher's process."""

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
PATIENCE = 60  # seconds for a watcher to exit after SIGTERM


class Supervisor:
    """Keeps the watcher running."""

    def __init__(self, root: Path, broken: str | None) -> None:
        self._root = root
        self._last_signal: int | None = None  # the last signal sent to the current process
        self._signalled_at = 0.0
        self._environment = {
            **os.environ, "PYTHONPATH": str(ROOT / "runtime"), "OMP_NUM_THREADS": "1", "SOAK_BROKEN": broken or "",
            "MISGNET_CACHE": str(root / "cache"),
        }  # fmt: skip
        self.ends: Counter[str] = Counter()
        self.memory: list[tuple[int, int]] = []  # (age of the process in seconds, MiB)
        self.events, self.log = root / "events.jsonl", root / "words.jsonl"
        self._start()

    def supervise(self) -> None:
        """Restarts the watcher if it has exited; otherwise measures its memory."""
        code = self._process.poll()
        if code is None and self._last_signal and time.monotonic() - self._signalled_at > PATIENCE:
            self.ends[f"no exit in {PATIENCE} s"] += 1
            self._process.kill()
            self._process.wait()
            self._last_signal = None
            self._start()
        elif code is None:
            self._measure()
        else:
            self.ends[self._name(code)] += 1
            self._last_signal = None
            self._start()

    def signal(self, name: str) -> None:
        """Sends a signal, once per process; SIGTERM only after the imports, when the watcher handles it."""
        if self._process.poll() is None and self._last_signal is None and (name == "KILL" or self._is_watching()):
            self._last_signal = getattr(signal, f"SIG{name}")
            self._signalled_at = time.monotonic()
            self._process.send_signal(self._last_signal)

    def end(self) -> str:
        """Stops the watcher with SIGTERM; returns how it exited."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._name(self._process.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            return f"no exit in {PATIENCE} s"
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
        with self.events.open("ab") as events, self.log.open("ab") as words:
            self._log_start = words.tell()
            self._process = subprocess.Popen(
                list(map(str, command)), env=self._environment, stdout=events, stderr=words
            )
        self._since = time.monotonic()

    def _is_watching(self) -> bool:
        with self.log.open("rb") as words:
            words.seek(self._log_start)
            return b'"watching ' in words.read()

    def _name(self, code: int) -> str:
        if code == -signal.SIGKILL and self._last_signal != signal.SIGKILL:
            return "crash"
        return f"code {code}" if code >= 0 else signal.Signals(-code).name

    def _measure(self) -> None:
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return
        found = [int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS:")]
        self.memory += [(int(time.monotonic() - self._since), size) for size in found]

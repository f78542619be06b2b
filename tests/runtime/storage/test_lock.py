"""Tests that waiting for a lock is logged once and ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import LockTimeoutError, UsageError
from misgnet_runtime.storage import lock
from support.commands import exit_code
from support.logs import Collected
from support.paths import ROOT


@pytest.fixture(autouse=True)
def default_timeout() -> Iterator[None]:
    yield
    lock.use_lock_timeout(lock.DEFAULT_TIMEOUT)


@pytest.fixture
def handles(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Returns two descriptors of the same file."""
    (tmp_path / "f").touch()
    first, second = (os.open(tmp_path / "f", os.O_RDONLY) for _ in range(2))
    yield first, second
    os.close(second)


def test_waiting_for_a_held_lock_ends_with_the_timeout(
    handles: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Collected()
    monkeypatch.setattr(lock, "current", lambda: seen.log)
    lock.use_lock_timeout(0.3)
    lock.acquire(handles[0], Path("bundle"), "another build")
    start = time.monotonic()
    with pytest.raises(LockTimeoutError, match=r"bundle is still locked after 0.3 s: another build;.*--lock-timeout"):
        lock.acquire(handles[1], Path("bundle"), "another build")
    assert 0.3 <= time.monotonic() - start < 5
    assert seen.messages == ["waiting for the lock on bundle: another build"]
    os.close(handles[0])


def test_released_lock_is_acquired(handles: tuple[int, int]) -> None:
    lock.acquire(handles[0], Path("x"), "y")
    assert not lock.try_acquire(handles[1])
    threading.Timer(0.3, os.close, [handles[0]]).start()
    lock.acquire(handles[1], Path("x"), "y")


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys, time, fcntl; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "f"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with (tmp_path / "f").open() as file:
            assert not lock.try_acquire(file.fileno())
            process.kill()
            process.wait()
            assert lock.try_acquire(file.fileno())


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_invalid_timeout_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="--lock-timeout"):
        lock.use_lock_timeout(seconds)


def test_command_accepts_lock_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(cli.main, "misgnet-run", "info", "/nowhere", "--lock-timeout", "7") == 4
    assert lock.lock_timeout() == 7


def test_only_one_module_imports_system_locks() -> None:
    """No other module imports fcntl, which Windows lacks."""
    root = ROOT
    files = [
        path for folder in ("runtime", "export", "calibration", "misgnet") for path in (root / folder).rglob("*.py")
    ]
    pattern = re.compile(r"^\s*(import|from) (fcntl|msvcrt)\b", re.MULTILINE)
    found = {path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == {"lock.py"} and len(files) > 200

"""Tests the time limit: shares of the parts, and commands that are ended."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from gpu.budget import SHARES, WRITING, Budget, run_command
from gpu.record import PARTS

LIMIT = 720.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_shares_add_up_to_the_limit(clock: Clock) -> None:
    assert set(SHARES) == set(PARTS) and sum(SHARES.values()) == pytest.approx(1)
    budget = Budget(LIMIT, PARTS, clock.now, clock)
    assert budget.left("driver") == pytest.approx(SHARES["driver"] * (LIMIT - WRITING))
    assert budget.left("network") == pytest.approx(LIMIT - WRITING)


def test_what_a_part_leaves_over_is_for_the_next(clock: Clock) -> None:
    budget = Budget(LIMIT, PARTS, clock.now, clock)
    both = budget.left("engines")
    clock.now += 10
    assert budget.left("engines") == pytest.approx(both - 10)
    clock.now += both
    assert budget.left("engines") == 0
    assert budget.left("network") == pytest.approx(LIMIT - WRITING - both - 10)
    clock.now += LIMIT
    assert budget.left("network") == 0


def test_a_part_alone_has_the_whole_time(clock: Clock) -> None:
    assert Budget(100, ("network",), clock.now, clock).left("network") == pytest.approx(100 - WRITING)


def test_a_command_reports_code_and_output(tmp_path: Path) -> None:
    script = "import os, sys; print(os.getcwd()); print('no GPU', file=sys.stderr); sys.exit(5)"
    done = run_command([sys.executable, "-c", script], 60, tmp_path, os.environ)
    assert done.code == 5 and done.last_line == "no GPU" and str(tmp_path) in done.output


def test_a_command_and_its_children_end_at_the_limit(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    script = f"import subprocess, sys; print('began', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    done = run_command([sys.executable, "-c", script], 1.5, tmp_path, os.environ)
    assert done.code is None and time.monotonic() - start < 3.5
    time.sleep(max(0.0, start + 6 - time.monotonic()))
    assert not (tmp_path / "late").exists()

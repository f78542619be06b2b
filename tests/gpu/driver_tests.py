"""Part 1: runs the tests of the CUDA driver layer and of TensorRT on this machine's GPU."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from gpu.budget import Budget, run_command
from gpu.record import DriverTests, Outcome, Step

MODULES = ("tests/runtime/engines/test_cuda.py", "tests/runtime/engines/test_engines.py", "tests/gpu/test_driver.py")
# "[real": parameters of the tests that use a library which finds a GPU, see tests/support/gpu.py
SELECTED = "[real or TestTensorRTHere or TestOnnxRuntimeOnCudaHere or machines_gpu"


def run_driver_tests(
    checkout: Path, work: Path, budget: Budget, environment: Mapping[str, str]
) -> tuple[Step, DriverTests | None]:
    """Runs the tests; no results if pytest is missing or was killed at the end of its time."""
    report = work / "driver.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SELECTED, f"--junitxml={report}"]
    done = run_command([*command, *MODULES], budget.left("driver"), checkout, environment)
    name = "tests of the CUDA driver layer"
    if done.code is None:
        return Step(part="driver", name=name, outcome="out of time", seconds=done.seconds), None
    if not report.is_file():
        return Step(part="driver", name=name, outcome="failed", reason=done.last_line, seconds=done.seconds), None
    tests = read_junit(report.read_bytes())
    outcome, reason = outcome_of(tests)
    return Step(part="driver", name=name, outcome=outcome, reason=reason, seconds=done.seconds), tests


def outcome_of(tests: DriverTests) -> tuple[Outcome, str]:
    """Returns the outcome and its reason; without a library for CUDA every test is skipped."""
    if tests.failed:
        return "failed", "; ".join(f"{test}: {message}" for test, message in tests.failed.items())
    if not tests.passed:
        return "not supported", "; ".join(dict.fromkeys(tests.skipped.values())) or "no test was found"
    return "passed", ""


def read_junit(data: bytes) -> DriverTests:
    """Reads the results from pytest's own JUnit report."""
    passed: list[str] = []
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for case in ElementTree.fromstring(data).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"
        problem = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        if problem is not None:
            failed[name] = problem.get("message", "").partition("\n")[0]
        elif (reason := case.find("skipped")) is not None:
            skipped[name] = reason.get("message", "").partition("\n")[0]
        else:
            passed.append(name)
    return DriverTests(passed=passed, failed=failed, skipped=skipped)

"""What all tests share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from misgnet_runtime.bundle.signing.policy import use_allow_older, use_key

# One thread is enough for tests, and many times faster where other work runs on the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What was tuned on this machine changes no test; the folder is not there.
os.environ["MISGNET_CACHE"] = str(Path(__file__).with_name("no-cache"))
for variable in ("MISGNET_REQUIRE_SIGNATURE", "MISGNET_POLICY"):
    os.environ.pop(variable, None)

with suppress(ImportError):  # most tests do without it
    import hypothesis

    # How long an example takes says more about the machine than about the code.
    hypothesis.settings.register_profile("project", deadline=None)
    hypothesis.settings.load_profile("project")

COMPILER = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "jinja2", "matplotlib", "safetensors", "sympy"}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Where only the runtime is installed, as by ``dev.py lowest``, modules that import the compiler's needs skip.

    Nowhere else: with PyTorch there, a package that is missing is an error.
    """
    report = yield
    lacking = missing_package(report)
    if lacking in COMPILER and importlib.util.find_spec("torch") is None:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {lacking} is not installed: the compiler's tests")
    return report


def missing_package(report: pytest.CollectReport) -> str | None:
    """Of the import that ended the collection of a module."""
    call = getattr(report, "call", None)
    error = call.excinfo.value if report.failed and call and call.excinfo else None
    cause = error and (error if isinstance(error, ModuleNotFoundError) else error.__cause__)
    return cause.name.partition(".")[0] if isinstance(cause, ModuleNotFoundError) and cause.name else None


@pytest.fixture(autouse=True)
def nothing_is_required() -> Iterator[None]:
    """What a command of one test requires of signatures holds for its process, which is that of all tests."""
    yield
    use_key(None)
    use_allow_older(False)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder that holds ``reference/``, the published network's answers; skips where it is not."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared"
    folder = Path(os.environ.get("MISGNET_REFERENCE", default))
    if not (folder / "reference" / "golden_logits.npz").is_file():
        pytest.skip("the reference folder is not here; name it in MISGNET_REFERENCE")
    return folder

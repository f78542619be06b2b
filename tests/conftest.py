"""Sets up the environment, hooks and fixtures that all tests share."""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from misgnet_runtime.bundle.signing.policy import use_allow_older, use_key

# One thread is enough for tests, and much faster while other work runs on the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Settings tuned on this machine must not affect tests, and tests must not fill the user's cache.
CACHE = tempfile.TemporaryDirectory(prefix="misgnet-tests-")
os.environ["MISGNET_CACHE"] = str(Path(CACHE.name, "cache"))
for variable in ("MISGNET_REQUIRE_SIGNATURE", "MISGNET_POLICY"):
    os.environ.pop(variable, None)

with suppress(ImportError):  # most tests do not need it
    import hypothesis

    # The time of an example depends more on the machine than on the code.
    hypothesis.settings.register_profile("project", deadline=None)
    hypothesis.settings.load_profile("project")

COMPILER = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "jinja2", "matplotlib", "safetensors", "sympy"}

# Files that take longest, longest first: a process that gets one of them last would run alone at the end.
LONGEST = (
    "test_build", "test_soak", "test_limits", "test_run", "test_commands", "test_faults", "test_qat", "test_export",
    "test_fuzz", "test_series", "test_closed_pipe", "test_output_text", "test_watch_survives", "test_scene_predict",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the longest files to the front; dev.py makes the processes take files in this order."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Leaves what the imported modules hold out of garbage collections, of which each compiled plan runs a full one."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skips test modules that need the compiler's packages if only the runtime is installed, as by ``dev.py lowest``.

    If PyTorch is installed, a missing package is an error.
    """
    report = yield
    lacking = missing_package(report)
    if lacking in COMPILER and importlib.util.find_spec("torch") is None:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {lacking} is not installed: the compiler's tests")
    return report


def missing_package(report: pytest.CollectReport) -> str | None:
    """Returns the package whose failed import ended the collection of a module, or None."""
    call = getattr(report, "call", None)
    error = call.excinfo.value if report.failed and call and call.excinfo else None
    cause = error and (error if isinstance(error, ModuleNotFoundError) else error.__cause__)
    return cause.name.partition(".")[0] if isinstance(cause, ModuleNotFoundError) and cause.name else None


@pytest.fixture(autouse=True)
def no_signature_is_required() -> Iterator[None]:
    """Resets the signature options, which a command sets for its process: all tests run in the same process."""
    yield
    use_key(None)
    use_allow_older(False)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Returns the folder with ``reference/``, the published network's outputs; skips if it is missing."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared"
    folder = Path(os.environ.get("MISGNET_REFERENCE", default))
    if not (folder / "reference" / "golden_logits.npz").is_file():
        pytest.skip("the reference folder is missing; set MISGNET_REFERENCE to it")
    return folder

"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from misgnet_runtime.trust.policy import use_allow_older, use_key

# One thread is enough for tests, and many times faster where other work runs on the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What was tuned on this machine changes no test; the folder is not there.
os.environ["MISGNET_CACHE"] = str(Path(__file__).with_name("no-cache"))
for variable in ("MISGNET_REQUIRE_SIGNATURE", "MISGNET_POLICY"):
    os.environ.pop(variable, None)


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

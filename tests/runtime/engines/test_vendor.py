"""Tests of loading a vendor module, of its versions and of its log; none of them needs one installed."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan
from misgnet_runtime.engines.tensorrt.bindings import parse_version, same_version
from misgnet_runtime.engines.tensorrt.logger import VendorLog, counted
from misgnet_runtime.errors import UnavailableError, UsageError
from support.fake_cuda import FakeDriver
from support.fake_tensorrt import make_tensorrt


@pytest.mark.parametrize(("vendor", "module"), [("rtx", "tensorrt_rtx"), ("tensorrt", "tensorrt")])
@pytest.mark.parametrize("error", [ImportError("no such module"), OSError("libnvinfer.so: cannot open")])
def test_a_missing_vendor_is_reported_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, vendor: str, module: str, error: Exception
) -> None:
    real = importlib.import_module

    def fail(name: str, package: str | None = None) -> Any:
        if name == module:
            raise error
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UnavailableError) as caught:
        compile_plan(b"", PlanOptions(vendor=vendor))
    found = str(caught.value)
    assert module in found and str(error) in found and f"pip install 'misgnet-export[{vendor}]'" in found
    assert caught.value.exit_code == 5


def test_tensorrt_without_a_cuda_library_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt("10.3.0", FakeDriver()))
    for library in (
        "cuda",
        "cuda.bindings",
        "cuda.bindings.runtime",
        "cuda.cudart",
        "pycuda",
        "pycuda.driver",
    ):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UnavailableError, match=r"this machine's GPU.*pip install cuda-python") as caught:
        compile_plan(b"", PlanOptions(vendor="tensorrt"))
    assert caught.value.exit_code == 5


def test_an_unknown_vendor_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown vendor 'openvino'; the vendors are rtx, tensorrt"):
        PlanOptions(vendor="openvino")


def test_versions_are_parsed_and_compared() -> None:
    assert parse_version("10.16.0rc1") == (10, 16, 0)
    assert parse_version("1.7.1.116") == (1, 7, 1, 116)
    assert same_version("10.3.0", "10.3.0.30")
    assert not same_version("10.3.0.26", "10.3.0.30")
    assert not same_version("10.3.0", "10.16.0")


def test_the_log_shortens_messages_and_counts_repeats() -> None:
    log = VendorLog()
    log.add("INFO", "ignored")
    log.add("WARNING", " slow scale\n")
    log.add("WARNING", " slow scale\n")
    log.add("ERROR", "Error Code 4: bad (x must be y. In checkType at /_src/optimizer/nodeBase.cpp:456)\nmore")
    log.add("INTERNAL_ERROR", "z" * 1000)
    assert counted(log.warnings) == ("slow scale (x2)",)
    assert log.errors[0] == "Error Code 4: bad (x must be y); more"
    assert len(log.errors[1]) == 240
    assert log.last_errors(1) == log.errors[1]

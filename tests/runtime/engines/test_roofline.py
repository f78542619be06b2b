"""Tests the roofline model of a plan's kernels, and the table of GPUs."""

from __future__ import annotations

import re

import pytest

from misgnet_runtime.engines.tensorrt.layers import Kernel
from misgnet_runtime.engines.tensorrt.roofline import GPUS, Gpu, roofline, rooflines

GPU = Gpu(name="a GPU", compute_capability="sm86", bandwidth=100, float16=10, int8=20, source="")


def kernel(moved: int | None, macs: int | None, precision: str = "float16") -> Kernel:
    return Kernel("k", "decode1", "product", precision, 0, moved, 0, macs)  # type: ignore[arg-type]


def test_each_kernel_takes_the_longer_of_its_two_times() -> None:
    moving = kernel(200_000_000, 500_000_000)  # 2 ms by its bytes, 0.1 ms by its operations
    computing = kernel(50_000_000, 20_000_000_000)  # 0.5 ms, 4 ms
    found = roofline([moving, computing], GPU)
    assert found is not None
    assert found.milliseconds == pytest.approx(2 + 4)
    assert found.arithmetic_share == pytest.approx((0.1 + 4) / 6)


@pytest.mark.parametrize(("precision", "milliseconds"), [("int8", 0.5), ("float16", 1), ("float32", 4), ("other", 4)])
def test_operations_run_at_the_peak_of_their_precision(precision: str, milliseconds: float) -> None:
    found = roofline([kernel(0, 5_000_000_000, precision)], GPU)
    assert found is not None and found.milliseconds == pytest.approx(milliseconds)
    assert found.arithmetic_share == pytest.approx(1)


def test_unknown_sizes_have_no_roofline() -> None:
    assert roofline([kernel(None, 1)], GPU) is None
    assert roofline([kernel(1, 1), kernel(1, None)], GPU) is None
    assert roofline([], GPU) is None


def test_gpus_of_the_plans_compute_capabilities_are_listed() -> None:
    found = rooflines([kernel(1_000_000, 1)], ("sm86", "sm120"))
    capabilities = {gpu.name: gpu.compute_capability for gpu in GPUS}
    assert {capabilities[one.gpu] for one in found} == {"sm86", "sm120"}
    assert rooflines([kernel(1, 1)], ("sm75",)) == []


def test_the_table_is_complete_and_consistent() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    for gpu in GPUS:
        assert re.fullmatch(r"sm\d+", gpu.compute_capability) and gpu.source
        assert 50 < gpu.bandwidth < 5000
        assert gpu.int8 == pytest.approx(2 * gpu.float16, rel=0.01), gpu.name

"""Tests that the kernels of TensorRT for RTX are kept in a private folder and found by the next process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misgnet_runtime import log
from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan, kernel_cache
from misgnet_runtime.engines.tensorrt.compatibility import this_platform
from misgnet_runtime.engines.tensorrt.engine import open_plan
from misgnet_runtime.engines.tensorrt.open import open_plan_of
from support import fake_tensorrt
from support.fake_cuda import FakeDriver
from support.fake_tensorrt import make_tensorrt, model

OPTIONS = PlanOptions(vendor="rtx", compute_capabilities=("sm87",), profiles=((1, 1, 1), (4, 4, 4)))


@pytest.fixture(autouse=True)
def text_log() -> None:
    log.use("text")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the cache's folder, which does not exist yet."""
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


class Rtx:
    """TensorRT for RTX, as in a fresh process at each use; counts the kernels that are compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = FakeDriver("sm87")
        self.module = make_tensorrt("1.7.1", self.driver, rtx=True)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", self.module)
        self.plan = compile_plan(model(), OPTIONS, driver=self.driver).data

    def run(self, *batches: int, plan: bytes | None = None, streams: int = 1) -> int:
        """Runs batches in an engine of its own; returns how many kernels were compiled."""
        before = self.module.observed.kernels
        with open_plan(plan or self.plan, "rtx", self.driver, streams=streams, keep_kernels=True) as engine:
            for batch in batches:
                arrays = {name: np.full((batch, 4, 4, 3), 51, np.uint8) for name in ("before", "after")}
                arrays["after"][:] = 0
                np.testing.assert_allclose(engine.infer(arrays)["probability"], 0.2, atol=1e-6)
        assert self.driver.empty
        return int(self.module.observed.kernels - before)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Rtx:
    return Rtx(monkeypatch)


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.kernels")
    return path


def test_kernels_are_compiled_once(folder: Path, rtx: Rtx, capsys: pytest.CaptureFixture[str]) -> None:
    assert rtx.run(1, 4) == 2
    first = only_file(folder).stat().st_mtime_ns
    assert rtx.run(4, 1, 3, streams=2) == 0
    assert only_file(folder).stat().st_mtime_ns == first, "nothing was added"
    assert capsys.readouterr().err == ""
    assert oct(folder.stat().st_mode)[-3:] == "700"


def test_kernels_of_further_batches_are_added(folder: Path, rtx: Rtx) -> None:
    assert [rtx.run(1), rtx.run(4), rtx.run(1, 4)] == [1, 1, 0]
    assert only_file(folder)


def test_an_engine_without_work_writes_nothing_new(folder: Path, rtx: Rtx) -> None:
    rtx.run(1)
    first = only_file(folder).stat().st_mtime_ns
    rtx.run()
    assert only_file(folder).stat().st_mtime_ns == first


def test_each_plan_gpu_and_version_has_its_own_kernels(folder: Path, rtx: Rtx, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx.run(1)
    assert rtx.run(1, plan=compile_plan(model(), OPTIONS, driver=rtx.driver).data) == 1
    device = rtx.driver.device()
    monkeypatch.setattr(rtx.driver, "device", lambda: type(device)("Another GPU", "sm87", 1 << 30))
    assert rtx.run(1) == 1
    assert len(list(folder.iterdir())) == 3


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def let_others_write(path: Path) -> None:
    path.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (damage, "its contents do not match its digest"),
        (lambda path: os.truncate(path, 100), "its contents do not match its digest"),
        (lambda path: os.truncate(path, 0), "its contents do not match its digest"),
        (let_others_write, "is open to other users (mode 0777)"),
    ],
)
def test_kernels_that_may_have_been_changed_are_reported_and_never_loaded(
    folder: Path, rtx: Rtx, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object], problem: str,
) -> None:  # fmt: skip
    rtx.run(1)
    change(only_file(folder))
    with monkeypatch.context() as patch:
        patch.setattr(fake_tensorrt.RuntimeCache, "deserialize", lambda *_: pytest.fail("it was loaded"))
        assert rtx.run(1) == 1
    warned = capsys.readouterr().err
    assert "warning: kernels are compiled again: those in the cache are not used: " in warned and problem in warned


def test_damaged_kernels_are_replaced(folder: Path, rtx: Rtx) -> None:
    rtx.run(1)
    damage(only_file(folder))
    assert [rtx.run(1), rtx.run(1)] == [1, 0]


def test_kernels_that_the_library_refuses_are_replaced(
    folder: Path, rtx: Rtx, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx.run(1)
    with monkeypatch.context() as patch:
        patch.setattr(fake_tensorrt.RuntimeCache, "deserialize", lambda *_: False)
        assert rtx.run(1) == 1
    assert "kernels are compiled again: those in the cache are for another driver" in capsys.readouterr().err
    assert rtx.run(1) == 0


def test_an_unwritable_cache_is_reported_and_the_engine_runs(
    folder: Path, rtx: Rtx, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert rtx.run(1) == 1
    noted = capsys.readouterr().err
    assert noted.startswith("the compiled kernels are not kept for the next run: ") and "No space left" in noted


def test_without_a_cache_folder_nothing_is_reported(
    rtx: Rtx, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("MISGNET_CACHE", ""), ("XDG_CACHE_HOME", ""), ("HOME", "relative")):
        monkeypatch.setenv(name, value)
    assert rtx.run(1) == 1
    assert capsys.readouterr().err == ""


def test_kernels_that_are_too_large_are_not_kept(folder: Path, rtx: Rtx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "COMPILED_KERNELS_BYTES", 10)
    rtx.run(1)
    assert not folder.exists()


def test_the_oldest_kernels_make_room(folder: Path, rtx: Rtx, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx.run(1)
    first = only_file(folder)
    os.utime(first, (1, 1))
    monkeypatch.setattr(kernel_cache, "COMPILED_KERNELS_TOTAL_BYTES", 1.5 * first.stat().st_size)
    rtx.run(1, plan=compile_plan(model(), OPTIONS, driver=rtx.driver).data)
    assert only_file(folder) != first


def test_a_version_without_a_runtime_cache_compiles_each_time(
    folder: Path, rtx: Rtx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fake_tensorrt.RuntimeConfig, "create_runtime_cache")
    rtx.run(1)
    assert not folder.exists()


def test_only_kernels_of_a_finished_bundle_are_kept(folder: Path, rtx: Rtx, tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(rtx.plan)
    entry = EngineEntry("rtx", "rtx", "a.plan", "a.onnx", "float16", "1.7.1", ["sm87"], this_platform())
    files = CheckedFiles(tmp_path)
    arrays: Any = {name: np.zeros((1, 4, 4, 3), np.uint8) for name in ("before", "after")}
    with open_plan_of(entry, files, 1, rtx.driver) as engine:
        engine.infer(arrays)
    assert not folder.exists()
    files.manifest_sha256 = "0" * 64
    with open_plan_of(entry, files, 1, rtx.driver) as engine:
        engine.infer(arrays)
    assert only_file(folder)

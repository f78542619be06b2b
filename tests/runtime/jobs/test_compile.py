"""Tests ``misgnet-run compile``: building, verifying and storing plans, with fakes of TensorRT 10.3 to 11 and CUDA."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from misgnet_runtime import log
from misgnet_runtime.accuracy.evaluation_tiles import read_evaluation, write_evaluation
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.engines.tensorrt import compatibility
from misgnet_runtime.engines.tensorrt import open as opening
from misgnet_runtime.engines.tensorrt import plan_cache as store
from misgnet_runtime.engines.tensorrt.plan_cache import Activation, PlanStore
from misgnet_runtime.errors import GateFailed, InputError, LockTimeoutError, StorageError, UnavailableError, UsageError
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.self_test import verify_bundle
from misgnet_runtime.inference.split_detector import open_split
from misgnet_runtime.jobs.compile import run as run_module
from misgnet_runtime.jobs.compile.memory import LEAST, builder_memory
from misgnet_runtime.jobs.compile.options import CompileOptions
from misgnet_runtime.jobs.compile.progress import BuildProgress, duration, seconds_left
from misgnet_runtime.jobs.compile.run import compile_bundle
from misgnet_runtime.storage import lock
from misgnet_runtime.storage.private import PrivateFolder
from support import fake_tensorrt
from support.bundles import FLOAT, INT8, RTX, TILE, edit, expected, images, make_bundle, write_image
from support.commands import exit_code
from support.device_bundles import DEVICE, GRAPH, SPLIT, THRESHOLD, described, device_bundle, evaluation_tiles
from support.fake_cuda import FakeDriver
from support.fake_tensorrt import make_tensorrt
from support.logs import Collected

VERSIONS = ("10.3.0", "10.16.1", "11.1.0")
FREE = 1 << 30
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log.use("text")
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return use_driver(FakeDriver("sm87", memory=FREE), monkeypatch)


def use_driver(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    for module in (run_module, opening):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    return driver


def install(version: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, *, rtx: bool = False) -> Any:
    module = make_tensorrt(version, driver, rtx=rtx)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def tensorrt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install("10.3.0", driver, monkeypatch)


def check_output(bundle: Path, engine: str = DEVICE.name) -> None:
    """Checks that the engine runs here and computes the same as the network."""
    before, after = images(2, TILE, TILE, seed=9)
    with open_detector(read_bundle(bundle), engine, ExecutionOptions(streams=1)) as (detector, _, _):
        np.testing.assert_allclose(detector.probability(before, after), expected(before, after), atol=1e-6)


def kept(folder: Path) -> list[str]:
    """Returns the file extensions in the cache."""
    return sorted(path.name.rpartition(".")[2] for path in folder.iterdir()) if folder.is_dir() else []


# Compiling, verifying and using plans


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workspace", "0"), "--workspace is '0'; expected a whole number of MiB, 1 or more"),
        (("--workspace", "a lot"), "--workspace is 'a lot'; expected a whole number of MiB"),
        (("--optimization-level", "6"), "--optimization-level is 6; expected 0 to 5"),
        (("--min-f1-ratio", "0.9", "--max-f1-drop", "1"), "--max-f1-drop 1 and --min-f1-ratio 0.9 were both given"),
        (("--min-f1-ratio", "2"), "--min-f1-ratio is 2; it must be more than 0 and at most 1"),
        (("--max-f1-drop", "1"), "has no evaluation tiles, so no gate runs here; build it with --ship-eval"),
    ],
)
def test_invalid_options_of_compile_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = exit_code(cli.main, "misgnet-run", "compile", device_bundle(tmp_path / "bundle"), *arguments)
    assert code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_the_suggested_command_names_the_original_bundle_path(tmp_path: Path, tensorrt: Any) -> None:
    """A signed bundle may be opened as a private copy, which no longer exists when the user runs the command."""
    bundle = read_bundle(device_bundle(tmp_path / "copy"))
    bundle.files.name = Path("/media/stick")
    wanted = r"run there: misgnet-run compile /media/stick --engine jetson-orin$"
    with pytest.raises(UnavailableError, match=wanted), open_detector(bundle, DEVICE.name):
        pass


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_is_compiled_verified_and_then_used(
    tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, cache: Path, version: str
) -> None:
    module = install(version, driver, monkeypatch)
    bundle = device_bundle(tmp_path / "bundle", tiles=5)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    command = rf"misgnet-run compile {bundle} --engine jetson-orin$"
    with pytest.raises(UnavailableError, match=f"must be compiled on the device; run there: {command}"):
        check_output(bundle)
    (activation,), _ = compile_bundle(bundle, CompileOptions())
    check_output(bundle)
    assert activation.parity.verdict.passed and activation.parity.interval.sources == 3
    assert activation.golden == "jetson-orin: 100.000 % of the golden tiles' pixels agree"
    (record,) = activation.plans.values()
    assert record.key.vendor_version == version and record.cuda_driver == "12.6"
    assert record.compatibility.memory_bytes(1) > record.size > 0
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert kept(cache) == ["json"] * 3 + ["plan", "timing"]
    assert module.observed.flags == {"10.3.0": 2, "10.16.1": 4, "11.1.0": 0}[version], "strongly typed"
    assert driver.empty


def test_a_plan_is_found_after_the_bundle_was_moved_but_not_for_another_bundle(tmp_path: Path, tensorrt: Any) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    check_output(bundle.rename(tmp_path / "renamed"))
    other = edit(device_bundle(tmp_path / "other"), lambda values: values.update(bundle_version=2))
    with pytest.raises(UnavailableError, match="must be compiled on the device"):
        check_output(other)
    assert tensorrt.observed.builds == 1
    compile_bundle(other, CompileOptions())
    assert tensorrt.observed.builds == 1, "the graph is the same, so its plan is verified for this bundle, too"
    check_output(other)


def test_a_cached_plan_is_used_only_for_the_same_options(tmp_path: Path, tensorrt: Any) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    for options, builds in (
        (CompileOptions(), 1),
        (CompileOptions(), 1),
        (CompileOptions(workspace_bytes=100 << 20), 2),
        (CompileOptions(optimization_level=5), 3),
        (CompileOptions(), 3),
        (CompileOptions(again=True), 4),
        (CompileOptions(), 4),
    ):
        compile_bundle(bundle, options)
        assert tensorrt.observed.builds == builds
    check_output(bundle)


def test_build_memory_is_limited_by_free_memory(tmp_path: Path, tensorrt: Any, driver: FakeDriver) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    assert tensorrt.observed.config.pools == {"WORKSPACE": FREE // 4, "TACTIC_DRAM": FREE // 2}  # a power of 2
    compile_bundle(bundle, CompileOptions(workspace_bytes=64 << 20))
    assert tensorrt.observed.config.pools["WORKSPACE"] == 64 << 20


def test_an_integrated_gpu_is_limited_by_free_system_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = use_driver(FakeDriver("sm87", memory=FREE, integrated=True), monkeypatch)
    install("10.3.0", driver, monkeypatch)
    free = partial(compatibility.free_bytes, system_memory=lambda: LEAST - 1)
    monkeypatch.setattr(run_module, "free_bytes", free)
    with pytest.raises(
        UnavailableError, match=r"512 MiB of memory are free, but a build requires 512 MiB; stop other programs"
    ):
        compile_bundle(device_bundle(tmp_path / "bundle"), CompileOptions())


def test_a_cached_plan_requires_no_memory_for_a_build(
    tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    tensorrt.driver = use_driver(FakeDriver("sm87", memory=64 << 20), monkeypatch)
    compile_bundle(bundle, CompileOptions())
    with pytest.raises(UnavailableError, match="a build requires 512 MiB"):
        compile_bundle(bundle, CompileOptions(again=True))
    check_output(bundle)


def test_memory_limits_of_a_build_follow_the_free_memory() -> None:
    nano = builder_memory(2400 << 20)
    assert (nano.workspace_bytes, nano.builder_bytes) == (600 << 20, 1800 << 20)
    assert builder_memory(2400 << 20, 5).workspace_bytes == 5
    with pytest.raises(
        UsageError, match="--workspace is 1801 MiB, but a build may use at most 1800 MiB of the 2400 MiB that are free"
    ):
        builder_memory(2400 << 20, 1801 << 20)


def test_all_parts_of_a_split_engine_are_compiled(tmp_path: Path, tensorrt: Any, cache: Path) -> None:
    bundle = device_bundle(tmp_path / "bundle", SPLIT)
    (activation,), _ = compile_bundle(bundle, CompileOptions())
    assert activation.golden.endswith("encoder and head, run separately, agree with the whole graph in 100.000 %")
    assert len(activation.plans) == 3 and kept(cache) == ["json"] * 5 + ["plan"] * 3 + ["timing"]
    before, after = images(2, TILE, TILE, seed=9)
    opened = read_bundle(bundle)
    with open_split(opened, opened.engine_entry(SPLIT.name)) as parts:
        np.testing.assert_allclose(parts.probability(before, after), expected(before, after), atol=1e-6)
    check_output(bundle)
    assert list(verify_bundle(bundle, SPLIT.name))[1] == activation.golden


# Plans that fail verification


def test_a_plan_that_misses_the_golden_tiles_is_never_kept(
    tmp_path: Path, tensorrt: Any, cache: Path, driver: FakeDriver
) -> None:
    bundle = device_bundle(tmp_path / "bundle", flip=True)
    with pytest.raises(GateFailed, match=r"golden tiles in only .*; no plan that failed is used") as caught:
        compile_bundle(bundle, CompileOptions())
    assert caught.value.exit_code == 3
    assert kept(cache) == ["timing"]
    assert driver.empty
    with pytest.raises(UnavailableError, match="must be compiled on the device"):
        check_output(bundle)


def test_a_plan_that_fails_the_gate_is_never_kept(tmp_path: Path, tensorrt: Any, cache: Path) -> None:
    bundle = device_bundle(tmp_path / "bundle", tiles=4, wrong=True)
    with pytest.raises(GateFailed, match=r"fails the gate on this device: F1 drop \+\d+.* more than the allowed 0\.5"):
        compile_bundle(bundle, CompileOptions())
    assert kept(cache) == ["timing"]


def test_the_gate_uses_the_ratio_of_the_bundle_or_the_requested_limit(tmp_path: Path, tensorrt: Any) -> None:
    bundle = described(device_bundle(tmp_path / "bundle", tiles=3, wrong=True), max_f1_drop=None, min_f1_ratio=0.999)
    with pytest.raises(GateFailed, match=r"F1 ratio 0\.\d{5}, less than the required 0\.999"):
        compile_bundle(bundle, CompileOptions())
    with pytest.raises(GateFailed, match=r"less than the required 0\.95"):
        compile_bundle(bundle, CompileOptions(min_f1_ratio=0.95))
    (activation,), _ = compile_bundle(bundle, CompileOptions(max_f1_drop=100.0))
    assert activation.parity.verdict.passed and activation.parity.verdict.limit == 100
    assert 0 <= activation.parity.f1_ratio < 0.95 and activation.parity.ratio_interval.sources == 2


def test_an_engine_that_outputs_nan_fails(
    tmp_path: Path, tensorrt: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = device_bundle(tmp_path / "bundle", tiles=2)
    real = fake_tensorrt._network
    monkeypatch.setattr(fake_tensorrt, "_network", lambda arrays: {k: v * np.nan for k, v in real(arrays).items()})
    with pytest.raises(GateFailed, match=r"in only 0\.00 % of pixels"):
        compile_bundle(bundle, CompileOptions())
    assert kept(cache) == ["timing"]


def invert_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the device compute wrong outputs from now on."""
    real = fake_tensorrt._network
    monkeypatch.setattr(fake_tensorrt, "_network", lambda arrays: {k: 1 - v for k, v in real(arrays).items()})


def test_the_active_plan_stays_active_if_a_new_plan_fails(
    tmp_path: Path, tensorrt: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    before = sorted(cache.glob("*.plan")) + sorted(cache.glob("*.json"))
    with monkeypatch.context() as patch:
        invert_outputs(patch)
        with pytest.raises(GateFailed):
            compile_bundle(bundle, CompileOptions(again=True))
    assert sorted(cache.glob("*.plan")) + sorted(cache.glob("*.json")) == before
    check_output(bundle)


def test_an_active_plan_that_fails_reverification_is_removed(
    tmp_path: Path, tensorrt: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    invert_outputs(monkeypatch)
    with pytest.raises(GateFailed):
        compile_bundle(bundle, CompileOptions())
    assert [path.name[:7] for path in cache.iterdir() if path.suffix != ".timing"] == ["choice-"]
    with pytest.raises(UnavailableError, match="must be compiled on the device"):
        check_output(bundle)


@pytest.mark.parametrize("message", ["build: out of memory"])
def test_a_failed_build_suggests_a_remedy(tmp_path: Path, tensorrt: Any, cache: Path, message: str) -> None:
    bundle = device_bundle(tmp_path / "bundle", graph=fake_tensorrt.model(size=TILE, error=message))
    with pytest.raises(UnavailableError, match=r"out of memory; if memory was insufficient, .* another --workspace"):
        compile_bundle(bundle, CompileOptions())
    assert kept(cache) == []


# Preflight


def test_a_plan_of_another_tensorrt_version_is_refused_with_the_command_to_rebuild(
    tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3.0", driver, monkeypatch)
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    module = install("10.16.1", driver, monkeypatch)
    real, module.Runtime = module.Runtime, None  # deserialising would fail
    rebuild = rf"rebuild with: misgnet-run compile {bundle} --engine jetson-orin$"
    misfit = r"built by tensorrt 10\.3\.0, the installed version is 10\.16\.1"
    with pytest.raises(UnavailableError, match=f"{misfit}; {rebuild}"):
        check_output(bundle)
    module.Runtime = real
    compile_bundle(bundle, CompileOptions())
    check_output(bundle)


def test_a_plan_is_refused_by_an_older_driver_and_can_be_recompiled_with_it(
    tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    use_driver(FakeDriver("sm87", memory=FREE, version="12.2"), monkeypatch)
    tensorrt.driver = opening.open_driver()
    message = r"driver for CUDA 12\.6, this driver is for CUDA 12\.2; rebuild with: mis"
    with pytest.raises(UnavailableError, match=message):
        check_output(bundle)
    compile_bundle(bundle, CompileOptions())
    assert tensorrt.observed.builds == 2
    check_output(bundle)


def test_a_plan_that_does_not_fit_into_memory_is_refused(
    tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    (activation,), _ = compile_bundle(bundle, CompileOptions())
    needed = activation.plans[GRAPH].compatibility.memory_bytes(1)
    tensorrt.driver = use_driver(FakeDriver("sm87", memory=needed - 1), monkeypatch)
    with pytest.raises(UnavailableError, match="does not fit into free GPU memory: with 1 stream it takes"):
        check_output(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"compute_capabilities": ["sm110"]},
            r"is for sm110, but this GPU is sm87 \(Fake GPU\); build a bundle for this device with",
        ),
        ({"platform": "linux-riscv"}, "is for linux-riscv, but this machine is linux-"),
    ],
)
def test_an_engine_for_another_device_is_refused_before_the_build(
    tmp_path: Path, tensorrt: Any, cache: Path, change: dict[str, Any], message: str
) -> None:
    bundle = device_bundle(tmp_path / "bundle", replace(DEVICE, **change))
    with pytest.raises(UnavailableError, match=message):
        compile_bundle(bundle, CompileOptions())
    assert tensorrt.observed.builds == 0 and not cache.exists()


def test_only_engines_for_this_device_are_compiled(
    tmp_path: Path, tensorrt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    thor = replace(DEVICE, name="jetson-thor", compute_capabilities=["sm110"])
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT, thor, DEVICE])
    (bundle / GRAPH).write_bytes(fake_tensorrt.model(size=TILE))
    described(bundle)
    (activation,), _ = compile_bundle(bundle, CompileOptions())
    assert activation.slot.engine == "jetson-orin"
    assert (
        "engine jetson-thor is skipped: engine jetson-thor is for sm110, but this GPU is sm87 (Fake GPU)"
        in capsys.readouterr().err
    )
    with pytest.raises(UnavailableError, match="jetson-thor is for sm110"):
        compile_bundle(bundle, CompileOptions(engines=("jetson-orin", "jetson-thor")))


def test_an_engine_whose_library_is_missing_is_skipped_unless_requested(
    tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT, replace(DEVICE, name="rtx", kind="rtx"), DEVICE])
    (bundle / GRAPH).write_bytes(fake_tensorrt.model(size=TILE))
    described(bundle)
    compile_bundle(bundle, CompileOptions())
    assert "engine rtx is skipped: TensorRT for RTX was requested, but importing" in capsys.readouterr().err
    with pytest.raises(UnavailableError, match="importing tensorrt_rtx failed"):
        compile_bundle(bundle, CompileOptions(engines=("rtx",)))


def test_a_bundles_own_plan_for_another_gpu_can_be_recompiled_here(
    tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("1.7.1", driver, monkeypatch, rtx=True)
    entry = replace(RTX, platform=compatibility.this_platform(), vendor_version="1.7.1")
    bundle = device_bundle(tmp_path / "bundle", entry)
    command = rf"misgnet-run compile {bundle} --engine rtx-sm86$"
    with pytest.raises(UnavailableError, match=rf"built for sm86, this GPU is sm87; rebuild with: {command}"):
        check_output(bundle, "rtx-sm86")
    with pytest.raises(
        UsageError, match=r"no engine marked for compilation on the device; misgnet-run tune .*--engine: rtx-sm86"
    ):
        compile_bundle(bundle, CompileOptions())
    compile_bundle(bundle, CompileOptions(engines=("rtx-sm86",)))
    check_output(bundle, "rtx-sm86")


def test_an_engine_without_a_plan_is_refused(tmp_path: Path, tensorrt: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8])
    with pytest.raises(UsageError, match="engine cpu runs its graph directly"):
        compile_bundle(bundle, CompileOptions(engines=("cpu",)))
    with pytest.raises(UsageError, match="it has no TensorRT engines"):
        compile_bundle(bundle, CompileOptions())


def test_the_real_tensorrt_for_rtx_compiles_until_a_driver_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    use_driver(FakeDriver("sm86", memory=FREE), monkeypatch)
    entry = replace(DEVICE, name="rtx-sm86", kind="rtx", compute_capabilities=["sm86"], file=FLOAT.graph)
    bundle = described(make_bundle(tmp_path / "bundle", engines=[FLOAT, replace(entry, graph=FLOAT.graph)]))
    with pytest.raises(UnavailableError, match=r"TensorRT for RTX .* cannot open the plan on Fake GPU"):
        compile_bundle(bundle, CompileOptions())
    errors = capsys.readouterr().err
    assert "rtx-sm86: compiled in " in errors and "running the golden tiles and the gate on Fake GPU" in errors
    assert kept(cache) == []


# The plan cache


def only(folder: Path, end: str) -> Path:
    (path,) = folder.glob(f"*{end}")
    return path


def flip(position: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    return change


@pytest.mark.parametrize("change", [flip(0), flip(100), flip(-1), Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("end", [".plan", "active"])
def test_damage_is_found_before_deserialisation_and_compile_repairs_it(
    tmp_path: Path, tensorrt: Any, cache: Path, change: Callable[[Path], object], end: str
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    change(only(cache, ".plan") if end == ".plan" else next(cache.glob("active-*")))
    real, tensorrt.Runtime = tensorrt.Runtime, None
    with pytest.raises((InputError, UnavailableError), match="misgnet-run compile"):
        check_output(bundle)
    tensorrt.Runtime = real
    compile_bundle(bundle, CompileOptions())
    check_output(bundle)


def test_a_damaged_record_or_timing_cache_causes_a_rebuild(
    tmp_path: Path, tensorrt: Any, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    (record,) = (path for path in cache.glob("*.json") if "-" not in path.name)
    for path in (record, only(cache, ".timing")):
        flip(-1)(path)
    compile_bundle(bundle, CompileOptions())
    assert tensorrt.observed.builds == 2
    errors = capsys.readouterr().err
    assert "its contents do not match its digest" in errors and "timing cache not read: " in errors
    check_output(bundle)


def test_a_cache_folder_writable_by_others_is_refused(tmp_path: Path, tensorrt: Any, cache: Path) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    cache.chmod(0o777)
    tensorrt.Runtime = None
    with pytest.raises(InputError, match=r"plans is open to other users \(mode 0777\)"):
        check_output(bundle)
    with pytest.raises(InputError, match=r"plans is open to other users \(mode 0777\)"):
        compile_bundle(bundle, CompileOptions())


def test_the_bundles_own_plan_runs_if_the_cache_cannot_be_used(
    tmp_path: Path, tensorrt: Any, driver: FakeDriver, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = replace(
        DEVICE, compiled="by the build", file="engines/rtx.plan", vendor_version="10.3.0",
        platform=compatibility.this_platform(),
    )  # fmt: skip
    bundle = device_bundle(tmp_path / "bundle", entry)
    plan = tensorrt_plan(driver)
    (bundle / "engines/rtx.plan").write_bytes(plan)
    described(bundle)
    check_output(bundle)
    cache.mkdir(parents=True, mode=0o777)
    cache.chmod(0o777)
    check_output(bundle)
    errors = capsys.readouterr().err
    assert "warning: engine jetson-orin uses the bundle's own plan: " in errors and "misgnet-run compile" in errors


def tensorrt_plan(driver: FakeDriver) -> bytes:
    from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan

    return compile_plan(
        fake_tensorrt.model(size=TILE), PlanOptions(vendor="tensorrt", profiles=((1, 4, 4),)), driver=driver
    ).data


def test_a_second_build_waits_for_the_first_one(tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_timeout", 0.1)
    bundle = device_bundle(tmp_path / "bundle")
    plans = PlanStore()
    plans.prepare()
    with plans.compiling(), pytest.raises(LockTimeoutError, match="another process of this user compiles plans; wait"):
        compile_bundle(bundle, CompileOptions())


def test_unused_files_are_removed_and_used_plans_are_kept(tmp_path: Path, tensorrt: Any, cache: Path) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    for name in (".x.plan.abc.plan", "f" * 64 + ".plan"):
        (cache / name).write_bytes(b"left")
    other = edit(device_bundle(tmp_path / "other"), lambda values: values.update(bundle_version=2))
    compile_bundle(other, CompileOptions(again=True))
    assert kept(cache).count("plan") == 2, (
        "the plan of the first bundle is referenced only by that bundle's active entry"
    )
    check_output(bundle)
    check_output(other)


# Faults: afterwards either the old plan or the new plan is active


class Killer:
    """Calls ``end``, which kills the process or raises, at the ``moment``-th writing step."""

    def __init__(self, moment: int, end: Callable[[], None]) -> None:
        self.moment, self.end, self.seen = moment, end, 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        from misgnet_runtime.storage import atomic as outputs

        for owner, name in (
            (Path, "write_bytes"), (Path, "chmod"), (Path, "replace"), (outputs, "sync"), (outputs.tempfile, "mkstemp"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.seen += 1
            if self.seen == self.moment:
                self.end()
            return real(*arguments, **named)

        return call


def active_plan(bundle: Path, driver: FakeDriver) -> bytes:
    opened = read_bundle(bundle)
    slot = opening.slot_of(opened.digest(), opened.engine_entry(DEVICE.name), driver.device())
    active = PlanStore().active(slot)
    assert isinstance(active, Activation)
    return PlanStore().plan(active.plans[GRAPH])


def steps_of_a_compile(bundle: Path) -> int:
    counter = Killer(0, lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        counter.install(patch)
        compile_bundle(bundle, CompileOptions(again=True))
    return counter.seen


def test_a_kill_at_any_moment_leaves_the_old_plan_or_the_new_one(
    tmp_path: Path, tensorrt: Any, driver: FakeDriver, cache: Path
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    steps = steps_of_a_compile(bundle)
    assert steps >= 20
    outcomes = set()
    for moment in range(1, steps + 1):
        old = active_plan(bundle, driver)
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                Killer(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)).install(patch)
                compile_bundle(bundle, CompileOptions(again=True))
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        found = active_plan(bundle, driver)
        outcomes.add(found == old)
        check_output(bundle)
    assert outcomes == {True, False}
    compile_bundle(bundle, CompileOptions())
    assert kept(cache).count("plan") <= 2 and not [path for path in cache.iterdir() if path.name.startswith(".")]
    check_output(bundle)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_the_old_plan_or_the_new_one(
    tmp_path: Path, tensorrt: Any, driver: FakeDriver, cache: Path, number: int
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    failed = 0

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    for moment in range(1, steps_of_a_compile(bundle) + 1):
        try:
            with pytest.MonkeyPatch.context() as patch:
                Killer(moment, fail).install(patch)
                compile_bundle(bundle, CompileOptions(again=True))
        except StorageError as error:
            failed += 1
            assert os.strerror(number) in str(error) and error.exit_code == 4
        assert driver.empty
        check_output(bundle)
        assert not [path for path in cache.iterdir() if path.name.startswith(".")], "no unfinished file remains"
    assert failed >= 15, "only a failed write of the timing cache does not fail the build"


def test_an_interrupt_while_building_leaves_nothing(
    tmp_path: Path, tensorrt: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(self: Any, share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    monkeypatch.setattr(BuildProgress, "__call__", press)
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(device_bundle(tmp_path / "bundle"), CompileOptions())
    assert tensorrt.observed.canceled and kept(cache) == []


# Progress and the command's output


def test_the_remaining_time_is_logged_periodically() -> None:
    now, bar, logged = [0.0], [], Collected()
    progress = BuildProgress("orin", lambda *step: bar.append(step), logged.log, lambda: now[0])
    for now[0], share in ((1, 0.001), (11, 0.01), (20, 0.05), (22, 0.1), (30, 0.1), (100, 0.8)):
        progress(share)
    assert logged.messages == [
        "orin: 1 %", "orin: 10 %, about 3 min left", "orin: 80 %, about 25 s left",
    ]  # fmt: skip
    assert logged.fields_of("25 s left") == {"engine": "orin", "percent": 80, "seconds_left": pytest.approx(25)}
    assert bar[-1] == (800, 1000)


def test_the_remaining_time_is_not_estimated_too_early() -> None:
    assert seconds_left(60, 0.01) is None and seconds_left(60, 0.25) == 180 and seconds_left(60, 1) == 0
    assert (duration(89), duration(90), duration(600)) == ("89 s", "2 min", "10 min")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["misgnet-run", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    yield call
    log.use("text")


def test_the_compiled_engine_runs_after_the_command(tmp_path: Path, tensorrt: Any, run: Run) -> None:
    bundle = device_bundle(tmp_path / "bundle", tiles=4)
    pair = [write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(TILE, TILE))]
    predict = ("predict", bundle, *pair, "--engine", "jetson-orin", "-o")
    code, _, err = run(*predict, tmp_path / "early.png")
    assert code == 5 and f"misgnet-run compile {bundle} --engine jetson-orin" in err
    code, out, err = run("compile", bundle)
    assert code == 0, err
    assert "jetson-orin: 100.000 % of the golden tiles' pixels agree; F1 drop +0.000 points" in out
    assert "ready with tensorrt 10.3.0 on Fake GPU (sm87)" in out
    assert "workspace 256 MiB, total 768 MiB" in err
    assert run(*predict, tmp_path / "mask.png")[0] == 0
    code, out, _ = run("info", bundle)
    assert "jetson-orin, for sm87: runs on Fake GPU (sm87)" in out
    code, _, err = run("compile", bundle, "--workspace", 2000)
    assert code == 2 and "--workspace is 2000 MiB" in err


def test_the_command_prints_json_events(tmp_path: Path, tensorrt: Any, run: Run) -> None:
    bundle = device_bundle(tmp_path / "bundle", tiles=2)
    code, out, _ = run("compile", bundle, "--log", "json", "--workspace", 128, "--optimization-level", 2)
    result, choice = map(json.loads, out.splitlines())
    assert choice["event"] == "result" and choice["choice"]["latency"]["engine"] == "jetson-orin"
    assert code == 0 and result["event"] == "result" and result["engine"] == "jetson-orin"
    assert result["plans"][GRAPH]["workspace_bytes"] == 128 << 20
    assert result["plans"][GRAPH]["key"]["optimization_level"] == 2
    assert result["parity"]["verdict"]["passed"] is True
    code, _, err = run("compile", device_bundle(tmp_path / "bad", flip=True), "--log", "json")
    assert code == 3 and json.loads(err.splitlines()[-1])["kind"] == "GateFailed"


def test_the_command_reports_that_no_gate_ran_without_evaluation_tiles(tmp_path: Path, tensorrt: Any, run: Run) -> None:
    code, out, _ = run("compile", device_bundle(tmp_path / "bundle"))
    assert code == 0 and "no gate was run: the bundle has no evaluation tiles (misgnet-export build --ship-eval)" in out


# Evaluation tiles


def test_evaluation_tiles_survive_a_round_trip(tmp_path: Path) -> None:
    tiles = evaluation_tiles(1, 3)
    write_evaluation(tmp_path / "tiles.npz", tiles)
    found = read_evaluation(tmp_path / "tiles.npz")
    assert len(found) == 3 and list(found.names) == list(tiles.names)
    for evaluated in found.evaluated(found.reference):
        assert evaluated.mask.shape == (TILE, TILE - 8) and evaluated.source == "image_1"
        assert evaluated.confusion.fp == evaluated.confusion.fn == 0
    mask = expected(tiles.before, tiles.after)[2] > THRESHOLD
    np.testing.assert_array_equal(found.evaluated(found.reference[2:], 2)[0].mask, mask[:, 8:])


@pytest.mark.parametrize(
    "change",
    [
        {"before": np.zeros((3, TILE, TILE, 3), np.float32)},
        {"after": np.zeros((2, TILE, TILE, 3), np.uint8)},
        {"label": np.zeros((3, TILE, TILE), np.uint8)},
        {"label": np.zeros((0, TILE, TILE), np.bool_)},
        {"owned": np.full((3, 4), TILE + 1, np.int64)},
        {"owned": np.full((3, 4), -1, np.int64)},
        {"names": np.arange(3)},
        {"sources": np.array(["a", None, "b"], object)},
    ],
)
def test_invalid_evaluation_tiles_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    from dataclasses import replace as changed

    path = tmp_path / "tiles.npz"
    write_evaluation(path, changed(evaluation_tiles(1, 3), **change))
    with pytest.raises(InputError, match="evaluation tiles"):
        read_evaluation(path)


def test_damaged_evaluation_tiles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiles.npz"
    write_evaluation(path, evaluation_tiles(1, 2))
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read"):
            read_evaluation(path)


def test_evaluation_tiles_that_decompress_to_more_than_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiles.npz"
    write_evaluation(path, evaluation_tiles(1, 2))
    read_evaluation(path)
    monkeypatch.setattr("misgnet_runtime.storage.npz.ARCHIVE_BYTES", 100)
    with pytest.raises(InputError, match="cannot be read: its arrays declare"):
        read_evaluation(path)


def test_a_record_of_another_version_is_refused(
    tmp_path: Path, tensorrt: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = device_bundle(tmp_path / "bundle")
    compile_bundle(bundle, CompileOptions())
    path = next(cache.glob("active-*"))
    values = json.loads(PrivateFolder(cache).read_sealed(path.name, 1 << 20) or b"")
    PrivateFolder(cache).write_sealed(path.name, json.dumps({**values, "format": store.FORMAT + 1}).encode())
    message = rf"has format {store.FORMAT + 1}; this version reads format {store.FORMAT}; run: misgnet-run compile"
    with pytest.raises(InputError, match=message):
        check_output(bundle)

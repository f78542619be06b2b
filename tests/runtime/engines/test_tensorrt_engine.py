"""Tests that compile and infer with the module ``tensorrt``, with a fake of three versions on a fake GPU."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from misgnet_runtime.engines.tensorrt import (
    MachineCompatibility,
    Plan,
    PlanCompatibility,
    PlanOptions,
    check_plan_fits,
    compatibility,
    compile_plan,
)
from misgnet_runtime.engines.tensorrt.engine import open_plan
from misgnet_runtime.engines.tensorrt.streams import KEPT
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError, UsageError
from support import fake_tensorrt
from support.fake_cuda import FakeDriver
from support.fake_tensorrt import ITEM_MEMORY, make_tensorrt, model

VERSIONS = ("10.3.0", "10.16.1", "11.1.0")
OPTIONS = PlanOptions(vendor="tensorrt", profiles=((1, 4, 8),))


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver("sm87")


@pytest.fixture(params=VERSIONS)
def tensorrt(request: pytest.FixtureRequest, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(request.param, driver, monkeypatch)


def install(version: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = make_tensorrt(version, driver)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def compiled(driver: FakeDriver, data: bytes | None = None, options: PlanOptions = OPTIONS, **more: Any) -> Plan:
    return compile_plan(data or model(), options, driver=driver, **more)


def images(batch: int, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (batch, 4, 4, 3), np.uint8) for name in ("before", "after")}


def expected(arrays: dict[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
    difference = arrays["before"].astype(np.float32) - arrays["after"]
    return np.abs(difference).mean(-1) / np.float32(255)


def test_a_plan_has_compatibility_information(tensorrt: Any, driver: FakeDriver) -> None:
    plan = compiled(driver)
    assert plan.compatibility.vendor_version == tensorrt.__version__
    assert plan.compatibility.compute_capabilities == ("sm87",)
    assert (plan.network_layers, plan.quantize_layers, plan.dequantize_layers) == (5, 1, 2)
    assert plan.notes == ()


def test_kernels_are_read_by_the_engine_inspector(tensorrt: Any, driver: FakeDriver) -> None:
    (profile,) = compiled(driver).layers.profiles
    (kernel,) = profile.kernels
    assert (kernel.name, kernel.precision, kernel.moved) == ("mean", "float16", 16)


@pytest.mark.parametrize("damage", ["names only", "cannot be opened"])
def test_a_plan_whose_kernels_are_unknown_is_still_compiled(
    tensorrt: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    if damage == "names only":
        monkeypatch.delattr(tensorrt, "ProfilingVerbosity")
    else:
        monkeypatch.setattr(tensorrt.Runtime, "deserialize_cuda_engine", lambda self, data: None)
    plan = compiled(driver)
    assert plan.data and plan.layers.profiles == []
    assert plan.layers.note


@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_a_builder_in_a_reference_cycle_is_freed_before_a_builder_or_runtime_is_made(
    tensorrt: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The real library would wait for itself: it frees a builder under a lock that it holds while it makes one."""
    plan = compiled(driver)
    freed: list[bool] = []

    class Old:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            freed.append(True)

    def make(self: Any, logger: Any) -> None:
        assert freed
        self.logger = logger

    real = getattr(tensorrt, kind)
    monkeypatch.setattr(tensorrt, kind, type(kind, (real,), {"__init__": make}))
    Old()
    compiled(driver) if kind == "Builder" else open_plan(plan.data, "tensorrt", driver).close()
    assert freed


def test_options_reach_the_builder(tensorrt: Any, driver: FakeDriver) -> None:
    memory = {"workspace_bytes": 1 << 20, "builder_bytes": (1 << 22) + 5}
    compiled(driver, options=replace(OPTIONS, optimization_level=5, profiles=((2, 4, 8),), **memory))
    config = tensorrt.observed.config
    assert config.pools == {"WORKSPACE": 1 << 20, "TACTIC_DRAM": 1 << 22}
    assert config.builder_optimization_level == 5
    assert config.avg_timing_iterations == 8
    assert not config.enabled, "TF32 is on by default"
    shapes = [(batch, 4, 4, 3) for batch in (2, 4, 8)]
    assert config.profiles[0].shapes == {"before": shapes, "after": shapes}


@pytest.mark.parametrize(("out", "tolerance"), [("FLOAT", 1e-6), ("HALF", 1e-3)])
def test_a_batch_is_computed(tensorrt: Any, driver: FakeDriver, out: str, tolerance: float) -> None:
    with open_plan(compiled(driver, model(out=out)).data, "tensorrt", driver) as engine:
        assert engine.max_batch == 8
        assert [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs] == [
            ("before", "uint8", (-1, 4, 4, 3)),
            ("after", "uint8", (-1, 4, 4, 3)),
        ]
        for batch, seed in ((8, 1), (3, 2), (1, 3)):
            arrays = images(batch, seed)
            result = engine.infer(arrays)["probability"]
            assert result.dtype == {"FLOAT": np.float32, "HALF": np.float16}[out]
            np.testing.assert_allclose(result, expected(arrays), atol=tolerance)


def test_outputs_belong_to_the_caller(tensorrt: Any, driver: FakeDriver) -> None:
    with open_plan(compiled(driver).data, "tensorrt", driver) as engine:
        first, other = images(2, 1), images(2, 2)
        result = engine.infer(first)["probability"]
        engine.infer(other)
    np.testing.assert_allclose(result, expected(first), atol=1e-6)


SHAPES = ["set_input_shape"] * 2
WHOLE_BATCH = ["copy_to_device", "copy_to_device", "execute", "copy_to_host"]
WAIT = ["record_event", "synchronize_event"]


def calls(driver: FakeDriver) -> list[str]:
    """Returns the names of the driver's calls since the last time."""
    found, driver.calls = [call[0] for call in driver.calls], []
    return found


def test_an_inference_makes_its_calls_in_order(tensorrt: Any, driver: FakeDriver) -> None:
    with open_plan(compiled(driver).data, "tensorrt", driver) as engine:
        assert calls(driver) == ["create_event", *["set_tensor_address"] * 3]
        engine.infer(images(3))
        assert driver.calls[0][1:] == ("before", (3, 4, 4, 3))
        # Only the batch is copied, not the whole buffer for eight.
        sizes = [call[2] for call in driver.calls if call[0].startswith("copy")]
        assert sizes == [3 * 48, 3 * 48, 3 * 16 * 4]
        assert calls(driver) == [*SHAPES, *WHOLE_BATCH, *WAIT]


def test_a_repeated_batch_size_is_captured_after_its_second_run(tensorrt: Any, driver: FakeDriver) -> None:
    """It is captured in a separate context that ran it before: TensorRT initialises a shape when it first runs."""
    with open_plan(compiled(driver).data, "tensorrt", driver) as engine:
        engine.infer(images(3))
        calls(driver)
        engine.infer(images(3))
        plain = [*SHAPES, *WHOLE_BATCH, *WAIT]
        assert calls(driver) == [
            *plain, *["set_tensor_address"] * 3, *plain, "begin_capture", *WHOLE_BATCH, "end_capture",
        ]  # fmt: skip
        for seed in range(2):
            arrays = images(3, seed)
            np.testing.assert_allclose(engine.infer(arrays)["probability"], expected(arrays), atol=1e-6)
            assert calls(driver) == ["launch", *WAIT]
        assert engine.notes == ()


def test_graphs_of_several_batch_sizes_are_replayed_in_any_order(tensorrt: Any, driver: FakeDriver) -> None:
    with open_plan(compiled(driver).data, "tensorrt", driver) as engine:
        for seed, batch in enumerate([1, 2, 3, 4, 5, 6, 7, 8] * 3 + [8, 1, 7, 2]):
            arrays = images(batch, seed)
            np.testing.assert_allclose(engine.infer(arrays)["probability"], expected(arrays), atol=1e-6)
        assert len(driver.executable) == KEPT < 8
        assert calls(driver).count("launch") == KEPT + 2


def test_a_plan_that_cannot_be_captured_runs_call_by_call_with_a_note(tensorrt: Any, driver: FakeDriver) -> None:
    with open_plan(compiled(driver, model(capturable=False)).data, "tensorrt", driver) as engine:
        for seed in range(5):
            arrays = images(2, seed)
            np.testing.assert_allclose(engine.infer(arrays)["probability"], expected(arrays), atol=1e-6)
        assert calls(driver).count("begin_capture") == 1, "it is tried once"
        (note,) = engine.notes
        assert note.startswith("batches are not replayed as CUDA graphs: ") and "when stream is capturing" in note
        assert not driver.captured and not driver.executable


def test_a_library_without_graphs_runs_call_by_call_with_a_note(tensorrt: Any, driver: FakeDriver) -> None:
    driver.graphs = None
    with open_plan(compiled(driver).data, "tensorrt", driver, streams=2) as engine:
        assert engine.notes == ("batches are not replayed as CUDA graphs: fake does not support them",)
        for seed in range(3):
            arrays = images(2, seed)
            np.testing.assert_allclose(engine.infer(arrays)["probability"], expected(arrays), atol=1e-6)


def test_batches_run_if_memory_is_too_short_for_a_graph(
    tensorrt: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_plan(compiled(driver).data, "tensorrt", driver) as engine:
        monkeypatch.setattr(fake_tensorrt.CudaEngine, "create_execution_context", lambda *_: None)
        for seed in range(3):
            arrays = images(2, seed)
            np.testing.assert_allclose(engine.infer(arrays)["probability"], expected(arrays), atol=1e-6)
        assert "the plan cannot run here" in engine.notes[0]


def test_tensorrt_for_rtx_captures_and_replays_itself(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles kernels in the background: a capture by this package would keep the preliminary kernels."""
    module = make_tensorrt("1.7.1", driver, rtx=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    plan = compiled(driver, options=PlanOptions(vendor="rtx", compute_capabilities=("sm87",), profiles=((1, 4, 8),)))
    with open_plan(plan.data, "rtx", driver, streams=2) as engine:
        for seed in range(3):
            arrays = images(2, seed)
            np.testing.assert_allclose(engine.infer(arrays)["probability"], expected(arrays), atol=1e-6)
        assert engine.notes == () and "begin_capture" not in calls(driver)
        assert module.observed.contexts == ["WHOLE_GRAPH_CAPTURE"] * 2


@pytest.mark.parametrize("streams", [1, 3])
def test_each_stream_allocates_its_largest_batch_and_frees_it(tensorrt: Any, driver: FakeDriver, streams: int) -> None:
    engine = open_plan(compiled(driver).data, "tensorrt", driver, streams=streams)
    per_stream = [8 * 48, 8 * 48, 8 * 16 * 4, 8 * ITEM_MEMORY]
    assert sorted(memory.nbytes for memory in driver.memory.values()) == sorted(per_stream * streams)
    for _ in range(3 * streams):
        engine.infer(images(2))
    assert len(driver.executable) == streams, "each stream context has its own graph"
    engine.close()
    engine.close()
    assert driver.empty


@pytest.mark.parametrize("memory", [100, 8 * 48 + 600, 2500, 3500])
def test_memory_is_freed_if_a_later_allocation_fails(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small = FakeDriver("sm87", memory=memory)
    monkeypatch.setattr(small, "free_memory", lambda: 1 << 30)  # before another program took the rest
    install("10.3.0", small, monkeypatch)
    plan = compiled(small)
    with pytest.raises(UnavailableError, match="cudaErrorMemoryAllocation"):
        open_plan(plan.data, "tensorrt", small, streams=2)
    assert small.empty


def test_a_stream_copies_while_another_one_computes(
    tensorrt: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither thread returns from its wait before the other one waits, too."""
    both = Barrier(2, timeout=20)
    wait = driver.synchronize_event

    def synchronize_event(event: int) -> None:
        both.wait()
        wait(event)

    monkeypatch.setattr(driver, "synchronize_event", synchronize_event)
    batches = [images(2, seed) for seed in range(2)]
    with open_plan(compiled(driver).data, "tensorrt", driver, streams=2) as engine, ThreadPoolExecutor(2) as pool:
        for arrays, found in zip(batches, pool.map(engine.infer, batches), strict=True):
            np.testing.assert_allclose(found["probability"], expected(arrays), atol=1e-6)


@pytest.mark.parametrize("batch", [0, 9])
def test_a_batch_outside_the_profile_is_refused(tensorrt: Any, driver: FakeDriver, batch: int) -> None:
    with (
        open_plan(compiled(driver).data, "tensorrt", driver) as engine,
        pytest.raises(InputError, match="1 to 8"),
    ):
        engine.infer(images(batch))


def test_a_rejected_call_is_reported_and_the_next_one_succeeds(
    tensorrt: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_plan(compiled(driver).data, "tensorrt", driver) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(fake_tensorrt.ExecutionContext, "execute_async_v3", lambda *_: False)
            with pytest.raises(MisgnetError, match="rejected the execution of a batch"):
                engine.infer(images(1))
        assert calls(driver)[-1] == "synchronize", "queued copies still read the buffers"
        np.testing.assert_allclose(engine.infer(images(2))["probability"], expected(images(2)), atol=1e-6)


def test_a_tensor_type_unknown_to_numpy_is_refused(tensorrt: Any, driver: FakeDriver) -> None:
    with pytest.raises(InputError, match="'probability' is BF16"):
        open_plan(compiled(driver, model(out="BF16")).data, "tensorrt", driver)
    assert driver.empty


def test_strong_typing_is_requested_by_name(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {}
    for version in VERSIONS:
        module = install(version, driver, monkeypatch)
        compiled(driver)
        flags[version] = module.observed.flags
    assert flags == {"10.3.0": 1 << 1, "10.16.1": 1 << 2, "11.1.0": 0}


def test_a_version_without_strong_typing_is_refused(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install("10.4.0", driver, monkeypatch)
    module.NetworkDefinitionCreationFlag = type("NetworkDefinitionCreationFlag", (), {})
    with pytest.raises(UnavailableError, match="lacks strongly typed networks"):
        compiled(driver)


def test_a_version_that_is_too_old_is_refused(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    install("8.6.1", driver, monkeypatch)
    with pytest.raises(UnavailableError, match=r"10\.3 or newer is required, found 8\.6\.1"):
        compiled(driver)


def test_the_parsers_errors_are_reported(tensorrt: Any, driver: FakeDriver) -> None:
    noise = "no such op\n[checkMacros.cpp::catchCudaError::250] (cudaError 35: CUDA driver version is too old)"
    with pytest.raises(InputError, match=rf"{tensorrt.__version__} rejects the graph: Conv 'n7': no such op$"):
        compiled(driver, model(error=noise))


def test_a_failed_build_carries_the_vendors_reason(tensorrt: Any, driver: FakeDriver) -> None:
    with pytest.raises(MisgnetError, match="failed to build a plan: build: out of memory") as caught:
        compiled(driver, model(error="build: out of memory"))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("data", "message"), [(model(batch=2), "must be dynamic"), (model(outputs=0), "no output")])
def test_a_graph_with_a_static_batch_or_no_output_is_refused(
    tensorrt: Any, driver: FakeDriver, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compiled(driver, data)


def test_the_timing_cache_is_written_and_reused(tensorrt: Any, driver: FakeDriver, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "timing.cache"
    for builds in (1, 2):
        assert compiled(driver, timing_cache=cache).notes == ()
        assert cache.read_bytes() == b'{"device": "sm87", "timings": %d}' % builds
    assert [path.name for path in cache.parent.iterdir()] == ["timing.cache"]


@pytest.mark.parametrize("found", [b"\x00garbage", b'{"device": "sm72", "timings": 9}'])
def test_a_damaged_or_foreign_timing_cache_is_replaced(
    tensorrt: Any, driver: FakeDriver, tmp_path: Path, found: bytes
) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(found)
    (note,) = compiled(driver, timing_cache=cache).notes
    assert "timing cache ignored: timing.cache is damaged" in note
    assert cache.read_bytes() == b'{"device": "sm87", "timings": 1}'


def test_an_unusable_timing_cache_does_not_fail_the_build(tensorrt: Any, driver: FakeDriver, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan = compiled(driver, timing_cache=tmp_path / "file" / "timing.cache")
    assert plan.data
    assert ["not read" in note or "not written" in note for note in plan.notes] == [True, True]


def test_progress_is_reported_and_an_interrupt_cancels_the_build(tensorrt: Any, driver: FakeDriver) -> None:
    steps: list[tuple[str, int, int]] = []
    compiled(driver, progress=lambda *step: steps.append(step))
    assert steps == [("Building engine", done, 3) for done in range(4)]
    shares: list[float] = []
    compiled(driver, share=shares.append)
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, 1])

    def stop(phase: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    assert not tensorrt.observed.canceled
    with pytest.raises(KeyboardInterrupt):
        compiled(driver, progress=stop)
    assert tensorrt.observed.canceled


def test_nothing_is_built_if_there_is_no_gpu(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    none = FakeDriver(devices=0)
    module = install("10.3.0", none, monkeypatch)
    with pytest.raises(UnavailableError, match="no CUDA device") as caught:
        compiled(none)
    assert caught.value.exit_code == 5
    assert module.observed.flags is None
    with pytest.raises(UnavailableError, match="no CUDA device"):
        open_plan(b"{}", "tensorrt", none)


def test_tensorrt_refuses_compute_capabilities() -> None:
    with pytest.raises(UsageError, match="only for the GPU of this machine"):
        PlanOptions(vendor="tensorrt", compute_capabilities=("sm86",))


@pytest.mark.parametrize("batches", [(0, 4, 16), (4, 2, 16), (1, 32, 16)])
def test_batches_must_ascend(batches: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="must ascend"):
        PlanOptions(vendor="tensorrt", profiles=(batches,))


PLAN = PlanCompatibility(
    vendor="tensorrt", vendor_version="10.3.0", compute_capabilities=("sm87",), platform="linux-aarch64",
    cuda_driver="12.6", plan_bytes=20 << 20, stream_bytes=100 << 20,
)  # fmt: skip
MACHINE = MachineCompatibility(
    vendor="tensorrt", vendor_version="10.3.0", compute_capability="sm87", platform="linux-aarch64",
    cuda_driver="12.6", free_bytes=250 << 20,
)  # fmt: skip


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.30"])
def test_a_compatible_plan_passes(version: str) -> None:
    check_plan_fits(PLAN, replace(MACHINE, vendor_version=version))
    check_plan_fits(replace(PLAN, compute_capabilities=("sm86", "sm87")), MACHINE)


def test_a_newer_or_unknown_driver_passes() -> None:
    check_plan_fits(PLAN, replace(MACHINE, cuda_driver="13.0"))
    check_plan_fits(replace(PLAN, cuda_driver=""), replace(MACHINE, cuda_driver="11.8"))


def test_memory_of_all_streams_is_checked_before_any_is_allocated() -> None:
    check_plan_fits(PLAN, MACHINE, 2)
    check_plan_fits(PLAN, replace(MACHINE, free_bytes=None), 9)
    with pytest.raises(UnavailableError, match=r"3 streams it takes at least 320 MiB, and 250 MiB are free"):
        check_plan_fits(PLAN, MACHINE, 3)


def test_free_memory_of_an_integrated_gpu_is_the_systems_available_memory() -> None:
    for integrated, expected in ((True, 5 << 30), (False, 1 << 30)):
        driver = FakeDriver(integrated=integrated)
        assert compatibility.free_bytes(driver, driver.device(), system_memory=lambda: 5 << 30) == expected
    driver = FakeDriver(integrated=True)
    assert compatibility.free_bytes(driver, driver.device(), system_memory=lambda: None) == 1 << 30


def test_the_message_has_the_given_rebuild_command() -> None:
    with pytest.raises(UnavailableError, match=r"rebuild with: misgnet-run compile b --engine e$"):
        check_plan_fits(PLAN, replace(MACHINE, vendor_version="11.1"), rebuild="misgnet-run compile b --engine e")


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        ({"vendor_version": "10.16.1"}, ("10.3.0", "10.16.1")),
        ({"compute_capability": "sm89"}, ("sm87", "sm89")),
        ({"platform": "linux-x86_64"}, ("linux-aarch64", "linux-x86_64")),
        ({"vendor": "rtx"}, ("by tensorrt", "with rtx")),
        ({"cuda_driver": "12.2"}, ("driver for CUDA 12.6", "this driver is for CUDA 12.2")),
    ],
)
def test_the_message_names_both_values_and_the_rebuild_command(change: dict[str, str], sides: tuple[str, str]) -> None:
    with pytest.raises(UnavailableError, match=r"rebuild with: misgnet-export build .* --target tensorrt") as caught:
        check_plan_fits(PLAN, replace(MACHINE, **change))
    assert all(side in str(caught.value) for side in sides)


def test_the_rebuild_command_for_rtx_names_this_gpu() -> None:
    plan = PlanCompatibility(
        vendor="rtx", vendor_version="1.7.1", compute_capabilities=("sm86", "sm89"), platform="linux-x86_64"
    )
    machine = MachineCompatibility(
        vendor="rtx", vendor_version="1.7.1.116", compute_capability="sm120", platform="linux-x86_64"
    )
    with pytest.raises(UnavailableError, match=r"built for sm86, sm89, this GPU is sm120.*--target rtx-sm120"):
        check_plan_fits(plan, machine)


def test_an_incompatible_plan_is_reported_before_deserialising(tensorrt: Any, driver: FakeDriver) -> None:
    plan = compiled(driver)
    tensorrt.Runtime = None  # deserialising would fail
    with pytest.raises(UnavailableError, match="built for sm86, this GPU is sm87"):
        open_plan(
            plan.data, "tensorrt", driver, compatibility=replace(plan.compatibility, compute_capabilities=("sm86",))
        )


def test_a_plan_that_does_not_fit_into_memory_is_not_deserialised(tensorrt: Any, driver: FakeDriver) -> None:
    plan = compiled(driver)
    with open_plan(plan.data, "tensorrt", driver, compatibility=plan.compatibility, streams=2) as engine:
        needed = replace(plan.compatibility, stream_bytes=engine.stream_bytes).memory_bytes(2)
        assert needed == len(plan.data) + sum(memory.nbytes for memory in driver.memory.values())
    tensorrt.Runtime = None
    small = FakeDriver("sm87", memory=needed - 1)
    with pytest.raises(UnavailableError, match="does not fit into free GPU memory"):
        open_plan(
            plan.data,
            "tensorrt",
            small,
            compatibility=replace(plan.compatibility, stream_bytes=engine.stream_bytes),
            streams=2,
        )


def test_a_plan_rejected_by_tensorrt_is_reported_with_its_reason(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3.0", driver, monkeypatch)
    data = compiled(driver).data
    install("11.1.0", driver, monkeypatch)
    with pytest.raises(UnavailableError, match=r"expecting library version 10\.3\.0, got 11\.1\.0"):
        open_plan(data, "tensorrt", driver)

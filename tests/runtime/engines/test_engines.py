"""Tests of engines: one class of conformance tests that every kind of engine runs, and tests of each kind."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from misgnet_runtime import machine
from misgnet_runtime.bundle.manifest import EngineEntry, PlanProfile
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.engines import Engine, ExecutionOptions, TensorSpec, open_engine_file
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from misgnet_runtime.engines.openvino import OpenVinoEngine
from misgnet_runtime.engines.tensorrt import Plan, PlanOptions, compile_plan
from misgnet_runtime.engines.tensorrt.engine import open_plan
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError
from misgnet_runtime.inference.selection import alike, automatic, measured_here, open_detector, ranked, reason_for
from misgnet_runtime.inference.tuned import Tuned
from support import fake_tensorrt, gpu
from support.bundles import DATA, FLOAT, INT8, TILE, expected, images, make_bundle
from support.fake_cuda import FakeDriver

MAX_BATCH = 4
BF16_FLAGS = ["avx512_bf16", "amx_bf16"]


class Conformance:
    """The conformance tests; a subclass provides the engine, of any tile size, whose output is ``expected``."""

    @pytest.fixture
    def engine(self, engine_of_kind: Engine) -> Iterator[Engine]:
        with engine_of_kind as engine:
            yield engine

    @staticmethod
    def arrays(engine: Engine, batch: int, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
        size = engine.inputs[0].shape[1]
        before, after = images(batch, size, size, seed=seed)
        return {"before": before, "after": after}

    def test_inputs_and_outputs_are_described(self, engine: Engine) -> None:
        size = engine.inputs[0].shape[1]
        image = (-1, size, size, 3)
        assert set(engine.inputs) == {TensorSpec("before", "uint8", image), TensorSpec("after", "uint8", image)}
        assert engine.outputs == (TensorSpec("probability", "float32", (-1, size, size)),)
        assert engine.max_batch == MAX_BATCH and engine.device

    def test_batches_of_all_sizes_are_computed_in_any_order(self, engine: Engine) -> None:
        for seed, batch in enumerate((MAX_BATCH, 1, 3, 1, MAX_BATCH) * 2):
            arrays = self.arrays(engine, batch, seed)
            found = engine.infer(arrays)["probability"]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected(**arrays), atol=1e-6)

    def test_outputs_belong_to_the_caller_and_inputs_are_unchanged(self, engine: Engine) -> None:
        first, second = (self.arrays(engine, 2, seed) for seed in (1, 2))
        copies = {name: array.copy() for name, array in first.items()}
        found = engine.infer(first)["probability"]
        engine.infer(second)
        np.testing.assert_allclose(found, expected(**copies), atol=1e-6)
        found[:] = -1
        for name, array in first.items():
            np.testing.assert_array_equal(array, copies[name])
        np.testing.assert_allclose(engine.infer(first)["probability"], expected(**copies), atol=1e-6)

    def test_arrays_need_not_be_contiguous(self, engine: Engine) -> None:
        turned = {name: array[:, ::-1] for name, array in self.arrays(engine, 2).items()}
        np.testing.assert_allclose(engine.infer(turned)["probability"], expected(**turned), atol=1e-6)

    @pytest.mark.parametrize("batch", [0, MAX_BATCH + 1])
    def test_invalid_batches_are_refused(self, engine: Engine, batch: int) -> None:
        with pytest.raises(InputError, match=f"a batch of {batch} does not fit"):
            engine.infer(self.arrays(engine, batch))

    def test_invalid_arrays_are_refused(self, engine: Engine) -> None:
        arrays = self.arrays(engine, 1)
        others: list[dict[str, Any]] = [
            {"before": arrays["before"]}, {**arrays, "more": arrays["before"]},
            {**arrays, "after": arrays["after"].astype(np.float32)}, {**arrays, "after": arrays["after"][:, 1:]},
        ]  # fmt: skip
        for other in others:
            with pytest.raises(InputError, match="engine input"):
                engine.infer(other)

    def test_threads_share_an_engine(self, engine: Engine) -> None:
        batches = [self.arrays(engine, 1 + seed % MAX_BATCH, seed) for seed in range(12)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(engine.infer, batches))
        for arrays, outputs in zip(batches, found, strict=True):
            np.testing.assert_allclose(outputs["probability"], expected(**arrays), atol=1e-6)

    def test_close_waits_for_running_batches(self, engine: Engine) -> None:
        arrays = self.arrays(engine, 2)
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(engine.infer, arrays) for _ in range(8)]
            futures[0].result()
            engine.close()
        for future in futures:
            if future.exception() is None:
                np.testing.assert_allclose(future.result()["probability"], expected(**arrays), atol=1e-6)
            else:
                assert "is closed; open it again" in str(future.exception())

    def test_a_closed_engine_raises_and_a_second_close_does_nothing(self, engine: Engine) -> None:
        arrays = self.arrays(engine, 1)
        engine.close()
        engine.close()
        for _ in range(2):
            with pytest.raises(MisgnetError, match="is closed; open it again"):
                engine.infer(arrays)

    def test_floating_point_mode_and_affinity_are_unchanged(self, engine: Engine) -> None:
        """Flushing denormals to zero, or pinning, would stay in effect for the calling thread and threads it starts."""
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        engine.infer(self.arrays(engine, 1))
        assert np.float32(1e-40) * np.float32(0.5) != 0
        assert cores is None or os.sched_getaffinity(0) == cores


class TestOnnxRuntime(Conformance):
    @pytest.fixture(params=[1, 3])
    def engine_of_kind(self, request: pytest.FixtureRequest) -> Engine:
        return OnnxRuntimeEngine(DATA / "tiny_float.onnx", MAX_BATCH, ExecutionOptions(streams=request.param))


class TestOpenVino(Conformance):
    @pytest.fixture(params=[1, 3])
    def engine_of_kind(self, request: pytest.FixtureRequest) -> Engine:
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
        return OpenVinoEngine(DATA / "tiny_float.onnx", MAX_BATCH, ExecutionOptions(streams=request.param))


class TestOnnxRuntimeOnCuda(Conformance):
    """The CUDA engine, with a session on the CPU."""

    @pytest.fixture(params=[1, 3])
    def engine_of_kind(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
        play_cuda(monkeypatch)
        return OnnxRuntimeCudaEngine(DATA / "tiny_float.onnx", MAX_BATCH, ExecutionOptions(streams=request.param))


class TestTensorRT(Conformance):
    """TensorRT, with a fake of each version that behaves differently."""

    DYNAMIC, STATIC = ((1, 4, MAX_BATCH),), ((1, 1, 1), (4, 4, 4))

    @pytest.fixture(
        params=itertools.product(["10.3.0", "10.16.1", "11.1.0", "rtx 1.7.1"], [1, 3], [DYNAMIC, STATIC]), ids=str
    )
    def engine_of_kind(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
        (version, streams, profiles), driver = request.param, FakeDriver("sm87")
        vendor = "rtx" if version.startswith("rtx") else "tensorrt"
        module = fake_tensorrt.make_tensorrt(version.removeprefix("rtx "), driver, rtx=vendor == "rtx")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        plan = compile_plan(fake_tensorrt.model(), PlanOptions(vendor=vendor, profiles=profiles), driver=driver)
        return open_plan(plan.data, vendor, driver, streams=streams, max_batch=MAX_BATCH)


class TestTensorRTHere(Conformance):
    """The real TensorRT, through each library that finds a GPU."""

    __test__ = bool(gpu.DRIVERS)

    @pytest.fixture(
        params=itertools.product(["tensorrt", "rtx"], gpu.DRIVERS, [1, 3], [TestTensorRT.DYNAMIC, TestTensorRT.STATIC]),
        ids=str,
    )
    def engine_of_kind(self, request: pytest.FixtureRequest) -> Engine:
        vendor, library, streams, profiles = request.param
        try:
            plan = real_plan(vendor, profiles)
            return open_plan(plan.data, vendor, gpu.DRIVERS[library], streams=streams, max_batch=MAX_BATCH)
        except UnavailableError as error:
            pytest.skip(str(error))


class TestOnnxRuntimeOnCudaHere(Conformance):
    """The real CUDA provider, if onnxruntime has it."""

    __test__ = "CUDAExecutionProvider" in onnxruntime.get_available_providers()

    @pytest.fixture(params=[1, 3])
    def engine_of_kind(self, request: pytest.FixtureRequest) -> Engine:
        try:
            return OnnxRuntimeCudaEngine(DATA / "tiny_float.onnx", MAX_BATCH, ExecutionOptions(streams=request.param))
        except UnavailableError as error:
            pytest.skip(str(error))


@functools.cache
def real_plan(vendor: str, profiles: tuple[tuple[int, int, int], ...]) -> Plan:
    """Compiles the graph that all kinds run with the real TensorRT, for this machine's GPU."""
    return compile_plan((DATA / "tiny_float.onnx").read_bytes(), PlanOptions(vendor=vendor, profiles=profiles))


@pytest.mark.skipif(not gpu.DRIVERS, reason=f"no engine ran on a real GPU: {'; '.join(gpu.REASONS)}")
def test_the_suite_runs_on_this_machines_gpu() -> None:
    assert TestTensorRTHere.__test__


# Files


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("content", [b"no graph", b"", "half", None])
def test_damaged_graphs_are_input_errors(tmp_path: Path, kind: Any, content: bytes | str | None) -> None:
    pytest.importorskip(kind, reason=f"{kind} is not installed")
    whole = (DATA / "tiny_float.onnx").read_bytes()
    if content is not None:
        (tmp_path / "graph.onnx").write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    entry = EngineEntry("one", kind, "graph.onnx", "graph.onnx", "float32", "any")
    with pytest.raises(InputError, match=r"cannot open .*graph\.onnx|the file '.*graph\.onnx' is missing") as caught:
        open_engine_file(entry, tmp_path, MAX_BATCH)
    assert len(str(caught.value).splitlines()) == 1


# ONNX Runtime on a GPU

CUDA = EngineEntry("cuda", "onnxruntime-cuda", FLOAT.file, FLOAT.file, "float32", "1")


class CpuInPlaceOfCuda(onnxruntime.InferenceSession):  # type: ignore[misc, name-defined]
    """A session on the CPU that reports the CUDA provider; ``requested`` are the arguments of the last session."""

    requested: Mapping[str, Any]
    found = "CUDAExecutionProvider"

    def __init__(self, source: Any, options: Any, **more: Any) -> None:
        type(self).requested = more
        super().__init__(source, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [self.found, "CPUExecutionProvider"]


def play_cuda(monkeypatch: pytest.MonkeyPatch, session: Any = CpuInPlaceOfCuda) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)


def test_the_cuda_provider_is_requested_in_float32_without_fallback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play_cuda(monkeypatch)
    with open_engine_file(CUDA, make_bundle(tmp_path / "bundle"), MAX_BATCH) as engine:
        requested = CpuInPlaceOfCuda.requested
        assert engine.device == "CUDA device 0 (ONNX Runtime)"
        provider, options = requested["providers"][0]
        assert provider == "CUDAExecutionProvider" and options["use_tf32"] == "0"
        assert requested["enable_fallback"] is False
        assert not engine._session._enable_fallback  # type: ignore[attr-defined]
    assert not capsys.readouterr().out, "onnxruntime's prints must not appear in a command's output"


def test_a_missing_cuda_provider_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnavailableError, match=r"has no CUDA provider; .*pip install 'onnxruntime-gpu"):
        OnnxRuntimeCudaEngine(DATA / "tiny_float.onnx", MAX_BATCH)


def test_a_silent_fallback_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    play_cuda(monkeypatch)
    monkeypatch.setattr(CpuInPlaceOfCuda, "found", "CPUExecutionProvider")
    with pytest.raises(UnavailableError, match=r"selected CPUExecutionProvider; .*: Failed to load libcudnn"):
        OnnxRuntimeCudaEngine(DATA / "tiny_float.onnx", MAX_BATCH)


@pytest.mark.parametrize(("graph", "error"), [("tiny_float.onnx", UnavailableError), ("no.onnx", InputError)])
def test_the_error_distinguishes_a_bad_graph_from_a_failing_gpu(
    monkeypatch: pytest.MonkeyPatch, graph: str, error: type[Exception]
) -> None:
    session = onnxruntime.InferenceSession

    def refuse(source: Any, options: Any, *, providers: Any, **more: Any) -> Any:
        if "CPUExecutionProvider" not in providers[:1]:
            raise RuntimeError("CUDA failure 2: out of memory")
        return session(source, options, providers=providers)

    play_cuda(monkeypatch, refuse)
    with pytest.raises(error, match=r"out of memory" if error is UnavailableError else r"cannot open .*no\.onnx"):
        OnnxRuntimeCudaEngine(DATA / graph, MAX_BATCH)


def test_a_gpu_failure_during_inference_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    play_cuda(monkeypatch)
    with OnnxRuntimeCudaEngine(DATA / "tiny_float.onnx", MAX_BATCH) as engine:
        monkeypatch.setattr(CpuInPlaceOfCuda, "run", lambda *_: 1 / 0)
        before, after = images(1, TILE, TILE)
        with pytest.raises(UnavailableError, match="onnxruntime failed on CUDA device 0"):
            engine.infer({"before": before, "after": after})


def test_auto_skips_a_missing_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with open_detector(read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, CUDA]))) as (_, taken, reason):
        assert (taken, reason) == (FLOAT, "fastest that runs here")


# OpenVINO


@pytest.mark.parametrize(
    ("precision", "found"), [("int8", "f32"), ("float32", "f32"), ("bf16", "bf16"), ("int8+bf16", "bf16")]
)
def test_openvino_computes_in_the_precision_of_the_entry(precision: str, found: str) -> None:
    """By default OpenVINO uses BF16 for any graph if the processor supports it."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if found == "bf16" and not machine.cpu_flags().intersection(BF16_FLAGS):
        pytest.skip("this processor has no BF16")
    engine = OpenVinoEngine(DATA / "tiny_float.onnx", MAX_BATCH, ExecutionOptions(threads=1), precision=precision)
    compiled = engine._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == found
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.parametrize("precision", ["bf16", "int8+bf16"])
@pytest.mark.parametrize(
    ("capabilities", "message"),
    [(["FP32", "INT8"], "does not compute in BF16 on this processor"), (["BF16"], "compute in bf16 but uses f32")],
)
def test_bf16_is_refused_if_openvino_uses_another_precision(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[str], message: str, precision: str
) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

    class Core(openvino.Core):  # type: ignore[misc, name-defined]
        def get_property(self, device: str, name: str) -> list[str]:
            return capabilities

    monkeypatch.setattr(openvino, "Core", Core)
    options = lambda *_: {"INFERENCE_PRECISION_HINT": "f32"}  # noqa: E731
    monkeypatch.setattr("misgnet_runtime.engines.openvino.compile_options", options)
    with pytest.raises(UnavailableError, match=message):
        OpenVinoEngine(DATA / "tiny_float.onnx", MAX_BATCH, precision=precision)


def test_missing_openvino_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnavailableError, match=r"pip install 'misgnet-export\[openvino\]'"):
        OpenVinoEngine(DATA / "tiny_float.onnx", MAX_BATCH)


# Processors


def entry(name: str, kind: Any, precision: str, *needs: str) -> EngineEntry:
    file = INT8.file if "int8" in precision else FLOAT.file
    return EngineEntry(name, kind, file, file, precision, "any", needs=list(needs))


VNNI = entry("cpu-vnni", "onnxruntime", "int8", "avx512_vnni", "avx_vnni")
ARM = entry("cpu-arm", "onnxruntime", "int8", "aarch64")


def processor(monkeypatch: pytest.MonkeyPatch, name: str, *flags: str) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: set(flags))
    monkeypatch.setattr("platform.machine", lambda: name)


def opens(tmp_path: Path, what: EngineEntry) -> bool:
    bundle = tmp_path / "bundle"
    root = bundle if bundle.exists() else make_bundle(bundle)
    try:
        open_engine_file(what, root, MAX_BATCH).close()
    except UnavailableError:
        return False
    return True


def test_engines_for_specific_processors_run_only_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name, *flags in (("x86_64", "avx2"), ("AMD64", "avx_vnni"), ("x86_64", "avx512_vnni"), ("aarch64", "asimddp")):
        processor(monkeypatch, name, *flags)
        found[flags[0]] = [opens(tmp_path, e) for e in (INT8, VNNI, ARM)]
    assert found == {
        "avx2": [True, False, False], "avx_vnni": [True, True, False], "avx512_vnni": [True, True, False],
        "asimddp": [True, False, True],
    }  # fmt: skip


def test_the_error_names_the_needed_and_the_found_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "x86_64", "avx2", "fpu")
    with pytest.raises(UnavailableError, match=r"needs a processor with avx512_vnni or avx_vnni.*x86_64 with avx2;"):
        open_engine_file(VNNI, make_bundle(tmp_path / "bundle"), MAX_BATCH)


def test_auto_skips_engines_that_the_processor_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "aarch64", "asimddp")
    root = make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8, VNNI, ARM])
    with open_detector(read_bundle(root)) as (detector, taken, reason):
        before, after = images(1, TILE, TILE)
        assert np.abs(detector.probability(before, after) - expected(before, after)).max() < 1 / 128
    assert taken == ARM and reason.startswith("fastest that runs here")
    processor(monkeypatch, "x86_64", "avx2")
    with open_detector(read_bundle(root)) as (_, taken, reason):
        assert (taken, reason) == (INT8, "fastest that runs here")


def test_engines_are_ranked_by_kind() -> None:
    entries = [
        FLOAT, entry("openvino-bf16", "openvino", "bf16", *BF16_FLAGS), INT8, VNNI,
        entry("openvino", "openvino", "int8"), entry("openvino-int8-bf16", "openvino", "int8+bf16", *BF16_FLAGS),
        entry("rtx-sm86-fp16", "rtx", "float16"), entry("rtx-sm86", "rtx", "int8+float16"),
        entry("tensorrt", "tensorrt", "int8+float16"), CUDA,
    ]  # fmt: skip
    assert [e.name for e in ranked(entries, {})] == [
        "tensorrt", "rtx-sm86-fp16", "rtx-sm86", "cuda", "openvino-int8-bf16", "openvino", "cpu-vnni", "cpu",
        "openvino-bf16", "cpu-float32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "int8", "fp16", "first"),
    [
        ("rtx", 475, 292, "fp16"), ("rtx", 291, 292, "int8"), ("rtx", 292, 292, "fp16"), ("tensorrt", 475, 292, "fp16"),
        ("tensorrt", 291, 292, "int8"), ("rtx", None, 292, "fp16"), ("rtx", 291, None, "fp16"),
        ("tensorrt", None, 292, "int8"), ("tensorrt", None, None, "int8"),
    ],
)  # fmt: skip
def test_of_two_plans_the_one_that_moves_fewer_bytes_comes_first(
    kind: str, int8: int | None, fp16: int | None, first: str
) -> None:
    """Unknown bytes: INT8 first for TensorRT, FP16 first for TensorRT for RTX. Plans of other GPUs do not matter."""

    def plan(name: str, precision: str, moved: int | None, gpu: str = "sm86") -> EngineEntry:
        profiles = [PlanProfile((1, 1, 1), bytes_moved=moved), PlanProfile((4, 4, 4), bytes_moved=1)]
        return replace(entry(name, kind, precision), profiles=profiles, compute_capabilities=[gpu])

    entries = [plan("int8", "int8+float16", int8), plan("fp16", "float16", fp16), plan("x", "float16", 1, "sm120")]
    for order in (entries, entries[::-1]):
        assert next(each.name for each in ranked(order, {}) if each.name != "x") == first


def test_cpu_engines_are_ranked_by_measured_speed() -> None:
    entries = [FLOAT, INT8, entry("openvino", "openvino", "int8"), ARM, CUDA, entry("rtx-sm86", "rtx", "int8+float16")]
    speeds = {"cpu": 16.0, "openvino": 11.0, "cpu-float32": 12.0}
    assert [e.name for e in ranked(entries, speeds)] == [
        "rtx-sm86",
        "cuda",
        "cpu",
        "cpu-float32",
        "openvino",
        "cpu-arm",
    ]


def test_the_builds_timings_are_used_only_on_a_machine_like_the_builds(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "bundle"))
    timings = [
        {"engine": "cpu", "batch": batch, "streams": streams, "pairs_per_second": 7.0 * batch + streams, "p50_ms": 3.0}
        for batch in (1, 4)
        for streams in (2, 1)
    ]

    def measured_on(machine: dict[str, Any], timings: object = timings) -> dict[str, float]:
        manifest = replace(bundle.manifest, machine=machine, latency={"timings": timings})
        return measured_here(dataclasses.replace(bundle, manifest=manifest))

    here = machine.describe_machine()
    assert measured_on(here) == {"cpu": 9.0} and measured_here(bundle) == {}
    assert measured_on({**here, "features": ["another"]}) == {} and measured_on({}) == {}
    with pytest.raises(InputError, match="timings cannot be read"):
        measured_on(here, [{"engine": 1}])


EPYC = {"processor": "AMD EPYC", "architecture": "x86_64", "cores": 2, "features": ["avx2", "avx512_vnni"]}
ORIN = {"architecture": "aarch64", "features": ["asimddp"], "model": "Jetson AGX Orin"}


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        (EPYC, {**EPYC, "cores": 64}, True),
        (EPYC, {**EPYC, "processor": "Intel Xeon"}, True),
        (EPYC, {**EPYC, "features": ["avx2"]}, False),
        (EPYC, {**EPYC, "architecture": "aarch64"}, False),
        (ORIN, ORIN, True),
        (ORIN, {**ORIN, "model": "Jetson AGX Thor"}, False),
        ({**EPYC, "features": []}, {**EPYC, "features": []}, False),  # the system does not report them
        ({"processor": "AMD EPYC"}, EPYC, False),
    ],
)
def test_machines_are_alike_if_their_instruction_sets_are(
    there: dict[str, Any], here: dict[str, Any], expected: bool
) -> None:
    assert alike(there, here) is expected


def test_the_reason_for_a_selection_names_who_measured() -> None:
    speeds = {"cpu": 7.0, "cuda": 9.0}
    assert reason_for(INT8, "cpu", speeds) == "measured fastest here"
    by_build = "fastest that runs here, as measured by the build on a processor like this one"
    assert reason_for(INT8, None, speeds) == by_build
    assert reason_for(FLOAT, None, speeds) == "fastest that runs here", "it was not measured"
    assert reason_for(CUDA, None, speeds) == "fastest that runs here", "GPUs are ordered by kind"


def test_auto_prefers_a_tuning_to_the_builds_timings_and_these_to_the_kind(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8]))
    timings = [{"engine": FLOAT.name, "batch": 1, "pairs_per_second": 7.0}]
    manifest = replace(bundle.manifest, machine=machine.describe_machine(), latency={"timings": timings})
    measured = dataclasses.replace(bundle, manifest=manifest)

    class TunedFor(Tuned):
        engine = INT8.name

    def selected(bundle: Bundle, tuned: Tuned) -> list[tuple[str, str]]:
        return [(entry.name, reason.partition(",")[2]) for entry, reason in automatic(bundle, tuned)]

    untuned, by_build = Tuned(None, None), " as measured by the build on a processor like this one"
    assert selected(bundle, untuned) == [("cpu", ""), ("cpu-float32", "")]
    assert selected(measured, untuned) == [("cpu-float32", by_build), ("cpu", "")]
    assert selected(measured, TunedFor("latency", None)) == [("cpu", ""), ("cpu-float32", by_build)]

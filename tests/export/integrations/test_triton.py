"""Tests Triton model repositories with Triton's own schema, and with a real server if one is installed."""

from __future__ import annotations

import json
import runpy
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from misgnet_export.cli.main import app
from misgnet_export.integrations.triton import dynamic_plan
from misgnet_export.integrations.triton.config import BACKENDS, Serving, preferred_batches
from misgnet_export.integrations.triton.repository import CONFIG, Repository, write_repository
from misgnet_runtime.api import open_bundle
from misgnet_runtime.bundle.manifest import EngineEntry, Interface, PlanProfile
from misgnet_runtime.cli import app as console
from misgnet_runtime.engines.tensorrt import compiler
from misgnet_runtime.errors import GateFailed, UnavailableError, UsageError
from misgnet_runtime.jobs.image import predict_files
from misgnet_runtime.pixels import PixelFormat
from misgnet_runtime.raster.images import read_label
from support import fake_tensorrt
from support.bundles import FLOAT, INT8, INTERFACE, RTX, TILE, edit, images, interface_of, make_bundle, write_image
from support.commands import exit_code
from support.device_bundles import DEVICE, GRAPH, device_bundle
from support.fake_cuda import FakeDriver
from support.paths import ROOT
from support.triton_server import find_server, running_server

PLAN = replace(RTX, name="tensorrt", kind="tensorrt")
CUDA = replace(FLOAT, name="cuda", kind="onnxruntime-cuda")
OPENVINO = replace(INT8, name="openvino", kind="openvino")
BF16 = replace(FLOAT, name="openvino-bf16", kind="openvino", precision="bf16")
ON_DEVICE = replace(
    PLAN, name="jetson-orin", file=INT8.graph, graph=INT8.graph, compiled="to be compiled on the device"
)  # fmt: skip
EVERY = [FLOAT, INT8, RTX, PLAN, CUDA, OPENVINO, BF16, ON_DEVICE]


@pytest.fixture
def schema() -> Any:
    return pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")


def parsed(schema: Any, repository: Path, engine: str) -> Any:
    """Returns a model's configuration as Triton parses it."""
    from google.protobuf import text_format

    return text_format.Parse((repository / f"misgnet-{engine}" / CONFIG).read_text(), schema.ModelConfig())


def written(tmp_path: Path, engines: list[EngineEntry], interface: Interface = INTERFACE, **serving: int) -> Repository:
    bundle = make_bundle(tmp_path / "bundle", engines=engines, interface=interface)
    return write_repository(bundle, tmp_path / "models", [], Serving(**serving))


def test_every_supported_engine_becomes_a_model(tmp_path: Path, schema: Any) -> None:
    found = written(tmp_path, EVERY)
    assert [model.engine for model in found.models] == [e.name for e in EVERY if e not in (RTX, ON_DEVICE)]
    assert list(found.left_out) == ["rtx-sm86", "jetson-orin"] and "Triton has no backend" in found.left_out["rtx-sm86"]
    assert "must be compiled where Triton runs it, and TensorRT " in found.left_out["jetson-orin"]
    models = tmp_path / "models"
    assert {str(p.relative_to(models)) for p in models.rglob("*") if p.is_file()} == {
        f"misgnet-{model.engine}/{name}"
        for model in found.models
        for name in (CONFIG, "1/model.plan" if model.engine == "tensorrt" else "1/model.onnx")
    }
    assert (models / "misgnet-cpu/1/model.onnx").read_bytes() == (tmp_path / "bundle/graphs/int8.onnx").read_bytes()


def test_configuration_matches_the_interface(tmp_path: Path, schema: Any) -> None:
    written(tmp_path, [INT8])
    config = parsed(schema, tmp_path / "models", "cpu")
    assert (config.name, config.backend, config.max_batch_size) == ("misgnet-cpu", "onnxruntime", 4)
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        (date, schema.TYPE_UINT8, [TILE, TILE, 3]) for date in ("before", "after")
    ]
    (output,) = config.output
    assert (output.name, output.data_type, list(output.dims)) == ("probability", schema.TYPE_FP32, [TILE, TILE])
    (group,) = config.instance_group
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.KIND_CPU, 1)
    assert config.parameters["misgnet_threshold"].string_value == "0.5"
    assert config.parameters["misgnet_overlap"].string_value == str(TILE // 4)
    assert config.HasField("dynamic_batching")
    (sample,) = config.model_warmup
    assert sample.batch_size == 1 and list(sample.inputs["after"].dims) == [TILE, TILE, 3]


@pytest.mark.parametrize("engine", [INT8, OPENVINO])
def test_model_of_single_pairs_states_its_batch(engine: EngineEntry, tmp_path: Path, schema: Any) -> None:
    """Triton refuses to form batches for a graph whose output has a fixed batch of 1."""
    written(tmp_path, [engine], replace(INTERFACE, max_batch=1))
    config = parsed(schema, tmp_path / "models", engine.name)
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert [list(one.dims) for one in (*config.input, *config.output)] == [[1, TILE, TILE, 3]] * 2 + [[1, TILE, TILE]]


@pytest.mark.parametrize(
    ("form", "output", "inputs", "outputs"),
    [
        ("float32", "logits", ("TYPE_FP32", [3, TILE, TILE]), ("logits", "TYPE_FP32", [2, TILE, TILE])),
        ("uint8", "mask", ("TYPE_UINT8", [TILE, TILE, 3]), ("mask", "TYPE_UINT8", [TILE, TILE])),
    ],
)
def test_other_interfaces_are_described(
    tmp_path: Path, schema: Any, form: Any, output: Any, inputs: Any, outputs: Any
) -> None:
    written(tmp_path, [INT8], Interface(TILE, 4, form, output))
    config = parsed(schema, tmp_path / "models", "cpu")
    named = schema.DataType.Name
    assert {(named(i.data_type), *i.dims) for i in config.input} == {(inputs[0], *inputs[1])}
    assert [(o.name, named(o.data_type), list(o.dims)) for o in config.output] == [outputs]


def test_bands_and_samples_are_described(tmp_path: Path, schema: Any) -> None:
    written(tmp_path, [FLOAT], interface_of(PixelFormat(13, "uint16")))
    config = parsed(schema, tmp_path / "models", "cpu-float32")
    assert {(schema.DataType.Name(i.data_type), *i.dims) for i in config.input} == {("TYPE_UINT16", TILE, TILE, 13)}
    assert config.model_warmup[0].inputs["before"].data_type == schema.TYPE_UINT16


def test_batches_of_a_plan_come_from_its_profile(tmp_path: Path, schema: Any) -> None:
    written(tmp_path, [replace(PLAN, batches=(1, 4, 16))], Interface(TILE, 32))
    config = parsed(schema, tmp_path / "models", "tensorrt")
    (group,) = config.instance_group
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 16)
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.KIND_GPU, 2)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [sample.batch_size for sample in config.model_warmup] == [1, 4, 16]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with TensorRT 10.16 and a GPU of compute capability 8.7."""
    driver = FakeDriver("sm87", memory=1 << 30)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_tensorrt("10.16.1", driver))
    for module in (compiler, dynamic_plan):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    return driver


STATIC = replace(PLAN, batches=(1, 4, 4), profiles=[PlanProfile((1, 1, 1)), PlanProfile((4, 4, 4))], graph=GRAPH)


@pytest.mark.parametrize("entry", [DEVICE, STATIC], ids=["compiled on the device", "static shapes"])
def test_plan_for_all_batches_is_compiled_for_the_server(
    entry: EngineEntry, tmp_path: Path, schema: Any, gpu: FakeDriver
) -> None:
    bundle = device_bundle(tmp_path / "bundle", entry, tiles=2)
    write_repository(bundle, tmp_path / "models", [entry.name], Serving())
    config = parsed(schema, tmp_path / "models", entry.name)
    assert config.max_batch_size == INTERFACE.max_batch and config.backend == "tensorrt"
    plan = json.loads((tmp_path / f"models/misgnet-{entry.name}/1/model.plan").read_bytes())
    assert plan["version"] == "10.16.1"
    assert [shape[0] for shape in plan["profiles"][0]["before"]] == [
        1,
        min(4, INTERFACE.max_batch),
        INTERFACE.max_batch,
    ]


def test_compiled_plan_must_reproduce_the_golden_tiles_and_pass_the_gate(
    tmp_path: Path, schema: Any, gpu: FakeDriver
) -> None:
    for folder, options, message in (
        ("flipped", {"flip": True}, "agrees with the golden tiles in only"),
        ("wrong", {"tiles": 2, "wrong": True}, "fails the gate on this device"),
    ):
        bundle = device_bundle(tmp_path / folder, **options)  # type: ignore[arg-type]
        with pytest.raises(GateFailed, match=message):
            write_repository(bundle, tmp_path / "models", [DEVICE.name], Serving())
        assert not (tmp_path / "models").exists()


def test_plan_for_another_gpu_is_left_out(tmp_path: Path, schema: Any, gpu: FakeDriver) -> None:
    bundle = device_bundle(tmp_path / "bundle", replace(DEVICE, compute_capabilities=["sm110"]))
    found = write_repository(bundle, tmp_path / "models", [], Serving())
    assert found.left_out == {DEVICE.name: "it is for sm110, but this GPU is sm87"}


def test_openvino_takes_whole_batches_and_its_own_parameters(tmp_path: Path, schema: Any) -> None:
    written(tmp_path, [OPENVINO, BF16], instances=3)
    config, bf16 = (parsed(schema, tmp_path / "models", name) for name in ("openvino", "openvino-bf16"))
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, TILE, TILE, 3] and list(config.output[0].dims) == [-1, TILE, TILE]
    (sample,) = config.model_warmup
    assert sample.batch_size == 1 and list(sample.inputs["before"].dims) == [1, TILE, TILE, 3]
    assert config.parameters["NUM_STREAMS"].string_value == "3" and config.instance_group[0].count == 3
    assert "HINT_BF16" not in config.parameters and bf16.parameters["HINT_BF16"].string_value == "YES"


@pytest.mark.parametrize(
    ("entry", "speeds", "expected"),
    [
        (INT8, {}, []),
        (INT8, {1: 10.0}, []),
        (INT8, {1: 10.0, 4: 9.0}, []),
        (INT8, {1: 10.0, 4: 20.0, 16: 20.0}, [4]),
        (INT8, {1: 10.0, 16: 30.0, 32: 99.0}, [16]),
        (PLAN, {}, [4, 16]),
        (PLAN, {1: 10.0}, [4, 16]),
        (PLAN, {1: 10.0, 4: 30.0, 16: 20.0}, [4]),
        (replace(PLAN, batches=(1, 1, 64)), {}, [16]),
    ],
)
def test_preferred_batches_are_the_fastest(entry: EngineEntry, speeds: dict[int, float], expected: list[int]) -> None:
    assert preferred_batches(entry, speeds, 16) == expected


def test_preferred_batches_use_speeds_of_the_build(tmp_path: Path, schema: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[INT8])
    timings = [{"engine": "cpu", "batch": batch, "pairs_per_second": speed} for batch, speed in ((1, 5.0), (4, 6.0))]
    edit(bundle, lambda values: values.update(latency={"timings": timings}, bundle_version=7))
    write_repository(bundle, tmp_path / "models", ["cpu"], Serving(queue_delay=500))
    batching = parsed(schema, tmp_path / "models", "cpu").dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([4], 500)
    assert (tmp_path / "models/misgnet-cpu/7/model.onnx").is_file(), "Triton serves the highest version"


def test_engines_and_options_that_cannot_be_served_are_rejected(tmp_path: Path, schema: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[RTX, INT8])
    models = tmp_path / "models"
    for engines, serving, message in (
        (["rtx-sm86", "cpu"], Serving(), "engine rtx-sm86: Triton has no backend"),
        (["none"], Serving(), "has no engine 'none'"),
        ([], Serving(instances=0), "--instances is 0"),
        ([], Serving(queue_delay=-1), "--queue-delay is -1"),
    ):
        with pytest.raises(UsageError, match=message):
            write_repository(bundle, models, engines, serving)
        assert not models.exists()
    models.mkdir()
    with pytest.raises(UsageError, match="exists"):
        write_repository(bundle, models, [], Serving())
    assert len(write_repository(bundle, models, [], Serving(), force=True).models) == 1


def test_missing_schema_prints_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(UnavailableError, match=r"pip install 'misgnet-export\[triton\]'"):
        written(tmp_path, [INT8])


def test_every_engine_kind_has_a_backend() -> None:
    from typing import get_args

    from misgnet_runtime.bundle.manifest import EngineKind

    assert set(BACKENDS) | {"rtx"} == set(get_args(EngineKind))


def test_command_prints_models_and_skipped_engines(
    tmp_path: Path, schema: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[RTX, PLAN, INT8])
    words = ["triton", bundle, "-o", tmp_path / "models", "--instances", "2"]
    assert exit_code(lambda: console.run_app(app), "misgnet-export", *words) == 0
    printed, warned = capsys.readouterr()
    assert "misgnet-tensorrt: backend tensorrt; the server needs the TensorRT version" in printed
    assert "left out: rtx-sm86: Triton has no backend" in warned
    assert parsed(schema, tmp_path / "models", "cpu").instance_group[0].count == 2


def test_real_server_serves_the_repository(
    tmp_path: Path, schema: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_server()
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    timings = [{"engine": FLOAT.name, "batch": batch, "pairs_per_second": batch} for batch in (1, 4)]
    edit(bundle, lambda values: values.update(latency={"timings": timings}))
    write_repository(bundle, tmp_path / "models", [], Serving(queue_delay=200_000))
    client = runpy.run_path(str(ROOT / "examples/triton_client.py"))
    pair = [write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(150, 200))]
    with running_server(tmp_path / "models", tmp_path) as (http, grpc):
        words = [f"misgnet-{FLOAT.name}", *map(str, pair), str(tmp_path / "mask.png"), f"--url=127.0.0.1:{grpc}"]
        monkeypatch.setattr(sys, "argv", ["triton_client.py", *words])
        client["main"]()
        assert "200 x 150 px" in capsys.readouterr().out
        predict_files(bundle, *pair, tmp_path / "here.png")
        assert (read_label(tmp_path / "mask.png") == read_label(tmp_path / "here.png")).all()

        model = client["RemoteModel"](f"127.0.0.1:{grpc}", f"misgnet-{FLOAT.name}")
        assert (model.tile, model.batch, model.threshold) == (TILE, 4, 0.5)
        before, after = images(8, TILE, TILE, seed=3)
        executed = executions(http)
        with ThreadPoolExecutor(8) as pool:
            predictions = list(pool.map(lambda i: model.predict(before[i : i + 1], after[i : i + 1]), range(8)))
        with open_bundle(bundle) as network:
            for prediction, *dates in zip(predictions, before, after, strict=True):
                np.testing.assert_allclose(prediction[0], network.predict(*dates).probability, atol=1e-6)
        assert executions(http) - executed < 8, "requests of several clients share a batch"


def executions(http: int) -> int:
    """Returns how often the server ran the model; a batch counts once."""
    url = f"http://127.0.0.1:{http}/v2/models/misgnet-{FLOAT.name}/stats"
    with urllib.request.urlopen(url, timeout=10) as response:
        return int(json.load(response)["model_stats"][0]["execution_count"])

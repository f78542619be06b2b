"""Tests the target torch-tensorrt from exported program to masks, with fakes of its library, TensorRT and CUDA."""

from __future__ import annotations

import dataclasses
import io
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

torch = pytest.importorskip("torch", reason="the compiler needs the [export] extra")
pytest.importorskip("onnx", reason="the compiler needs the [export] extra")

from misgnet import load_network
from misgnet.evaluation import predict_probability
from misgnet.synthetic import write_split
from misgnet_export.integrations import torch_tensorrt
from misgnet_export.integrations.torch_tensorrt import compile_program, load_torch_tensorrt
from misgnet_export.pipeline.compile import make_engines
from misgnet_export.pipeline.evaluate import evaluate_engines, evaluate_reference
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.reparity import reparity
from misgnet_export.pipeline.request import BuildRequest, check_request
from misgnet_export.pipeline.result import GraphFile
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.engines import open_engine_file
from misgnet_runtime.engines.tensorrt import PlanOptions
from misgnet_runtime.engines.tensorrt import compiler as compile_module
from misgnet_runtime.engines.tensorrt import open as opening
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.raster.dataset import TileSet
from support import fake_torch_tensorrt
from support.builds import context_of, interface_of, request_of
from support.bundles import FLOAT, INT8, make_bundle
from support.fake_cuda import FakeDriver
from support.paths import DEMO_WEIGHTS as WEIGHTS

REQUEST = request_of("torch-tensorrt", source=str(WEIGHTS), tile=64)
OPTIONS = PlanOptions(vendor="tensorrt", profiles=((1, 2, 3),))
GRAPHS = [
    GraphFile(name="float", file="graphs/float.onnx", precision="float32", size=1),
    GraphFile(name="tensorrt-fp16", file="graphs/fp16.onnx", precision="float16", size=1),
]
QUIET = Console(file=io.StringIO())


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> fake_torch_tensorrt.Module:
    """Simulates a machine with a GPU whose tensors are in host memory."""
    driver = FakeDriver("sm86", version="13.0")
    for module in (torch_tensorrt, compile_module, opening):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_tensorrt, "DEVICE", "cpu")
    return fake_torch_tensorrt.install(monkeypatch, driver)


class Tiny(torch.nn.Module):
    """Computes two classes with one convolution; replaces the real network, whose export takes 15 s."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(3, 2, 1)

    def forward(self, before: Any, after: Any) -> Any:
        return self.head((before - after).abs())


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return Tiny().eval()


def made(network: Any, root: Path, request: BuildRequest = REQUEST) -> EngineEntry:
    (root / "engines").mkdir(parents=True)
    return make_engines(context_of(request, root), GRAPHS, network)[1]


def test_plan_in_the_bundle_reproduces_the_network(library: Any, tmp_path: Path) -> None:
    check_request(REQUEST)
    network = load_network(WEIGHTS).eval()
    entry = made(network, tmp_path)
    assert (entry.name, entry.kind, entry.file) == ("torch-tensorrt", "tensorrt", "engines/torch-tensorrt.plan")
    assert (entry.graph, entry.precision, entry.split) == ("graphs/fp16.onnx", "float16", None)
    assert (entry.vendor_version, entry.compute_capabilities, entry.cuda_driver) == ("11.1.0", ["sm86"], "13.0")
    write_split(tmp_path / "tiles", 2, 7, 128)
    tiles = TileSet.open(tmp_path / "tiles", 64)
    log, policy = StageLog(QUIET), REQUEST.policy
    reference = evaluate_reference("PyTorch float32", partial(predict_probability, network), tiles, policy, log)
    report, _ = evaluate_engines(
        [entry], tiles, reference,
        files=tmp_path, interface=interface_of(REQUEST), policy=policy, log=log,
    )  # fmt: skip
    (parity,) = report.engines
    assert report.passed and parity.status == "run" and parity.device.endswith("(sm86)")
    assert 0.999 <= parity.agreement < 1, "float16 rounds some pixels to the other class"
    assert report.reference_scores["f1"] > 0.3, "tiles without detected changes would not test anything"


@pytest.mark.parametrize(("form", "output"), [("uint8", "probability"), ("float32", "logits"), ("uint8", "mask")])
def test_tensors_have_the_names_and_types_of_the_interface(
    form: Any, output: Any, library: Any, network: Any, tmp_path: Path
) -> None:
    request = dataclasses.replace(REQUEST, input_form=form, output_form=output)
    with open_engine_file(made(network, tmp_path, request), tmp_path, 4) as engine:
        found = [(t.name, t.dtype, list(t.shape)) for t in (*engine.inputs, *engine.outputs)]
        stated = [*interface_of(request).inputs(), *interface_of(request).outputs()]
        assert found == [(t.name, t.dtype, t.shape) for t in stated]
        assert engine.max_batch == 4


def test_plan_has_the_types_of_the_program_and_one_profile(library: Any, network: Any, tmp_path: Path) -> None:
    timings = tmp_path / "timings"
    compile_program(
        network,
        interface_of(REQUEST),
        dataclasses.replace(OPTIONS, workspace_bytes=1 << 20, optimization_level=4),
        timings,
    )
    assert library.arguments["require_full_compilation"] and library.arguments["disable_tf32"]
    assert library.arguments["use_explicit_typing"]
    weights = {value.dtype for name, value in library.program.named_parameters() if "head" in name}
    assert weights == {torch.float16}
    assert (library.arguments["workspace_size"], library.arguments["optimization_level"]) == (1 << 20, 4)
    assert library.arguments["timing_cache_path"] == str(timings)
    profile = [[batch, 64, 64, 3] for batch in (1, 2, 3)]
    assert [entry.profile for entry in library.arguments["arg_inputs"]] == [profile] * 2


def test_default_timing_cache_is_in_a_temporary_folder(library: Any, network: Any) -> None:
    compile_program(network, interface_of(REQUEST), OPTIONS)
    assert not Path(library.arguments["timing_cache_path"]).parent.exists()


def test_network_itself_stays_on_its_device(library: Any, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the PyTorch reference afterwards, on the CPU; tensors on "meta" would have no values."""
    monkeypatch.setattr(torch_tensorrt, "DEVICE", "meta")
    compile_program(network, interface_of(REQUEST), OPTIONS)
    assert {p.device.type for p in network.parameters()} == {"cpu"}


def test_operator_without_converter_is_named(library: Any, network: Any, tmp_path: Path) -> None:
    library._unsupported = "torch.ops.aten.grid_sampler.default"
    with pytest.raises(UnavailableError, match=r"cannot convert the network: .*aten\.grid_sampler\.default") as caught:
        made(network, tmp_path)
    assert "\n" not in str(caught.value) and "--target tensorrt" in str(caught.value)
    assert not list((tmp_path / "engines").iterdir())


def test_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(UnavailableError, match=r"importing torch_tensorrt failed.*pip install 'misgnet-export\[torch-"):
        check_request(REQUEST)


def test_missing_tensorrt_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behaves like the real library: it prints, and raises a plain Exception."""
    (tmp_path / "torch_tensorrt.py").write_text("print('make sure')\nraise Exception('no\\n tensorrt')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    with pytest.raises(UnavailableError, match="failed: no; tensorrt; install"):
        load_torch_tensorrt()
    assert capsys.readouterr().out == ""


def test_missing_cuda_is_reported(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match=r"torch .* finds no CUDA here; .* --target tensorrt --on-device"):
        check_request(REQUEST)


def test_missing_device_is_reported(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module, "open_driver", lambda: FakeDriver(devices=0))
    with pytest.raises(UnavailableError, match="no CUDA device was found"):
        check_request(REQUEST)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"version": "2.13.0"}, r"2\.14 or newer required, found 2\.13"), ({"rtx": True}, "for RTX")],
)
def test_incompatible_library_is_rejected(
    options: dict[str, Any], message: str, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch_tensorrt.install(monkeypatch, FakeDriver("sm86"), **options)
    with pytest.raises(UnavailableError, match=message):
        check_request(REQUEST)


def test_plan_cannot_be_compiled_on_the_device() -> None:
    """The device has only ``misgnet-run compile``, which needs no torch."""
    with pytest.raises(UsageError, match="no target compiles its plan on the device"):
        check_request(dataclasses.replace(REQUEST, on_device=True))


def test_parity_evaluates_the_plan_by_its_proxy(tmp_path: Path) -> None:
    plan = EngineEntry("torch-tensorrt", "tensorrt", "engines/rtx.plan", INT8.graph, "float16", "0.1", ["sm86"], "any")
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8, plan])
    write_split(tmp_path / "tiles", 1, 7, 64)
    report = reparity(bundle, tmp_path / "tiles", F1Limit(max_f1_drop=100.0), None, QUIET)
    assert [(e.engine, e.status) for e in report.engines] == [("cpu", "run"), ("torch-tensorrt", "proxy")]

"""Tests factories: what is found out about their networks, clumsy ones, weights of all shapes, and the graphs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")
torch = pytest.importorskip("torch", reason="the compiler needs the [export] extra")

import onnxruntime
from torch import nn

from misgnet_calibration.onnx_graph import Graph
from misgnet_export.graph.cut import find_cut
from misgnet_export.sources import open_source, pytorch_factory
from misgnet_export.sources.declaration import Declaration
from misgnet_export.sources.float_model import FloatModel
from misgnet_export.sources.options import ModelOptions, parse_output
from misgnet_export.sources.pytorch_factory import PyTorchFactory
from misgnet_runtime.bundle import Interface, Normalization
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.options import make
from support.foreign_networks import CHANGED, ForeignNetwork
from support.paths import ROOT

NETWORKS = ROOT / "tests" / "support" / "factory_networks.py"
TILE = 64
HEAD = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
ENOUGH = {"model_output": "logits2", "normalization": "unit"}
Write = Callable[[str], str]


@pytest.fixture
def factory(tmp_path: Path) -> Write:
    """Returns a function that writes the text of a file with a factory ``make``, and returns the SOURCE."""

    def write(text: str, name: str = "net.py") -> str:
        (tmp_path / name).write_text(HEAD + text, encoding="utf-8")
        return f"{tmp_path / name}:make"

    return write


def opened(source: str, **given: Any) -> PyTorchFactory:
    found = open_source(source, make(ModelOptions, {**ENOUGH, **given}))
    assert isinstance(found, PyTorchFactory)
    return found


def foreign(*arguments: object, **more: object) -> str:
    """Returns the text of a factory of a ForeignNetwork."""
    words = [*map(repr, arguments), *(f"{name}={value!r}" for name, value in more.items())]
    made = f"ForeignNetwork({', '.join(words)})"
    return f"from support.foreign_networks import ForeignNetwork\ndef make():\n    return {made}"


def model(body: str, parameters: str = "before, after", setup: str = "self.conv = nn.Conv2d(3, 2, 1)") -> str:
    """Returns the text of a factory of a network with a ``forward`` of one line."""
    return (
        f"class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {setup}\n"
        f"    def forward(self, {parameters}):\n        {body}\ndef make():\n    return Net()\n"
    )


def pair(count: int = 2, bands: int = 3, tile: int = TILE) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.random.default_rng(0).integers(0, 256, (2, count, tile, tile, bands), np.uint8)
    return before, after


def float_model(source: PyTorchFactory, **more: Any) -> FloatModel:
    what = source.declaration
    return source.float_model(
        Interface(TILE, 4, bands=what.bands, samples=what.samples, normalization=what.normalization, **more)
    )


def run(found: FloatModel, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    graph = found.export()
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"before": before, "after": after})[0])


# ---- what is found out


@pytest.mark.parametrize("io", ["pair", "stacked", "time"])
@pytest.mark.parametrize("kind", ["logits2", "probability1", "classes:4"])
def test_form_bands_and_channels_are_found_out(factory: Write, io: str, kind: str) -> None:
    changed = ",".join(map(str, CHANGED)) if kind == "classes:4" else None
    given = {"model_output": kind} | ({"changed": changed} if changed else {})
    source = opened(factory(foreign(io, kind, 5)), **given)
    assert source.declaration == Declaration(
        io=io, inputs=("before", "after") if io == "pair" else ("images",), output_name="output",
        output=parse_output(kind), changed=CHANGED if changed else (), bands=5,
        normalization=Normalization(1 / 255, (0.0,) * 5, (1.0,) * 5),
    )  # fmt: skip
    assert source.entry.source == "pytorch" and source.entry.name == "net.py:make" and source.entry.io == io
    assert source.fixed_tile is None and source.findings[0].startswith("ForeignNetwork with ")


def test_what_is_not_found_out_is_asked_for_at_once(factory: Write) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(factory(foreign("time", "classes:4")), ModelOptions())
    assert "add --model-output classes:4 (the output has 4 channels) --changed 1 (" in str(caught.value)
    assert caught.value.__notes__ == [
        "input: float32 (B, 2, 3, H, W), NCHW, 3 bands of each date, time", "output 'output': 4 channels"
    ]  # fmt: skip


def test_early_fusion_of_two_inputs_has_half_the_channels_of_its_convolution(factory: Write) -> None:
    source = opened(
        factory(model("return self.conv(torch.cat((before, after), 1))", setup="self.conv = nn.Conv2d(8, 2, 1)"))
    )
    assert source.declaration.bands == 4 and source.declaration.inputs == ("before", "after")


def test_bands_that_no_convolution_shows_are_asked_for(factory: Write) -> None:
    source = factory(model("return torch.cat((before[:, :1], after[:, :1]), 1)", setup="pass"))
    with pytest.raises(UsageError, match="--bands 3"):
        opened(source)
    assert opened(source, bands=4).declaration.bands == 4


def test_bands_that_contradict_the_convolution_are_refused(factory: Write) -> None:
    with pytest.raises(UsageError, match=r"--bands is 4, but the network's input has 6 channels, 3 of each date"):
        opened(factory(foreign("stacked", "logits2")), bands=4)


@pytest.mark.parametrize("name", ["1", "aux"])
def test_output_is_chosen_by_position_or_key(factory: Write, name: str) -> None:
    two = "first, second = self.conv(before), self.conv(after)"
    returned = "first[:, :1], second" if name == "1" else "{'main': first[:, :1], 'aux': second}"
    source = factory(model(f"{two}; return {returned}"))
    with pytest.raises(UsageError, match=r"--model-output-name (0|main) \(or another; the outputs are"):
        opened(source)
    assert opened(source, model_output_name=name).declaration.output_name == name


def test_optional_parameters_are_left_out_unless_they_are_named(factory: Write) -> None:
    source = factory(
        model("return self.conv(before - after * (1 if mask is None else mask))", "before, after, mask=None")
    )
    assert opened(source).declaration.inputs == ("before", "after")
    assert opened(source, model_inputs="after,before").declaration.inputs == ("after", "before")


def test_named_inputs_change_the_dates(factory: Write) -> None:
    source = factory(model("return self.conv(before)"))
    before, after = pair()
    first, second = (
        float_model(opened(source, model_inputs=names)).predict for names in ("before,after", "after,before")
    )
    assert np.array_equal(first(before, after), second(after, before))
    assert not np.array_equal(first(before, after), second(before, after))


def test_network_of_one_size_has_a_fixed_tile(factory: Write) -> None:
    body = "return self.conv(before - after) + self.place"
    source = factory(
        model(body, setup="self.conv = nn.Conv2d(3, 2, 1); self.place = nn.Parameter(torch.zeros(1, 1, 128, 128))")
    )
    assert opened(source).fixed_tile == 128


def test_tile_that_the_network_does_not_accept_is_found_before_the_export(factory: Write) -> None:
    source = opened(factory(model("assert before.shape[-1] > 64, 'too small'; return self.conv(before - after)")))
    with pytest.raises(InputError, match=r"\(1, 3, 64, 64\) failed: AssertionError: too small"):
        float_model(source)


def test_multiple_decides_the_size_that_is_tried(factory: Write) -> None:
    body = "assert before.shape[-1] % 96 == 0, before.shape; return self.conv(before - after)"
    source = opened(factory(model(body)), multiple=96)
    assert source.declaration.multiple == 96 and source.fixed_tile is None


def test_factory_in_an_installed_package_or_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "networks.py").write_text(HEAD + model("return self.conv(before - after)"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert opened("own_package.networks:make").entry.name == "own_package.networks:make"


def test_modules_beside_the_file_can_be_imported_and_leave_no_bytecode(
    factory: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "beside_the_net.py").write_text("BANDS = 3\n")
    late = "from late_beside_the_net import TWO; return self.conv(before - after)"
    (tmp_path / "late_beside_the_net.py").write_text("TWO = 2\n")
    source = factory("from beside_the_net import BANDS\n" + model(late), "my-net.py")
    assert opened(source).declaration.bands == 3
    assert not list(tmp_path.rglob("*.pyc")) and sys.path[0] != str(tmp_path) and not sys.dont_write_bytecode


# ---- clumsy factories


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def make():\n    raise RuntimeError('no weights\\nsecond line')",
            "net.py:make failed: RuntimeError: no weights",
        ),
        ("raise ValueError('at import')", "net.py:make failed: ValueError: at import"),
        ("def make(: pass", "net.py:make failed: SyntaxError: "),
        ("import missing_package_of_nobody", "ModuleNotFoundError: No module named 'missing_package_of_nobody'"),
        ("def make():\n    raise SystemExit(0)", "net.py:make failed: SystemExit: 0"),
        ("def make():\n    pass", "net.py:make returned NoneType; it must return a torch.nn.Module"),
        ("def make():\n    return nn.Conv2d", "net.py:make returned type; it must return a torch.nn.Module"),
        ("def make(bands, *, depth):\n    pass", "'make' needs the arguments bands, depth, but is called without"),
        ("make = 3", "'make' is int; it must be a function that returns the network"),
        ("", "'make' is missing; it must be a function that returns the network"),
        ("def make():\n    return nn.LazyConv2d(2, 1)", "returned a network with tensors that have no values"),
        (
            "def make():\n    return nn.Conv2d(3, 2, 1, device='meta')",
            "returned a network with tensors that have no values",
        ),
        (
            "def make():\n    return torch.jit.script(nn.Conv2d(6, 2, 1))",
            "returned TorchScript, which PyTorch cannot export",
        ),
        (model("return 'text'"), "the network returned str; it must return a tensor, or a dict or list of tensors"),
        (
            model("return self.conv(before - after).argmax(1)"),
            "which has 2 channels, but the output of the network has 1",
        ),
        (model("return self.conv(before - after)[:, :, ::2, ::2]"), "check --model-output, and resize the output"),
        (
            model("raise KeyError('inside')"),
            "the network on images (1, 3, 256, 256) and (1, 3, 256, 256) failed: KeyError",
        ),
        (model("return self.conv(one)", "one, two, three"), "2 things cannot be found out; add --model-inputs one,two"),
    ],
)
def test_clumsy_factory_is_refused_in_one_line(factory: Write, text: str, message: str) -> None:
    with pytest.raises((InputError, UsageError)) as caught:
        opened(factory(text), bands=3)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.py:make", "missing.py cannot be read: No such file"),
        ("missing_package_of_nobody.net:make", "ModuleNotFoundError: No module named 'missing_package_of_nobody'"),
        (f"{NETWORKS}:not-a-name", "'not-a-name' is missing; it must be a function that returns the network"),
    ],
)
def test_missing_factory_is_refused(source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(source)
    assert message in str(caught.value)


def test_integer_outputs_are_refused(factory: Write) -> None:
    with pytest.raises(InputError, match=r"outputs torch.int64; it must output logits or probabilities"):
        opened(factory(model("return self.conv(before - after).argmax(1)")), model_output="logit1")


def test_settings_that_a_factory_changes_are_restored(factory: Write, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "def make():\n    print('loud')\n    torch.set_num_threads(3)\n    torch.set_default_dtype(torch.float64)\n"
        "    torch.set_grad_enabled(False)\n    torch.manual_seed(7)\n    net = nn.Conv2d(6, 2, 1)\n    return net\n"
    )
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    source = opened(factory(text), model_io="stacked")
    assert torch.get_num_threads() == threads and torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled() and torch.equal(torch.random.get_rng_state(), state)
    shown = capsys.readouterr()
    assert shown.out == "" and "loud" in shown.err
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in source.network.parameters())


def test_network_of_the_factory_stays_unchanged_and_random_weights_are_the_same_each_time(factory: Write) -> None:
    text = "NET = nn.Conv2d(6, 2, 1)\ndef make():\n    return NET.double().train()"
    first, second = (opened(factory(text)) for _ in range(2))
    assert first.sha256 == second.sha256 and torch.equal(first.network.weight, second.network.weight)
    assert not first.network.training


def test_digest_covers_code_and_weights(factory: Write, tmp_path: Path) -> None:
    text = model("return self.conv(before - after)")
    weights = tmp_path / "w.pt"
    torch.save(nn.ModuleDict({"conv": nn.Conv2d(3, 2, 1)}).state_dict(), weights)
    plain = opened(factory(text)).sha256
    changed = opened(factory(text + "# changed\n")).sha256
    loaded = opened(factory(text), weights=str(weights)).sha256
    torch.save({"state_dict": torch.load(weights)}, weights)
    assert len({plain, changed, loaded, opened(factory(text), weights=str(weights)).sha256}) == 4


# ---- graphs


@pytest.mark.parametrize(
    ("io", "kind", "form"),
    [
        ("pair", "logits2", "probability"),
        ("stacked", "logit1", "logits"),
        ("time", "probability1", "mask"),
        ("stacked", "classes:4", "probability"),
        ("pair", "probability2", "probability"),
    ],
)
def test_graph_and_predictor_compute_the_network(factory: Write, io: str, kind: str, form: str) -> None:
    given = {"changed": "1,3"} if kind == "classes:4" else {}
    source = opened(factory(foreign(io, kind)), model_output=kind, normalization="half", **given)
    found = float_model(source, output=form)
    before, after = pair()
    expected = probability_of(ForeignNetwork(io, kind), before, after)
    assert np.allclose(found.predict(before, after), expected, atol=1e-5) and 0.05 < (expected > 0.5).mean() < 0.95
    output = run(found, before, after)
    if form == "logits":
        output = 1 / (1 + np.exp(output[:, 0] - output[:, 1]))
    wrong = (output if form == "mask" else output > 0.5) != (expected > 0.5)
    assert not wrong[np.abs(expected - 0.5) > 1e-4].any()
    assert form == "mask" or np.allclose(output, expected, atol=1e-5)


def probability_of(network: ForeignNetwork, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    dates = [torch.from_numpy((images / 255 - 0.5) / 0.5).float().permute(0, 3, 1, 2) for images in (before, after)]
    if network.io != "pair":
        dates = [torch.cat(dates, 1) if network.io == "stacked" else torch.stack(dates, 1)]
    with torch.inference_mode():
        output = network(*dates)
    if network.kind == "classes:4":
        return output.softmax(1)[:, list(CHANGED)].sum(1).numpy()
    one = {"logits2": lambda x: x.softmax(1)[:, 1], "logit1": lambda x: x.sigmoid()[:, 0]}
    return one.get(network.kind, lambda x: x[:, -1])(output).numpy()


def test_network_with_encode_and_compare_can_be_cut_and_selects_tiles(factory: Write) -> None:
    source = opened(f"{NETWORKS}:siamese")
    found = float_model(source)
    assert found.splits and source.findings[-1].startswith("encodes each date separately")
    graph = found.export()
    cut = find_cut(Graph(graph), found.interface)
    assert len(cut.maps) == 2 and {name.partition("/")[0] for name in cut_names(graph)} >= {"stem.0", "head"}
    before, after = pair(5)
    assert np.allclose(run(found, before, after), found.predict(before, after), atol=1e-5)
    assert found.features is not None
    features = found.features(before, after)
    assert features.shape[0] == 5 and np.array_equal(features, found.features(after, before))


def cut_names(graph: Any) -> list[str]:
    return [node.name for node in graph.graph.node]


def test_encode_and_compare_alone_make_a_network(factory: Write) -> None:
    text = (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 2, 1)\n    def encode(self, image):\n        return (self.conv(image),)\n"
        "    def compare(self, a, b):\n        return a[0] - b[0]\ndef make():\n    return Net()\n"
    )
    source = opened(factory(text))
    before, after = pair()
    found = float_model(source)
    assert found.splits and source.declaration.io == "pair"
    assert np.allclose(run(found, before, after), found.predict(before, after), atol=1e-5)


@pytest.mark.parametrize(
    ("methods", "finding"),
    [
        ("pass", "without encode(image) and compare(features_a, features_b): no parts for series"),
        ("encode = lambda self, x: self.conv(x); compare = lambda self, a, b: a + b", "compare differ from forward by"),
        (
            "encode = lambda self, x: self.conv(x); compare = lambda self, a, b: a[:, :1]",
            "compare return [1, 1, 256, 256]",
        ),
        ("encode = lambda self, x: x.mean(); compare = lambda self, a, b: a", "encode must return a map (B, C, h, w)"),
        (
            "encode = lambda self, x, y: x; compare = lambda self, a, b: a",
            "missing 1 required positional argument: 'y'",
        ),
    ],
)
def test_methods_that_do_not_compute_forward_do_not_split(factory: Write, methods: str, finding: str) -> None:
    text = model("return self.conv(before) - self.conv(after)").replace("def make", "Net.x = 0\ndef make", 1)
    text = text.replace("class Net(nn.Module):\n", f"class Net(nn.Module):\n    {methods}\n")
    source = opened(factory(text))
    assert finding in source.findings[-1] and not float_model(source).splits


def test_network_that_cannot_be_exported_is_refused_with_the_cause(factory: Write) -> None:
    body = "return self.conv(before - after) * (1 if float(before.sum()) > 1e9 else 2)"
    found = float_model(opened(factory(model(body))))
    with pytest.raises(InputError) as caught:
        found.export()
    message = str(caught.value)
    assert message.startswith("PyTorch cannot export net.py:make to ONNX: ") and "\n" not in message
    assert message.endswith("give the ONNX file")


@pytest.mark.parametrize(
    "apart", ["both.chunk(2)", "torch.chunk(both, 2, dim=0)", "torch.split(both, before.shape[0], dim=0)",
              "both.split(before.size(0))"],
)  # fmt: skip
def test_dates_that_are_encoded_as_one_batch_and_taken_apart_are_exported(factory: Write, apart: str) -> None:
    body = f"both = self.conv(torch.cat((before, after))); a, b = {apart}; return a - b"
    found = float_model(opened(factory(model(body))))
    before, after = pair(3)
    assert np.allclose(run(found, before, after), found.predict(before, after), atol=1e-5)


def test_graph_whose_output_depends_on_the_batch_is_refused(factory: Write) -> None:
    found = float_model(opened(factory(model("a = self.conv(before - after); return a - a.mean(0, keepdim=True)"))))
    with pytest.raises(InputError, match="gives another output than the network for a batch of 3"):
        found.export()


def test_values_that_a_network_keeps_in_attributes_do_not_mix_between_threads(factory: Write) -> None:
    body = "self.kept = before - after; import time; time.sleep(0.01); return self.conv(self.kept)"
    predict = float_model(opened(factory(model(body)))).predict
    before, after = pair(8)
    single = np.concatenate([predict(before[i : i + 1], after[i : i + 1]) for i in range(8)])
    assert np.array_equal(predict(before, after), single)


class CopiedForTraining(nn.Dropout):
    """Is in training mode when it was copied, as what torchvision's create_feature_extractor returns."""

    def __deepcopy__(self, memo: dict[int, object]) -> CopiedForTraining:
        return CopiedForTraining(self.p)


def test_copies_of_networks_are_for_inference() -> None:
    copied = pytorch_factory._sharing(nn.Sequential(nn.Conv2d(3, 3, 1), CopiedForTraining(0.9)).eval())
    assert not any(module.training for module in copied.modules())

"""Tests whole builds from factories, and what runs their bundles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the build needs the [export] extra")
pytest.importorskip("onnxsim", reason="the build needs the [export] extra")

from misgnet.synthetic import write_split
from misgnet_export.cli import main as cli
from misgnet_export.pipeline.config import read_config
from misgnet_export.pipeline.request import BuildRequest
from misgnet_runtime.bundle import read_bundle
from misgnet_runtime.cli import main as runtime_cli
from misgnet_runtime.options import make
from support.commands import exit_code
from support.factory_networks import Siamese, Stacked
from support.paths import ROOT
from support.scenes import read, scene, write_raster

NETWORKS = ROOT / "tests" / "support" / "factory_networks.py"
TILE = 64
QUICK = ("--observer", "max", "--repair", "never", "--control-minutes", 0, "--max-f1-drop", 20)


def run(*words: object) -> int:
    return exit_code(runtime_cli.main, "misgnet-run", *words)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    for seed, (name, count) in enumerate({"train": 16, "test": 6}.items(), start=70):
        write_split(folder / name, count, seed, TILE)
    return folder


def build(data: Path, output: Path, *words: object) -> Path:
    sets = ("--calib", data / "train", "--eval", data / "test", "--calib-tiles", 16, "--tile", TILE, "--target", "cpu")
    assert exit_code(cli.main, "misgnet-export", "build", *words, *sets, *QUICK, "-o", output) == 0
    return output


@pytest.fixture(scope="module")
def split_bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds a network with ``encode`` and ``compare``, with weights from a file and options from another."""
    folder = tmp_path_factory.mktemp("split")
    torch.manual_seed(3)
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in Siamese().state_dict().items()}}, folder / "w.pt"
    )
    (folder / "build.toml").write_text(
        f'source = "{NETWORKS}:siamese"\nsplit = true\n[model]\nweights = "w.pt"\nmodel-output = "logits2"\n'
        'normalization = "imagenet"\nresolution = 0.5\nkeep-float32 = ["head"]\n'
    )
    return build(data, folder / "bundle", "--config", folder / "build.toml")


@pytest.fixture(scope="module")
def network(split_bundle: Path) -> Siamese:
    torch.manual_seed(3)
    return Siamese().eval()


def expected(network: Siamese, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the probability of change of images (H, W, 3), computed apart from the project."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    dates = [((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None].float() for image in (before, after)]
    with torch.inference_mode():
        return network(*dates).softmax(1)[0, 1].numpy()


def test_float_engine_computes_the_network(split_bundle: Path, network: Siamese, data: Path, tmp_path: Path) -> None:
    name = sorted(path.name for path in (data / "test" / "A").iterdir())[0]
    pair = [data / "test" / date / name for date in "AB"]
    assert run("predict", split_bundle, *pair, "-o", tmp_path / "out.png", "--engine", "cpu-float32") == 0
    found = np.asarray(Image.open(tmp_path / "out.png")) > 0
    probability = expected(network, *(np.asarray(Image.open(path)) for path in pair))
    assert 0.05 < found.mean() < 0.95
    assert ((probability > 0.5) == found)[np.abs(probability - 0.5) > 1e-4].all()


def test_series_of_the_split_engine_equals_predictions(split_bundle: Path, tmp_path: Path) -> None:
    first, second = (write_raster(tmp_path / f"date{i}.tif", pixels) for i, pixels in enumerate(scene(100, 130)))
    assert run("series", split_bundle, first, second, "-o", tmp_path / "maps", "--engine", "cpu-float32") == 0
    assert run("predict", split_bundle, first, second, "-o", tmp_path / "1.tif", "--engine", "cpu-float32") == 0
    maps = [read(path) > 0 for path in (tmp_path / "maps" / "date1.tif", tmp_path / "1.tif")]
    assert 0.01 < maps[1].mean() < 0.99 and (maps[0] == maps[1]).mean() > 0.999  # features are kept in float16
    assert run("verify", split_bundle) == 0


def test_manifest_keeps_the_model_and_the_resolved_options(
    split_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_bundle(split_bundle).manifest
    model = manifest.model
    assert model is not None
    assert (model.source, model.name, model.io, model.output) == (
        "pytorch", "factory_networks.py:siamese", "pair", "logits2",
    )  # fmt: skip
    assert model.resolution == 0.5 and model.parameters == sum(p.numel() for p in Siamese().parameters())
    assert exit_code(cli.main, "misgnet-export", "inspect", split_bundle, "--config") == 0
    (tmp_path / "kept.toml").write_text(shown := capsys.readouterr().out)
    assert shown == manifest.config
    request = make(BuildRequest, read_config(tmp_path / "kept.toml", BuildRequest))
    assert request.source == f"{NETWORKS}:siamese" and request.tile == TILE and request.split
    assert request.model.keep_float32 == ("head",) and request.output == split_bundle


def test_report_and_evidence_speak_of_pytorch(split_bundle: Path) -> None:
    parity = json.loads((split_bundle / "evidence" / "parity.json").read_text())
    assert parity["reference"] == "PyTorch float32"
    engines = {engine["engine"]: engine for engine in parity["engines"]}
    assert engines["cpu-float32"]["agreement"] > 0.99999 and engines["cpu"]["status"] == "run"


def test_output_of_a_dict_from_stacked_dates(data: Path, tmp_path: Path) -> None:
    words = (
        f"{NETWORKS}:stacked",
        "--model-output",
        "logit1",
        "--model-output-name",
        "change",
        "--normalization",
        "half",
    )
    bundle = build(data, tmp_path / "bundle", *words, "--output-form", "logits")
    model = read_bundle(bundle).manifest.model
    assert model is not None and (model.io, model.output) == ("stacked", "logit1")
    name = sorted(path.name for path in (data / "test" / "A").iterdir())[0]
    pair = [data / "test" / date / name for date in "AB"]
    assert run("predict", bundle, *pair, "-o", tmp_path / "out.png", "--engine", "cpu-float32") == 0
    torch.manual_seed(0)
    network = Stacked().eval()
    dates = [torch.from_numpy(np.asarray(Image.open(path)) / 127.5 - 1).permute(2, 0, 1).float() for path in pair]
    with torch.inference_mode():
        logit = network(torch.cat(dates)[None])["change"][0, 0].numpy()
    found = np.asarray(Image.open(tmp_path / "out.png")) > 0
    assert 0.05 < found.mean() < 0.95 and ((logit > 0) == found)[np.abs(logit) > 4e-4].all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("stacked", "--model-output", "logit1", "--model-output-name", "change", "--split"),
            "--split: the network does",
        ),
        (("siamese", "--model-output", "logits2", "--target", "torch-tensorrt"), "torch-tensorrt"),
        (
            ("siamese", "--model-output", "probability2", "--output-form", "logits"),
            "--output-form is logits, but the net",
        ),
    ],
)
def test_what_the_network_does_not_offer_is_refused_before_the_build(
    words: tuple[str, ...], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, *more = words
    sets = ("--calib", data / "train", "--eval", data / "test", "-o", tmp_path / "bundle", "--normalization", "half")
    for check in ([], ["--check"]):
        code = exit_code(cli.main, "misgnet-export", "build", f"{NETWORKS}:{source}", *sets, *more, *check)
        assert code in (2, 5) and message in capsys.readouterr().err

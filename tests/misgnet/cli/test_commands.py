"""Tests the commands of ``misgnet``: in separate processes, as a user runs them; wrong calls in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch", reason="the network needs the [train] extra")

from misgnet.checkpoint import load_network
from misgnet.cli import main
from misgnet.evaluation import evaluate
from misgnet_runtime.raster.dataset import TileSet
from support.commands import exit_code
from support.paths import DEMO_WEIGHTS as WEIGHTS
from support.paths import ROOT


def misgnet(*arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [ROOT, ROOT / "runtime"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-m", "misgnet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "tiles"
    result = misgnet("synthesize", "-o", folder, "--train", 4, "--val", 3, "--test", 0, "--size", 128, "--seed", 11)
    assert result.returncode == 0, result.stderr
    return folder


def test_synthesize_draws_the_requested_number_of_pairs_reproducibly(tiles: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in tiles.iterdir()) == ["train", "val"]
    assert len(list((tiles / "train" / "label").iterdir())) == 4
    again = tmp_path / "again"
    misgnet("synthesize", "-o", again, "--train", 4, "--val", 3, "--test", 0, "--size", 128, "--seed", 11)
    name = Path("val/B/pair_00002.png")
    assert (again / name).read_bytes() == (tiles / name).read_bytes()
    assert (tiles / "train/A/pair_00000.png").read_bytes() != (tiles / "val/A/pair_00000.png").read_bytes()


def test_evaluate_writes_the_scores_of_the_library(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    result = misgnet("evaluate", WEIGHTS, tiles / "val", "--json", out, "--tile", 64)
    assert result.returncode == 0, result.stderr
    expected = evaluate(load_network(WEIGHTS), TileSet.open(tiles / "val", 64)).scores()
    found = json.loads(out.read_text())
    assert list(found)[:6] == ["precision", "recall", "f1", "iou", "accuracy", "kappa"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert found["tp"] + found["fp"] + found["fn"] + found["tn"] == 3 * 128 * 128
    with Image.open(tmp_path / "scores.png") as maps:
        assert maps.format == "PNG" and maps.width > 4 * 64
    again = misgnet("evaluate", WEIGHTS, tiles / "val", "--json", out, "--tile", 64)
    assert again.returncode == 2 and "scores.json exists" in again.stderr
    alone = misgnet("evaluate", WEIGHTS, tiles / "val", "--json", out, "--tile", 64, "--force", "--worst", 0)
    assert alone.returncode == 0 and "F1" not in alone.stderr


def test_train_writes_weights_that_evaluate_reads(tiles: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = misgnet("train", tiles, "-o", run, "--tile", 64, "--batch", 2, "--epochs", 1, "--init", WEIGHTS)
    assert result.returncode == 0, result.stderr
    assert "validation F1" in result.stderr and "best validation F1" in result.stdout
    assert misgnet("evaluate", run / "best_fp16.safetensors", tiles / "val", "--tile", 64).returncode == 0
    other = misgnet("train", tiles, "-o", run, "--tile", 64, "--resume", "--batch", 4)
    assert other.returncode == 2 and "--batch 2, not 4" in other.stderr
    assert misgnet("train", tiles, "-o", run, "--tile", 64, "--resume", "--batch", 2).returncode == 0


def test_predict_accepts_a_folder_or_two_images(tiles: Path, tmp_path: Path) -> None:
    folder = misgnet("predict", WEIGHTS, tiles / "val", "-o", tmp_path / "out", "--tile", 64, "--overlay")
    assert folder.returncode == 0, folder.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list((tmp_path / "out" / "overlay").iterdir())) == 3
    pair = [tiles / "val" / part / "pair_00001.png" for part in ("A", "B")]
    single = misgnet("predict", WEIGHTS, *pair, "-o", tmp_path / "mask.png", "--tile", 64)
    assert single.returncode == 0, single.stderr
    assert (tmp_path / "mask.png").read_bytes() == (tmp_path / "out" / "pair_00001.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["synthesize", "-o", ".", "--train", 1], 2, "exists"),
        (["synthesize", "-o", "new", "--size", 50], 2, "multiple of 32"),
        (["evaluate", WEIGHTS, "nowhere"], 4, "nowhere"),
        (["evaluate", __file__, "."], 4, "neither safetensors"),
        (["train", "nowhere", "-o", "run"], 4, "nowhere"),
        (["predict", WEIGHTS, "a.png", "b.png", "-o", "m.jpg"], 2, "PNG"),
        (["predict", WEIGHTS, "a.png", "b.png", "-o", "m.png"], 4, "a.png"),
        (["predict", WEIGHTS], 2, "DATA"),
        (["predict", WEIGHTS, "a.png", "-o", "m.png"], 2, "is not a folder"),
        (["predict", WEIGHTS, ".", "a.png", "-o", "m.png"], 2, "is a folder"),
        (["predict", WEIGHTS, ".", "-o", "out"], 4, "directory A does not exist"),
        (["evaluate", WEIGHTS, ".", "--tile", 100], 2, "multiple of 32"),
        (["evaluate", WEIGHTS, ".", "--threshold", 50], 2, "0 to 1"),
        (["evaluate", WEIGHTS, ".", "--maps", "maps.jpg"], 2, "PNG"),
        (["evaluate", WEIGHTS, ".", "--device", "cuda:77"], 5, "cuda:77"),
        (["train", ".", "-o", "run", "--freeze", "decoder"], 2, "decoder"),
        (["train", ".", "-o", "run", "--ema", 1.5], 2, "--ema"),
        (["train", ".", "-o", "run", "--init", "a", "--encoder", "b"], 2, "use one of the two"),
        (["prepare", "levir", "nowhere", "-o", "tiles"], 4, "nowhere"),
        (["prepare", "mars", "nowhere", "-o", "tiles"], 2, "mars"),
    ],
)
def test_wrong_calls_exit_with_the_documented_code(
    arguments: list[object],
    code: int,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = exit_code(main, "misgnet", *arguments)
    errors = capsys.readouterr().err
    assert found == code, errors
    assert word.lower() in errors.lower() and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []

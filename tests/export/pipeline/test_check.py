"""Tests ``build --check``, which reads the network and what else was given, and builds nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")
pytest.importorskip("torch", reason="the compiler needs the [export] extra")

from misgnet_export.cli import main as cli
from support.commands import exit_code
from support.paths import DEMO_WEIGHTS, ROOT

FACTORY = f"{ROOT / 'tests' / 'support' / 'factory_networks.py'}:siamese"


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Returns a folder with two image pairs and their labels."""
    for part in ("A", "B", "label"):
        (tmp_path / "tiles" / part).mkdir(parents=True)
        for name in ("1.png", "2.png"):
            Image.fromarray(np.zeros((64, 64) if part == "label" else (64, 64, 3), np.uint8)).save(
                tmp_path / "tiles" / part / name
            )
    return tmp_path / "tiles"


def check(*words: object) -> int:
    return exit_code(cli.main, "misgnet-export", "build", "--check", *words)


def test_network_alone_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(DEMO_WEIGHTS) == 0
    assert capsys.readouterr().out.splitlines() == [
        "MISGNet with 9,852,002 parameters",
        "tiles of 256 px, batches of up to 16",
        "a build can start; it also needs --calib FOLDER, --eval FOLDER, -o FOLDER",
    ]


def test_folders_that_are_given_are_read_and_nothing_is_written(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (DEMO_WEIGHTS, "--calib", tiles, "--eval", tiles, "-o", tmp_path / "out", "--tile", "auto", "--val", tiles)
    assert check(*words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:] == [
        "tiles of a size yet to be chosen, batches of up to 16", "--calib: 2 image pairs", "--val: 2 image pairs",
        "--eval: 2 image pairs", "a build can start",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiles"]


def test_all_reasons_against_a_build_are_in_one_message(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tiles / "B")
    words = ("missing.pt", "--calib", tiles, "--eval", tmp_path / "no", "-o", tmp_path, "--max-batch", 1)
    assert check(*words) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in ("checkpoint missing.pt cannot be read", "--max-batch is 1;", "exists; choose another name",
                 f"--calib: directory {tiles / 'B'}", f"--eval: directory {tmp_path / 'no' / 'A'}"):  # fmt: skip
        assert part in message


def test_images_must_have_the_bands_of_the_network(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (FACTORY, "--calib", tiles, "--model-output", "logits2", "--normalization", "unit")
    assert check(*words) == 0
    assert "--calib: 2 image pairs" in capsys.readouterr().out
    shutil.rmtree(tiles / "label")
    assert check(*words) == 0
    assert "--calib: 2 image pairs, without labels" in capsys.readouterr().out
    assert check("missing.onnx", "--calib", tiles, "--bands", 4) == 4
    assert "--calib: " in capsys.readouterr().err
    assert check("missing.onnx", "--calib", tiles) == 4
    shown = capsys.readouterr()
    assert "--calib: not read, since the bands of its images are not known" in shown.out and "--calib" not in shown.err


def test_damaged_tile_is_found(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiles / "A" / "1.png").write_bytes((tiles / "A" / "1.png").read_bytes()[:-20])
    assert check(DEMO_WEIGHTS, "--calib", tiles) == 4
    assert "--calib: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing: SOURCE"),
        ([DEMO_WEIGHTS, "--tile", 100], "--tile is 100; it must be a multiple of 32"),
        ([DEMO_WEIGHTS, "--resolution", 0], "--resolution is 0; expected metres per pixel, more than 0"),
        ([DEMO_WEIGHTS, "--bands", 3], "--bands: for an ONNX file or a PyTorch factory"),
    ],
)
def test_options_that_contradict_the_network_are_refused(
    words: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(*words) == 2
    assert message in capsys.readouterr().err


def test_what_was_found_is_printed_although_something_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(FACTORY, "-o", "new") == 2
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "inputs 'before' and 'after': float32 (B, 3, H, W), NCHW, 3 bands of each date, pair",
        "output 'output': 2 channels",
    ]
    assert "2 things cannot be found out; add --model-output logits2 (or" in shown.err

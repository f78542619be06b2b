"""Tests of the script that runs the runtime on an emulated aarch64 processor: arguments, errors and comparison."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import compare

from misgnet_runtime.raster.images import write_mask
from support.bundles import FLOAT, INT8, TILE, expected, images, make_bundle, write_image

SCRIPT = Path(__file__).with_name("run.sh")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A bundle with an engine for another processor, and two images."""
    arm = INT8.__class__("cpu-arm", "onnxruntime", INT8.file, INT8.graph, "int8", "any", needs=["no such processor"])
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT, arm])
    for name, image in zip(("before", "after"), images(TILE, TILE), strict=True):
        write_image(tmp_path / f"{name}.png", image)
    return bundle, tmp_path / "before.png", tmp_path / "after.png"


def test_usage_is_printed() -> None:
    shown = run("-h")
    assert shown.returncode == 0 and "usage: tests/aarch64/run.sh" in shown.stdout and "debootstrap" in shown.stdout
    for wrong in (["bundle"], ["-x", "bundle", "a", "b"]):
        refused = run(*wrong)
        assert refused.returncode == 2 and "usage:" in refused.stderr and not refused.stdout
    refused = run("-c", "max", "bundle", "a", "b")
    assert (refused.returncode, refused.stderr) == (2, "run.sh: -c is max; expected cortex-a76 or cortex-a57\n")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    refused = run("-w", tmp_path / "work", tmp_path, "a.png", "b.png")
    assert refused.returncode == 4 and f"{tmp_path}/manifest.json does not exist" in refused.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("present", [[], ["qemu-aarch64-static"]])
def test_a_missing_tool_is_reported_with_the_install_command(
    present: list[str], pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "cat"):
        (tools / name).symlink_to(shutil.which(name))
    for name in present:
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    refused = run("-w", tmp_path / "work", *pair, PATH=str(tools))
    assert refused.returncode == 5 and "apt-get install qemu-user-static debootstrap" in refused.stderr
    assert refused.stderr.startswith(f"run.sh: requires {'debootstrap' if present else 'qemu-aarch64'};")
    assert not (tmp_path / "work").exists()


def test_masks_are_compared_with_this_machines_masks(
    pair: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = expected(*images(TILE, TILE)) > 0.5
    masks = tmp_path / "masks"
    masks.mkdir()
    for engine in ("cpu-float32", "cpu-arm"):
        write_mask(masks / f"{engine}.png", mask)
    arguments = [*map(str, (*pair, masks)), "cpu-float32"]
    assert compare.main([*arguments, "--least", "1"]) == 0
    assert (
        capsys.readouterr().out == f"cpu-float32: 100.0000 % of {TILE * TILE} pixels are equal, {mask.sum()} changed\n"
    )
    assert compare.main([*arguments, "cpu-arm", "--least", "0.99"]) == 0, "its graph runs here, too, with rounding"
    mask[:2, :] ^= True
    write_mask(masks / "cpu-float32.png", mask)
    assert compare.main(arguments) == 3
    assert compare.main([*arguments, "--least", "0.96"]) == 0
    write_mask(masks / "cpu-float32.png", np.zeros((TILE, TILE + 1), bool))
    assert compare.main([*arguments, "--least", "0.01"]) == 3

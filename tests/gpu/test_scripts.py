"""Tests the scripts: run.sh up to "no GPU" and, as a slow test, its PyTorch part; carry.sh with an imitated Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpu.record import decode
from gpu.table import markdown
from support import gpu
from support.paths import ROOT

RUN, CARRY = (ROOT / "tests" / "gpu" / name for name in ("run.sh", "carry.sh"))
pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell")


def sh(script: Path, *arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(script), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


@pytest.mark.skipif(bool(gpu.DRIVERS), reason="this machine has a GPU")
def test_run_ends_without_a_gpu_in_one_line_from_any_folder(tmp_path: Path) -> None:
    done = sh(RUN, folder=tmp_path)
    assert done.returncode == 5 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("run.sh: no NVIDIA GPU: ") and "--cpu" in line
    assert not list(tmp_path.iterdir())


def test_run_names_what_its_python_lacks(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = sh(RUN, folder=tmp_path, PYTHON=str(bare))
    assert done.returncode == 5 and "cannot import msgspec" in done.stderr
    assert "carry.sh" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_run_times_the_network_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the kit's third part needs PyTorch")
    done = sh(RUN, "--cpu", "--output", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    json_file, table = map(Path, done.stdout.split())
    record = decode(json_file.read_bytes())
    assert json_file.parent == tmp_path / "out" and table.read_text() == markdown(record)
    assert record.seconds <= record.limit <= 120 and record.machine.host["cores"]
    assert record.network is not None and {one.mode for one in record.network.times} >= {"eager"}
    assert all(one.equal_pixels > 0.99 for one in record.network.agreements)


FAKE_PYTHON = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
  *"pip wheel"*) touch "$WHEELS/misgnet_export-1-py3-none-any.whl" ;;
  *wheelhouse*) echo listed >"$WHEELS/requirements.txt" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts in a checkout of their own, so that they write no wheels into this one."""
    folder = tmp_path / "checkout" / "tests" / "gpu"
    folder.mkdir(parents=True)
    for name in ("run.sh", "carry.sh", "requirements.txt", "requirements-small.txt"):
        shutil.copy(ROOT / "tests" / "gpu" / name, folder / name)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return folder


def carried(checkout: Path, tmp_path: Path, *arguments: str) -> list[str]:
    calls = tmp_path / "calls"
    done = sh(
        checkout / "carry.sh", *arguments, folder=tmp_path, PYTHON=str(tmp_path / "python"), CALLS=str(calls),
        WHEELS=str(checkout / "wheels"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines()


def test_carry_downloads_wheels_for_the_other_machines_python(checkout: Path, tmp_path: Path) -> None:
    wheel, rtx, download = carried(checkout, tmp_path, "-w", "-y", "3.13", "torch<2.11")
    assert (
        "pip wheel" in wheel
        and wheel.endswith(str(checkout.parents[1]))
        and rtx.endswith(" tensorrt-rtx tensorrt-rtx-cu13")
    )
    assert "--only-binary=:all:" in download and "--python-version 3.13" in download
    requirements = checkout / "wheels" / "requirements.txt"
    assert "--platform manylinux_2_28_x86_64" in download and download.endswith(f"-r {requirements}")
    assert requirements.read_text() == (checkout / "requirements.txt").read_text() + "torch<2.11\n"


def test_carry_leaves_out_pytorch_where_the_machine_has_it(checkout: Path, tmp_path: Path) -> None:
    _, download = carried(checkout, tmp_path, "-n", "-w")
    assert "pip download" in download
    requirements = (checkout / "wheels" / "requirements.txt").read_text()
    assert "safetensors" in requirements and not {"torch", "rtx"} & set(re.split(r"\W+", requirements))


def test_carry_fills_a_wheelhouse_for_a_jetson(checkout: Path, tmp_path: Path) -> None:
    house, download = carried(checkout, tmp_path, "-w", "-p", "jetpack6")
    assert f"wheelhouse --platform jetpack6 -o {checkout / 'wheels'}" in house
    assert "--python-version 3.10" in download and "manylinux_2_28_aarch64" in download and "pytest" in download
    assert (checkout / "wheels" / "requirements.txt").read_text().split() == ["listed", "misgnet-export", "pytest"]


def test_carry_builds_a_bundle_of_the_demo_weights(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "python").write_text(FAKE_PYTHON + 'if [ "$2" = misgnet ]; then mkdir -p "$5/test"; fi\n')
    synthesize, build = carried(checkout, tmp_path, "-b", "-p", "jetpack7")
    assert "misgnet synthesize" in synthesize
    assert "--target jetson-orin --target jetson-thor --ship-eval" in build and "misgnet_synthetic" in build


@pytest.mark.parametrize("arguments", [["-p", "windows"], ["-x"]])
def test_carry_refuses_unknown_arguments(arguments: list[str], tmp_path: Path) -> None:
    done = sh(CARRY, *arguments, folder=tmp_path)
    assert done.returncode == 2 and done.stderr and not done.stdout


def test_run_lists_the_wheels(checkout: Path, tmp_path: Path) -> None:
    missing = sh(checkout / "run.sh", "--list", folder=tmp_path)
    assert missing.returncode == 4 and "carry.sh" in missing.stderr
    (checkout / "wheels").mkdir()
    (checkout / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"x")
    listed = sh(checkout / "run.sh", "--list", folder=tmp_path)
    assert listed.returncode == 0 and "a-1-py3-none-any.whl" in listed.stdout


@pytest.mark.parametrize("script", [RUN, CARRY], ids=lambda path: path.name)
def test_scripts_name_no_index_and_no_path_of_a_machine(script: Path) -> None:
    text = script.read_text()
    assert "://" not in text and "index-url" not in text and "/home" not in text

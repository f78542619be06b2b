"""Tests commands on a closed pipe or a full disk: no traceback, and the requested work is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.bundles import FLOAT, edit, images, make_bundle, write_image
from support.paths import ROOT

SOURCES = [str(ROOT / folder) for folder in (".", "export", "calibration", "runtime")]
CALL = "import sys\nfrom misgnet_runtime.cli.main import main\nsys.argv = ['misgnet-run', *sys.argv[1:]]\nmain()\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_bundle(tmp_path / "bundle")
    for date, value in (("before", 0), ("after", 255)):
        write_image(tmp_path / f"{date}.png", np.full((64, 64, 3), value, np.uint8))
    return root


def run(root: Path, *words: str, closed: str = "stdout", how: str = "pipe") -> tuple[int, str]:
    """Returns the exit code and the text of the other stream; ``how``: a closed pipe, or no stream at all."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if closed == "stdout" else "stdout"
    command = [sys.executable, "-c", CALL, *words]
    if how == "none":
        number = 1 if closed == "stdout" else 2
        command = ["sh", "-c", f'exec "$@" {number}>&-', "sh", *command]
    streams = {closed: write if how == "pipe" else None, other: subprocess.PIPE}
    ended = subprocess.run(command, cwd=root.parent, env=variables, check=False, **streams)  # type: ignore[call-overload]
    os.close(write)
    return ended.returncode, (ended.stderr if other == "stderr" else ended.stdout).decode()


@pytest.mark.parametrize(
    "words", ["info bundle", "--log json info bundle", "verify bundle", "--help", "predict --help"]
)
def test_commands_that_only_print_succeed_on_a_closed_pipe(root: Path, words: str) -> None:
    assert run(root, *words.split()) == (0, "")


def test_long_output_succeeds_on_a_closed_pipe(root: Path) -> None:
    """Output larger than the pipe and the stream's buffer: the error comes while writing, not at the end."""
    edit(root, lambda m: m.update(metrics={"engines": [], "notes": ["x" * 4000] * 100}))
    assert run(root, "--log", "json", "info", "bundle") == (0, "")
    command = f"'{sys.executable}' -c \"$1\" --log json info bundle | head -c 9; exit ${{PIPESTATUS[0]}}"
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    ended = subprocess.run(
        ["bash", "-c", command, "bash", CALL], cwd=root.parent, env=variables, capture_output=True, check=False
    )
    assert (ended.returncode, len(ended.stdout), ended.stderr) == (0, 9, b"")


@pytest.mark.parametrize("how", ["pipe", "none"])
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_job_finishes_on_a_closed_pipe(root: Path, form: str, closed: str, how: str) -> None:
    words = ("--log", form, "predict", "bundle", "before.png", "after.png", "-o", "mask.png")
    code, other = run(root, *words, closed=closed, how=how)
    assert code == 0 and "Traceback" not in other
    assert (root.parent / "mask.png").is_file()
    if closed == "stderr" and form == "json":
        assert json.loads(other.splitlines()[-1])["event"] == "result"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_failing_job_keeps_its_exit_code_on_a_closed_pipe(root: Path, form: str, closed: str) -> None:
    words = ("--log", form, "predict", "bundle", "missing.png", "after.png", "-o", "mask.png")
    assert run(root, *words, closed=closed)[0] == 4


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_batch_finishes_on_a_closed_pipe(root: Path, closed: str) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(80, 100, 0), strict=True):
        write_raster(root.parent / f"{date}.tif", pixels)
    (root.parent / "table.csv").write_text("id,before,after\na,before.tif,after.tif\nb,missing.tif,after.tif\n")
    code, _ = run(root, "batch", "bundle", "table.csv", "-o", "out", "--workers", "1", closed=closed)
    assert code == 6
    assert (root.parent / "out/a.tif").is_file() and (root.parent / "out/results.csv").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a disk without room")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("command", ["info", "verify", "watch"])
def test_a_full_disk_behind_stdout_does_not_stop_the_work(tmp_path: Path, command: str, buffered: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    for name in ("a", "b"):
        for date, pixels in zip(("before", "after"), images(70, 60), strict=True):
            write_image(tmp_path / f"in/{name}_{date}.png", pixels)
    more = {"watch": [tmp_path / "in", "-o", tmp_path, "--once", "--settle", "0"]}
    words = [sys.executable, "-m", "misgnet_runtime", command, bundle, *more.get(command, [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "PYTHONUNBUFFERED": buffered}
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(list(map(str, words)), stdout=full, stderr=-1, env=environment, text=True, check=False)
        assert subprocess.run(list(map(str, words)), stdout=-1, stderr=full, env=environment, check=True).stdout
    last = "error: cannot write this command's output: No space left on device; free some space and rerun it"
    assert (found.returncode, found.stderr.splitlines()[-1]) == (4, last) and "Traceback" not in found.stderr
    assert command != "watch" or all((tmp_path / f"{name}_change.png").exists() for name in ("a", "b"))

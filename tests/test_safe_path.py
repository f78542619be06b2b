"""Tests that no command imports code from its working directory, and neither do its child processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from support.bundles import make_bundle
from support.paths import ROOT

SOURCES = [str(ROOT / folder) for folder in (".", "export", "calibration", "runtime")]
# Names of modules of the standard library, of dependencies and of this project.
POISON = (
    "contextlib", "json", "misgnet_runtime", "msgspec", "multiprocessing", "numpy", "onnxruntime", "pickle",
    "rasterio", "runpy", "socket", "statistics", "struct", "threading",
)  # fmt: skip
QUICK = ("--seconds", "0.02", "--threads", "1", "--rounds", "1", "--warm-up", "0")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Returns a folder with a bundle, and with modules that leave a mark and exit if they are imported."""
    folder = tmp_path / "data"
    make_bundle(folder / "bundle")
    for name in POISON:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'marks')!r}, 'a').write('{name} ')\nraise SystemExit(9)"
        )
    (tmp_path / "misgnet-run").write_text("from misgnet_runtime.cli.main import main\nmain()\n")
    return folder


def run(here: Path, *words: str, python_path: str = "") -> subprocess.CompletedProcess[str]:
    """Runs ``misgnet-run`` like its console script, in the folder ``here``."""
    variables = {**os.environ, "PYTHONPATH": python_path or os.pathsep.join(SOURCES), "MISGNET_CACHE": str(here / "c")}
    command = [sys.executable, str(here.parent / "misgnet-run"), *words]
    return subprocess.run(command, cwd=here, env=variables, capture_output=True, text=True, check=False)


def check(here: Path, ended: subprocess.CompletedProcess[str]) -> None:
    marks = here.parent / "marks"
    assert not marks.exists(), f"imported from the working directory: {marks.read_text()}"
    assert ended.returncode == 0, ended.stderr


def test_timing_imports_nothing_from_the_working_directory(here: Path) -> None:
    check(here, run(here, "bench", "bundle", *QUICK))


def test_an_empty_entry_of_pythonpath_does_not_reach_child_processes(here: Path) -> None:
    """PYTHONPATH=$UNSET:/folder includes the working directory. The module appears after this process's own imports."""
    script = here.parent / "misgnet-run"
    (here / "statistics.py").rename(here / "later.py")
    for name in POISON:
        (here / f"{name}.py").unlink(missing_ok=True)
    script.write_text(
        "import os\nfrom misgnet_runtime.inference import throughput, throughput_worker\n"
        "from misgnet_runtime.cli.main import main\n"
        "os.rename('later.py', 'statistics.py')\nmain()\n"
    )
    path = os.pathsep.join(["", *SOURCES])
    check(here, run(here, "bench", "bundle", *QUICK, python_path=path))


def test_scenes_import_nothing_from_the_working_directory(here: Path) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(80, 100, 0), strict=True):
        write_raster(here / f"{date}.tif", pixels)
    (here / "table.csv").write_text("id,before,after\na,before.tif,after.tif\n")
    check(here, run(here, "batch", "bundle", "table.csv", "-o", "out", "--workers", "1"))
    pair = ("--scene", "before.tif", "after.tif")
    check(here, run(here, "bench", "bundle", *QUICK, *pair))


def test_every_process_is_started_by_one_module() -> None:
    """Only ``children`` starts interpreters; no other file does, or uses multiprocessing's functions for it."""
    pattern = re.compile(r"sys\.executable|multiprocessing\.(get_context|Process|Pool)|ProcessPoolExecutor|\"-m\"")
    allowed = {"children.py", "training_throughput.py"}  # the second runs its own file
    folders = ("runtime", "export", "calibration", "misgnet", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.name not in allowed]
    found = [str(path.relative_to(ROOT)) for path in files if pattern.search(path.read_text(encoding="utf-8"))]
    assert not found
    assert len(files) > 200


def test_a_child_process_gets_the_import_path_without_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from misgnet_runtime.children import import_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", "relative", str(tmp_path), "/one", "/a:b"])
    assert import_path() == ["/one", str(ROOT / "runtime")]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/:")
    assert import_path() == [str(tmp_path), "/one", str(ROOT / "runtime")], "named by its absolute path"


def test_a_child_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import os, time\n\ndef wait(connection):\n    connection.send(os.getpid())\n    time.sleep(60)\n"
    )
    script = "from endless import wait\nfrom misgnet_runtime.children import start\n"
    script += "child = start(wait)\nprint(child.connection.recv(), flush=True)\nimport os\nos.kill(os.getpid(), 9)\n"
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *SOURCES])}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=variables, stdout=subprocess.PIPE, text=True, check=False
    )
    child = Path("/proc") / ended.stdout.strip()
    deadline = time.monotonic() + 10
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.returncode == -signal.SIGKILL
    assert time.monotonic() < deadline


def test_ray_cluster_does_not_get_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray adds the driver's working directory to the import path of all its workers."""
    from misgnet_runtime.jobs.batch.ray import ray_cluster

    seen: list[Path] = []
    fake = ModuleType("ray")
    fake.__dict__.update(
        is_initialized=lambda: False, init=lambda **_: seen.append(Path.cwd()), shutdown=lambda: seen.append(Path.cwd())
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.chdir(tmp_path)
    with ray_cluster("auto"):
        assert Path.cwd() == tmp_path
    assert seen == [ROOT / "runtime", tmp_path]

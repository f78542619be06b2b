"""Tests the import contracts of pyproject.toml: they hold, and any import of a higher layer breaks them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

pytest.importorskip("importlinter", reason="import-linter is not installed: the [dev] extra")

PACKAGES = (
    "misgnet", "export/misgnet_export", "calibration/misgnet_calibration", "runtime/misgnet_runtime",
)  # fmt: skip
# A module of a lower layer, and a line in it that imports a higher layer, at the top level or in a function.
UP = {
    "runtime/misgnet_runtime/storage/atomic.py": "from misgnet_runtime.cli.main import main as up",
    "export/misgnet_export/report/figures.py": "def late():\n    from misgnet_export.pipeline import build as up",
    "calibration/misgnet_calibration/onnx_graph/shapes.py": "def late():\n    import misgnet_calibration.quantizer.qdq",
    "misgnet/tensors.py": "def late():\n    from misgnet.training import train as up",
}
ACROSS = {
    "runtime/misgnet_runtime/bundle/reader.py": "def late():\n    import torch as vendor",
    "calibration/misgnet_calibration/statistics/observers.py": "import torch as vendor",
    "misgnet/devices.py": "def late():\n    import misgnet_export.pipeline.build",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Returns a copy of the packages' sources and of the contracts."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def contracts(tree: Path) -> tuple[int, str]:
    """Returns the exit code and the unwrapped output of lint-imports in ``tree``."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    paths = os.pathsep.join(str(tree / package) for package in (".", "export", "calibration", "runtime"))
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "300"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return found.returncode, found.stdout + found.stderr


def append(tree: Path, lines: dict[str, str]) -> None:
    for name, line in lines.items():
        with (tree / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{line}\n")


def test_all_contracts_are_kept(tree: Path) -> None:
    code, text = contracts(tree)
    assert code == 0 and " 0 broken" in text, text


def test_import_of_a_higher_layer_breaks_the_contract(tree: Path) -> None:
    append(tree, UP)
    code, text = contracts(tree)
    assert code == 1
    for floors in ("the runtime", "export", "calibration", "the network's package"):
        assert f"Floors of {floors} BROKEN" in text
    for name in UP:
        module = Path(name).with_suffix("").as_posix().replace("/", ".")
        assert f"- {module[module.index('misgnet') :]} -> " in text, "the import is named"


def test_import_of_another_package_breaks_the_contract(tree: Path) -> None:
    append(tree, ACROSS)
    code, text = contracts(tree)
    assert code == 1
    for contract in (
        "Packages import downwards",
        "The runtime imports no other package, no PyTorch and no onnx",
        "Calibration does not import PyTorch",
    ):
        assert f"{contract} BROKEN" in text


def test_import_cycle_is_refused(tree: Path) -> None:
    circle = "def late():\n    from misgnet_calibration.statistics.calibrators import MAX as up"
    append(tree, {"calibration/misgnet_calibration/statistics/entropy.py": circle})
    code, text = contracts(tree)
    assert code == 1 and "No import cycles BROKEN" in text
    assert "No cycles are allowed in misgnet_calibration.statistics." in text


def test_module_without_a_layer_is_refused(tree: Path) -> None:
    for package in PACKAGES:
        (tree / package / "homeless.py").write_text('"""In no layer."""\n', encoding="utf-8")
    code, text = contracts(tree)
    assert code == 1 and text.count("homeless") == len(PACKAGES), text

"""Runs the notebooks of the examples from top to bottom."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("onnxscript", reason="the notebook builds a bundle and needs the [export] extra")
pytest.importorskip("pyogrio", reason="the notebook writes polygons and needs the [geo] extra")

from support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["bring_your_own_network.ipynb", "change_map.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(notebook: Path) -> None:
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_own_network_becomes_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells need no kernel."""
    notebook = ROOT / "examples" / "bring_your_own_network.ipynb"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, Any] = {}
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}:{cell['id']}", "exec"), names)
    output = capsys.readouterr().out
    assert "2 things cannot be found out" in output
    assert (tmp_path / "own_network" / "bundle" / "manifest.json").is_file()
    assert names["change"].max() == 1, "nothing was found"


@pytest.mark.slow
def test_change_map_shows_its_pictures(tmp_path: Path) -> None:
    """Runs in a kernel, as in Jupyter."""
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    for name in ("ipykernel", "geopandas", "matplotlib", "rioxarray"):
        pytest.importorskip(name, reason="the notebook needs the [notebook] extra, and ipykernel to run")
    notebook = nbformat.read(ROOT / "examples" / "change_map.ipynb", as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert [page for page in pages if page.startswith("<div><p>SceneResult") and "data:image/jpeg;base64," in page]
    pictures = [PIL.Image.open(BytesIO(b64decode(data["image/png"]))) for data in shown if "image/png" in data]
    for picture in pictures:
        assert min(picture.size) > 300 and len(np.unique(np.asarray(picture.convert("L")))) > 50, "an empty picture"
    assert len(pictures) >= 2
    printed = "".join(
        output["text"] for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    assert "of the valid pixels changed" in printed
    assert {"change.tif", "change.gpkg", "change.png", "change.html"} <= {
        path.name for path in (tmp_path / "change_map").iterdir()
    }

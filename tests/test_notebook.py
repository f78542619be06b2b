"""Runs the notebooks of the examples from top to bottom."""

from __future__ import annotations

import base64
import json
import re
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

from notebook_pages import notebook_files
from support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


def test_there_are_notebooks() -> None:
    names = ["bring_your_own_network", "build_a_bundle", "change_map", "monitor_a_place"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_outputs_of_one_run(notebook: Path) -> None:
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [one for one in outputs if one["output_type"] == "error"]
    assert notebook.stat().st_size < 500_000
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", notebook.read_text(encoding="utf-8")), (
        "a folder of a machine"
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_page_of_a_notebook_shows_its_pictures(notebook: Path) -> None:
    files = notebook_files(notebook)
    page = files.pop(f"notebooks/{notebook.stem}.md")
    assert isinstance(page, str) and page.startswith("# ") and f"`examples/{notebook.name}`" in page
    assert [name for name in files if f"]({name.removeprefix('notebooks/')})" not in page] == []
    assert ".ipynb)" not in page and "../docs/" not in page
    assert notebook.stem == "bring_your_own_network" or files or "data:image/" in page


def test_outputs_become_markdown(tmp_path: Path) -> None:
    png = base64.b64encode(b"a picture").decode()
    found = [
        {"output_type": "stream", "name": "stdout", "text": ["\x1b[1mone\x1b[0m\n", "two\n"]},
        {"output_type": "display_data", "data": {"image/png": png, "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": ["<table>\n\n", "</table>"], "text/plain": "a table"}},
    ]
    source = "See [a page](../docs/how-to/tune.md#top) and [another](other.ipynb)."
    cells = [
        {"cell_type": "markdown", "source": "# Title\n\nText"},
        {"cell_type": "code", "source": "run()", "outputs": found},
        {"cell_type": "markdown", "source": source},
    ]  # fmt: skip
    path = tmp_path / "some.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    files = notebook_files(path)
    assert files["notebooks/some-1.png"] == b"a picture"
    assert files["notebooks/some.md"] == (
        "# Title\n\n*This page is the notebook `examples/some.ipynb`, with the outputs of a run.*\n\nText\n\n"
        "```python\nrun()\n```\n\n```text\none\ntwo\n```\n\n![Output of the cell above](some-1.png)\n\n"
        '<div class="output"><table> </table></div>\n\n'
        "See [a page](../how-to/tune.md#top) and [another](other.md).\n"
    )


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


def run_in_a_kernel(name: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Runs a notebook in ``folder`` as Jupyter does; returns what its outputs show, by type, and what was printed."""
    for module in ("nbformat", "nbclient", "ipykernel", "geopandas", "matplotlib", "rioxarray"):
        pytest.importorskip(module, reason="the notebook needs the [notebook] extra, and ipykernel to run")
    from run_notebooks import executed

    cells = executed(ROOT / "examples" / f"{name}.ipynb", folder).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    printed = [output["text"] for output in outputs if output.output_type == "stream" and output.name == "stdout"]
    return [output["data"] for output in outputs if "data" in output], "".join(printed)


def pictures_of(shown: list[dict[str, Any]]) -> list[PIL.Image.Image]:
    """Returns the pictures among outputs; none is empty."""
    found = [data.get("image/png") or data.get("image/jpeg") for data in shown]
    pictures = [PIL.Image.open(BytesIO(b64decode(picture))) for picture in found if picture]
    for picture in pictures:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50, "an empty picture"
    return pictures


@pytest.mark.slow
def test_change_map_shows_its_pictures(tmp_path: Path) -> None:
    shown, printed = run_in_a_kernel("change_map", tmp_path)
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert [page for page in pages if page.startswith("<div><p>SceneResult") and "data:image/jpeg;base64," in page]
    assert len(pictures_of(shown)) >= 2
    assert "of the valid pixels changed" in printed
    assert {"change.tif", "change.gpkg", "change.png", "change.html"} <= {
        path.name for path in (tmp_path / "change_map").iterdir()
    }


@pytest.mark.slow
def test_build_a_bundle_shows_the_pictures_of_the_report(tmp_path: Path) -> None:
    shown, printed = run_in_a_kernel("build_a_bundle", tmp_path)
    (page,) = [data["text/html"] for data in shown if "text/html" in data]
    assert page.count("<img ") == 6 and "differing pixel" in page
    assert len(pictures_of(shown)) == 1
    assert "cpu-float32" in printed and "of the golden tiles' pixels agree" in printed


@pytest.mark.slow
def test_monitored_place_shows_what_was_built_when(tmp_path: Path) -> None:
    shown, printed = run_in_a_kernel("monitor_a_place", tmp_path)
    assert len(pictures_of(shown)) == 3
    assert printed.count("changed since 2022-05") == 4

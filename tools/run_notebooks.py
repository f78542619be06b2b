#!/usr/bin/env python3
"""Runs the notebooks of examples/ and keeps their outputs in them, for the documentation and for readers of the files.

python tools/run_notebooks.py [NAME...]     default: all; each takes at most a few minutes

Their outputs name no folder of this machine: they run in a temporary one, whose name is removed.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import PIL.Image
from nbclient import NotebookClient
from nbformat import NotebookNode

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SECONDS = 900  # limit of one cell
LIBRARY = re.compile(r"/\S*/(?:site-packages|python3\.\d+)/")  # the folder of a library, in warnings
LARGE = 100_000  # characters of a picture as PNG, above which it is kept as JPEG


def executed(path: Path, folder: Path) -> NotebookNode:
    """Runs a notebook with ``folder`` as its working directory and returns it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else the kernel warns of frozen modules
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources=where, record_timing=False, coalesce_streams=True
    ).execute()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        shrink_picture(output.get("data", {}))
        if "text" in output:
            output.text = LIBRARY.sub("", output.text.replace(f"{folder}/", ""))
    notebook.metadata.language_info = {"name": "python"}  # the kernel adds its version
    return notebook


def shrink_picture(data: dict[str, Any]) -> None:
    """Keeps one form of a picture: PNG, or JPEG if PNG is large, as it is for photographs."""
    png = data.get("image/png", "")
    if "image/jpeg" not in data and len(png) > LARGE:
        packed = io.BytesIO()
        with PIL.Image.open(io.BytesIO(base64.b64decode(png))) as picture:
            picture.convert("RGB").save(packed, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(packed.getvalue()).decode()
    if "image/jpeg" in data:
        data.pop("image/png", None)


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
    for name in names:
        path = EXAMPLES / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()

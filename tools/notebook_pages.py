"""Makes pages of the documentation from the notebooks of examples/, with the outputs that these keep; runs nothing."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "notebooks"  # of the pages, below docs/
LINK = re.compile(r"\]\((?:\.\./docs/(?P<page>[\w./-]+)|(?P<notebook>\w+)\.ipynb)(?P<anchor>#[\w-]+)?\)")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal

Cell = dict[str, Any]


def notebook_files(path: Path) -> dict[str, str | bytes]:
    """Returns the page of a notebook and its pictures, by their paths below docs/."""
    cells: list[Cell] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pictures: dict[str, bytes] = {}
    parts = [part for cell in cells for part in _parts(cell, path.stem, pictures)]
    title, *rest = parts
    head, _, text = title.partition("\n")
    note = f"*This page is the notebook `examples/{path.name}`, with the outputs of a run.*"
    page = "\n\n".join([head, note, text.strip(), *rest]) + "\n"
    return {f"{FOLDER}/{path.stem}.md": page, **{f"{FOLDER}/{name}": data for name, data in pictures.items()}}


def _parts(cell: Cell, stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield LINK.sub(_link, source)
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        yield _output(output, stem, pictures)


def _output(output: Cell, stem: str, pictures: dict[str, bytes]) -> str:
    """Returns an output as Markdown; of its forms the richest one. Adds a picture to ``pictures``."""
    data = {kind: "".join(value) for kind, value in output.get("data", {"text/plain": output.get("text", "")}).items()}
    if html := data.get("text/html"):
        return f'<div class="output">{" ".join(html.split())}</div>'
    for kind in ("png", "jpeg"):
        if picture := data.get(f"image/{kind}"):
            name = f"{stem}-{len(pictures) + 1}.{kind}"
            pictures[name] = b64decode(picture)
            return f"![Output of the cell above]({name})"
    text = ESCAPES.sub("", data["text/plain"]).strip("\n")
    return f"```text\n{text}\n```"


def _link(found: re.Match[str]) -> str:
    """Returns a link of a notebook for its page: to a page of docs/, or to the page of another notebook."""
    target = f"../{found['page']}" if found["page"] else f"{found['notebook']}.md"
    return f"]({target}{found['anchor'] or ''})"

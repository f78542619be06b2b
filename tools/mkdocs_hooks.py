"""Hooks of the documentation's site (mkdocs.yml): insert generated parts, Markdown files of the root, and notebooks.

A line `<!-- generate: NAME -->` of a page is replaced by text that is generated from the source. NAME is a program, for
its reference (tools/cli_reference.py), or a kind of JSON file, for the structs in it (tools/schema_reference.py).
A line `<!-- include: FILE.md -->` is replaced by that file, with its links rewritten for the site.
Each notebook of examples/ becomes a page in notebooks/ (tools/notebook_pages.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from cli_reference import PROGRAMS, program_reference
from notebook_pages import notebook_files
from schema_reference import ROOTS, struct_reference

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r"^<!-- include: (?P<name>[\w.-]+) -->$", re.MULTILINE)
GENERATE = re.compile(r"^<!-- generate: (?P<name>[\w-]+) -->$", re.MULTILINE)
ROOT_PAGES = {
    "README.md": "index.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md", "ARCHITECTURE.md": "architecture.md",
}  # fmt: skip
SHORT_CODE = re.compile(r"<code>(?=[^<\s]{1,20}</code>)")
LINK = re.compile(r"\]\((?P<target>[\w./-]+)(?P<anchor>#[\w-]+)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the notebooks' pages and pictures."""
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        for path, content in notebook_files(notebook).items():
            files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the markers of a page."""
    markdown = INCLUDE.sub(lambda found: root_file(found["name"]), markdown)
    return GENERATE.sub(lambda found: generated(found["name"]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Marks short code spans, such as options, so that the style sheet does not break them at a hyphen."""
    return SHORT_CODE.sub('<code class="short">', html)


def generated(name: str) -> str:
    """Returns a generated part of a page."""
    if name in ROOTS:
        return struct_reference(name)
    if name in PROGRAMS:
        return program_reference(name)
    raise KeyError(f"nothing is generated under the name '{name}'; a page names one of {[*PROGRAMS, *ROOTS]}")


def root_file(name: str) -> str:
    """Returns a Markdown file of the root; links to other pages of the site are relative to docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return LINK.sub(_link, text)


def _link(found: re.Match[str]) -> str:
    target = found["target"]
    if target in ROOT_PAGES:
        target = ROOT_PAGES[target]
    elif target.startswith("docs/"):
        target = target.removeprefix("docs/")
    return f"]({target}{found['anchor'] or ''})"

"""Hooks of the documentation's site (mkdocs.yml): fills in generated parts and pages that show files of the root.

A line `<!-- generate: NAME ARGUMENTS -->` of a page is replaced by what tools/reference.py generates from the source.
A line `<!-- include: FILE.md -->` is replaced by that file, with its links rewritten for the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r"^<!-- include: (?P<name>[\w.-]+) -->$", re.MULTILINE)
ROOT_PAGES = {
    "README.md": "index.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md", "ARCHITECTURE.md": "architecture.md",
}  # fmt: skip
LINK = re.compile(r"\]\((?P<target>[\w./-]+)(?P<anchor>#[\w-]+)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the markers of a page."""
    return INCLUDE.sub(lambda found: root_file(found["name"]), markdown)


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

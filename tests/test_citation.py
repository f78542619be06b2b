"""Tests that CITATION.cff agrees with the project's metadata; `dev.py lint` validates it by its format's schema."""

from __future__ import annotations

from typing import Any

import pytest

from support.paths import ROOT

tomllib = pytest.importorskip("tomllib")
yaml = pytest.importorskip("yaml")


def cited() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return loaded


def test_citation_of_the_software_agrees_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = cited()
    assert {key: citation[key] for key in ("title", "version", "license", "abstract", "keywords", "authors")} == {
        "title": project["name"],
        "version": project["version"],
        "license": project["license"],
        "abstract": project["description"],
        "keywords": project["keywords"],
        "authors": project["authors"],
    }


def test_paper_is_the_one_that_the_readme_names() -> None:
    (paper,) = cited()["references"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f'"{paper["title"]}"' in readme
    assert f"{paper['authors'][0]['family-names']} et al." in readme and f"{paper['volume']}, {paper['year']}" in readme

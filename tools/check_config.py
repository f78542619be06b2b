#!/usr/bin/env python3
"""Validates files that other programs read by their schemas, and shell scripts by shellcheck; exit code 1 on errors.

`python3 dev.py lint` runs it. check-jsonschema brings the schemas, so nothing is fetched.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {  # of check-jsonschema
    "github-workflows": ".github/workflows/*.yml",
    "github-actions": "action.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "citation-file-format": "CITATION.cff",
}
WITH_STEPS = ("action.yml", ".github/workflows/*.yml")
OPTIONS = ("--shell=bash", "--severity=style")


def main() -> int:
    """Runs all checks and returns the exit code."""
    failed = [name for name, check in checks().items() if not check()]
    for name in failed:
        print(f"{name}: failed, see above", file=sys.stderr)
    return 1 if failed else 0


def checks() -> dict[str, Callable[[], bool]]:
    """Returns what is checked, and functions that return whether it passes."""
    found: dict[str, Callable[[], bool]] = {}
    for schema, pattern in SCHEMAS.items():
        files = [str(path) for path in sorted(ROOT.glob(pattern))]
        found[pattern] = partial(run, "check-jsonschema", "--quiet", "--builtin-schema", f"vendor.{schema}", *files)
    found[".pre-commit-config.yaml"] = partial(run, "pre-commit", "validate-config", ".pre-commit-config.yaml")
    found["shell scripts"] = partial(run, "shellcheck", *OPTIONS, *shell_scripts())
    for file in (path for pattern in WITH_STEPS for path in sorted(ROOT.glob(pattern))):
        for name, script in scripts_of(file):
            found[f"{file.name}, {name}"] = partial(run, "shellcheck", *OPTIONS, "-", text=script)
    return found


def shell_scripts() -> list[str]:
    words = ["git", "ls-files", "*.sh", ".ci/run"]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def scripts_of(file: Path) -> Iterator[tuple[str, str]]:
    """Yields name and text of each script in the steps of an action or a workflow."""
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    holders = [loaded["runs"]] if "runs" in loaded else loaded["jobs"].values()
    for step in (step for holder in holders for step in holder["steps"]):
        if "run" in step:
            yield step.get("name", step["run"]), step["run"]


def run(command: str, *arguments: str, text: str | None = None) -> bool:
    """Returns whether a program of this script's environment succeeds; ``text`` is its stdin."""
    words = [str(Path(sys.executable).with_name(command)), *arguments]
    return subprocess.run(words, cwd=ROOT, input=text, text=True, check=False).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main())

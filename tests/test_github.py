"""Tests the action's shell steps, the workflow's rules and the check of both; neither was run by GitHub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from support.bundles import edit, expected, images, make_bundle, write_image
from support.paths import ROOT

yaml = pytest.importorskip("yaml")
import check_config

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
ACTION = ROOT / "action.yml"
PROGRAMS = Path(sys.executable).parent
needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
needs_program = pytest.mark.skipif(
    not (PROGRAMS / "misgnet-export").exists(), reason="misgnet-export is not installed as a command"
)
needs_checkers = pytest.mark.skipif(
    not (PROGRAMS / "shellcheck").exists(), reason="shellcheck and check-jsonschema are not installed"
)


def loaded(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # "on" stays a string
    return values


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Writes a bundle, and labelled tiles to ``set/`` beside it."""
    for name in ("a", "b"):
        before, after = images(64, 64, seed=ord(name))
        label = np.where(expected(before, after) > 0.5, 255, 0).astype(np.uint8)
        for folder, pixels in (("A", before), ("B", after), ("label", label)):
            write_image(tmp_path / f"set/{folder}/{name}.png", pixels)
    return make_bundle(tmp_path / "bundle")


def step(name: str) -> dict[str, Any]:
    (found,) = (step for step in loaded(ACTION)["runs"]["steps"] if step["name"] == name)
    return dict(found)


def run_step(name: str, folder: Path, **inputs: str) -> int:
    """Runs a step as GitHub does, with variables of the step's ``env`` replaced by ``inputs``, and returns its code."""
    given = step(name)
    assert given["shell"] == "bash" and set(inputs) <= set(given["env"])
    variables = {key: inputs.get(key, value if "${{" not in value else "") for key, value in given["env"].items()}
    files = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "GITHUB_OUTPUT": str(folder / "output")}
    path = {"PATH": f"{folder / 'bin'}{os.pathsep}{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", given["run"]]
    return subprocess.run(command, cwd=folder, env={**os.environ, **path, **variables, **files}, check=False).returncode


def gate(bundle: Path, folder: Path, **inputs: str) -> tuple[int, str]:
    """Runs the gate and returns its exit code and summary."""
    given = {"BUNDLE": str(bundle), "EVALUATION": str(folder / "set"), "JUNIT": "out.xml", **inputs}
    code = run_step("Evaluate the bundle", folder, **given)
    return code, (folder / "summary.md").read_text(encoding="utf-8")


@needs_bash
@needs_program
def test_passing_gate_writes_report_and_summary(bundle: Path, tmp_path: Path) -> None:
    code, summary = gate(bundle, tmp_path, MIN_F1_RATIO="0.5", ACCEPT_PROXY="true")
    assert code == 0 and summary.startswith("### Parity gate: passed\n") and "    " in summary and "pass" in summary
    assert ElementTree.parse(tmp_path / "out.xml").getroot().findall(".//testcase")
    assert (tmp_path / "output").read_text() == "junit=out.xml\n"


@needs_bash
@needs_program
def test_failing_gate_keeps_its_exit_code_and_both_files(bundle: Path, tmp_path: Path) -> None:
    edit(bundle, lambda m: m.update(max_f1_drop=-100, min_f1_ratio=None))  # the bundle's own limit, which none keeps
    code, summary = gate(bundle, tmp_path)
    assert code == 3 and summary.startswith("### Parity gate: failed\n")
    assert ElementTree.parse(tmp_path / "out.xml").getroot().findall(".//failure")
    assert (tmp_path / "output").read_text() == "junit=out.xml\n"


@needs_bash
@needs_program
def test_missing_bundle_is_reported_in_the_summary(bundle: Path, tmp_path: Path) -> None:
    code, summary = gate(tmp_path / "none", tmp_path)
    assert code == 4 and summary.startswith("### Parity gate: could not be evaluated (exit code 4)\n")
    assert str(tmp_path / "none") in summary.replace("\n    ", "")
    assert not (tmp_path / "out.xml").exists()


@needs_bash
@needs_program
def test_inputs_are_neither_options_nor_shell_code(bundle: Path, tmp_path: Path) -> None:
    strange = bundle.rename(tmp_path / "--force $(touch ran) `touch ran`; touch ran")
    code, _ = gate(Path(strange.name), tmp_path, MIN_F1_RATIO="0.5", JUNIT="$(touch ran).xml")
    assert code == 0 and (tmp_path / "$(touch ran).xml").is_file() and not (tmp_path / "ran").exists()


@needs_bash
@pytest.mark.parametrize(
    ("engines", "requirement", "needs"),
    [
        ("", "", ["/p"]),
        ("openvino,geo", "", ["/p[openvino,geo]"]),
        ("", "onnxruntime==1.32.0", ["/p", "onnxruntime==1.32.0"]),
    ],
)
def test_engines_and_requirement_are_installed(
    engines: str, requirement: str, needs: list[str], tmp_path: Path
) -> None:
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > asked\n')
    fake.chmod(0o755)
    inputs = {"PROJECT": "/p", "ENGINES": engines, "REQUIREMENT": requirement}
    assert run_step("Install misgnet-export", tmp_path, **inputs) == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:3] == ["-m", "pip", "install"] and asked[asked.index("--") + 1 :] == needs


def test_every_input_of_the_action_is_used_and_its_output_exists() -> None:
    action = loaded(ACTION)
    text = "\n".join(value for step in action["runs"]["steps"] for value in step["env"].values())
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    assert action["outputs"]["junit"]["value"] == "${{ steps.gate.outputs.junit }}"
    assert step("Evaluate the bundle")["id"] == "gate"


def scripts() -> Iterator[str]:
    for path in (ACTION, WORKFLOW):
        yield from (text for _, text in check_config.scripts_of(path))


def test_nothing_is_interpolated_into_scripts() -> None:
    found = list(scripts())
    assert len(found) >= 4 and not [script for script in found if "${{" in script]


def test_actions_of_others_are_pinned_to_commits() -> None:
    used = re.findall(r"uses: (.*)", WORKFLOW.read_text(encoding="utf-8") + ACTION.read_text(encoding="utf-8"))
    assert used and not [
        line for line in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
    ]


def test_workflow_has_few_rights_and_ends() -> None:
    workflow = loaded(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["cancel-in-progress"] == "true"
    for job in workflow["jobs"].values():
        assert int(job["timeout-minutes"]) <= 90 and "permissions" not in job
        checkout = job["steps"][0]
        assert checkout["uses"].startswith("actions/checkout@") and checkout["with"]["persist-credentials"] == "false"


def test_workflow_runs_what_is_documented() -> None:
    jobs = loaded(WORKFLOW)["jobs"]
    assert jobs["everything"]["steps"][-1]["run"] == "bash .ci/run"
    assert jobs["runtime"]["steps"][-1]["run"] == "python dev.py runtime"
    systems = {name.partition("-")[0] for name in jobs["runtime"]["strategy"]["matrix"]["os"]}
    assert (
        systems == {"ubuntu", "macos", "windows"} and "ubuntu-24.04-arm" in jobs["runtime"]["strategy"]["matrix"]["os"]
    )


def test_hooks_call_commands_of_dev() -> None:
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # no versions beside those of the lock
    for hook in repository["hooks"]:
        assert re.fullmatch(r"python3 dev\.py (lint|format --check|types)", hook["entry"])


@needs_checkers
@pytest.mark.parametrize(
    ("check", "name", "old", "new"),
    [
        ("action.yml", "action.yml", "using: composite", "using: nothing"),
        ("action.yml, Evaluate the bundle", "action.yml", '-- "$BUNDLE"', "-- $BUNDLE"),
        (".github/workflows/*.yml", ".github/workflows/ci.yml", "runs-on:", "run-on:"),
        (".github/ISSUE_TEMPLATE/[!c]*.yml", ".github/ISSUE_TEMPLATE/bug.yml", "type: textarea", "type: area"),
        ("CITATION.cff", "CITATION.cff", "type: software", "type: program"),
        (".pre-commit-config.yaml", ".pre-commit-config.yaml", "language: system", "language: none-such"),
    ],
)
def test_check_finds_invalid_files_and_unquoted_variables(
    check: str, name: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (".github", ".pre-commit-config.yaml", "action.yml", "CITATION.cff"):
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, tmp_path / path)
    monkeypatch.setattr(check_config, "ROOT", tmp_path)
    monkeypatch.setattr(check_config, "shell_scripts", lambda: [str(ROOT / ".ci" / "run")])
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    assert not check_config.checks()[check]()


@needs_checkers
def test_checked_files_are_valid() -> None:
    assert check_config.main() == 0

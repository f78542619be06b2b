"""Tests that the documentation's reference is complete: it names everything that the source defines."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed (extra docs)")

from cli_reference import PROGRAMS, load, program_reference
from misgnet_runtime import errors
from misgnet_runtime.bundle.targets import Kind
from misgnet_runtime.engines.tensorrt.roofline import GPUS
from misgnet_runtime.jobs.batch.results import COLUMNS
from misgnet_runtime.jobs.folder import FolderReport
from misgnet_runtime.jobs.image import Prediction
from misgnet_runtime.jobs.scene.run import SceneReport
from misgnet_runtime.jobs.watch.outcomes import WatchReport
from schema_reference import ROOTS, root, struct_reference, structs
from support.paths import ROOT

DOCS = ROOT / "docs"
PACKAGES = [ROOT / "runtime", ROOT / "misgnet", ROOT / "calibration", ROOT / "export"]
ROW = re.compile(r"^\| (`-[^|]*?(?:\\\|[^|]*?)*) \|", re.MULTILINE)
ALONE = {"--install-completion", "--show-completion"}  # options of a program that its commands do not take
FLAG = re.compile(r"`(--?[a-z][\w-]*)`")
VARIABLE = re.compile(r"\b(?:MISGNET|XDG|ORT_DISABLE)_[A-Z0-9_]+\b")


def flags(program: str, command: str | None = None) -> set[str]:
    """Returns all flags of a program, or of one of its commands, but ``--help``."""
    group = load(program)
    params = group.params if command is None else group.commands[command].params
    options = [param for param in params if param.param_type_name == "option" and param.name != "help"]
    return {flag for param in options for flag in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_reference_lists_exactly_the_options_of_each_command(program: str) -> None:
    head, *sections = re.split(r"^## (?=misgnet)", program_reference(program), flags=re.MULTILINE)
    shared = listed(head)
    assert shared == flags(program)
    named = {section.split()[1]: section for section in sections}
    assert set(named) == set(load(program).commands)
    for command, section in named.items():
        assert listed(section) | shared - ALONE == flags(program, command), command


def listed(section: str) -> set[str]:
    """Returns the flags in the first column of a section's tables."""
    return {flag for row in ROW.findall(section) for flag in FLAG.findall(row)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_option_has_a_description_and_a_default(program: str) -> None:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in program_reference(program).splitlines() if line[:3] == "| `"]
    assert rows
    assert [row for row in rows if len(row) != 3 or not all(cell.strip() for cell in row)] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_page_of_each_program_asks_for_its_reference(program: str) -> None:
    page = (DOCS / "reference" / "cli" / f"{program}.md").read_text(encoding="utf-8")
    assert f"<!-- generate: {program} -->" in page.splitlines()


@pytest.mark.parametrize("name", ROOTS)
def test_reference_of_json_files_has_every_field_of_every_struct(name: str) -> None:
    text = struct_reference(name)
    for struct in structs(root(name)):
        section = text.partition(f"# {struct.__name__} {{")[2].partition("\n#")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(struct.__struct_fields__)


def test_environment_page_names_every_variable_of_the_source() -> None:
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    outputs = (DOCS / "reference" / "outputs.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for folder in PACKAGES for path in folder.rglob("*.py"))
    used = set(VARIABLE.findall(source))
    assert {name for name in used if name not in page and name not in outputs} == set()
    mine = {name for name in VARIABLE.findall(page) if name.startswith("MISGNET_")}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    assert {name for name in mine if name not in used and name not in tests} == set()


def test_targets_page_names_every_target() -> None:
    page = (DOCS / "reference" / "targets.md").read_text(encoding="utf-8")
    names = {kind.replace("rtx", "rtx-smNN[,smNN...]") for kind in get_args(Kind)}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_page_about_kernels_lists_every_gpu_with_its_figures() -> None:
    page = (DOCS / "explanation" / "kernels-of-a-plan.md").read_text(encoding="utf-8")
    rows = [
        f"| {gpu.name} | {gpu.compute_capability} | {gpu.bandwidth:g} | {gpu.float16:g} | {gpu.int8:g} |"
        for gpu in GPUS
    ]
    assert [row for row in rows if row not in page] == []


def test_log_events_page_names_every_figure_of_a_scene() -> None:
    page = (DOCS / "reference" / "log-events.md").read_text(encoding="utf-8")
    reports = (SceneReport, FolderReport, Prediction, WatchReport)
    figures = {field.name for report in reports for field in fields(report)}
    assert {name for name in figures if f"`{name}`" not in page} == set()


def test_outputs_page_names_every_column_of_a_batch() -> None:
    page = (DOCS / "reference" / "outputs.md").read_text(encoding="utf-8")
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []


def test_exit_codes_page_names_every_error_with_its_code() -> None:
    page = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.MisgnetError) and error is not errors.MisgnetError:
            assert re.search(rf"^\| {error.exit_code} \|.*`{name}`", page, re.MULTILINE), name


PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_or_linked_by_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {ROOT / path for path in re.findall(r"`((?:tests|benchmarks|tools|examples)/[\w/.-]*\w)`", text)}
    linked = {page.parent / path for path in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)}
    made = {DOCS / "notebooks" / f"{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}
    assert sorted(str(path) for path in named | linked if not path.exists() and path.resolve() not in made) == []

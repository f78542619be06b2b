"""Tests that names of a bundle, which become folders of a model repository, cannot lead outside the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from misgnet_export.cli import main as cli
from misgnet_export.integrations.triton import repository
from support.bundles import FLOAT, INT8, edit, make_bundle
from support.commands import exit_code

NAMES = ["x/../../../escaped", "/tmp/escaped", "..", "x/y", "x\\..\\y", "x\ny", "x\x1b[31m", "x\u202ey", "", "."]


@pytest.fixture
def any_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces Triton's schema, which need not be installed: paths are built before the schema is used."""
    monkeypatch.setattr(repository, "load_schema", lambda: None)
    monkeypatch.setattr(repository, "model_config", lambda *_, **__: None)
    monkeypatch.setattr(repository, "_text", lambda _: "")


def everything(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if root / "bundle" not in path.parents}


def rename(bundle: Path, name: str) -> None:
    def change(values: dict[str, Any]) -> None:
        values["engines"][0]["name"] = name
        values["metrics"]["engines"][0]["engine"] = name

    edit(bundle, change)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("any_schema")
def test_triton_writes_nothing_outside_its_output(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    bundle = make_bundle(folder / "bundle", engines=[FLOAT, INT8])
    rename(bundle, name)
    before = everything(tmp_path)
    assert exit_code(cli.main, "misgnet-export", "triton", bundle, "-o", folder / "models") == 4
    assert everything(tmp_path) == before
    assert not Path("/tmp/escaped").exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.isascii()


@pytest.mark.usefixtures("any_schema")
def test_comma_in_a_target_name_is_accepted(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[replace(FLOAT, name="rtx-sm86,sm89")])
    assert exit_code(cli.main, "misgnet-export", "triton", bundle, "-o", tmp_path / "models") == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["misgnet-rtx-sm86,sm89"]


@pytest.mark.parametrize("target", ["../x", "cpu/../x", "rtx-sm86/../../x", "cpu\x1b[31m"])
def test_unknown_target_is_refused(tmp_path: Path, target: str) -> None:
    pytest.importorskip("torch", reason="the build needs the [export] extra")
    sets = ["--calib", tmp_path, "--eval", tmp_path]
    words = ["misgnet-export", "build", tmp_path / "w", *sets, "-o", tmp_path / "out", "--target", target]
    assert exit_code(cli.main, *words) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["bundle", "."])
@pytest.mark.usefixtures("any_schema")
def test_output_that_contains_the_bundle_is_refused_even_with_force(tmp_path: Path, output: str) -> None:
    """The repository would replace the folder, and the bundle would be lost."""
    bundle = make_bundle(tmp_path / "x" / "bundle", engines=[FLOAT])
    assert exit_code(cli.main, "misgnet-export", "triton", bundle, "-o", tmp_path / "x" / output, "--force") == 2
    assert (bundle / "manifest.json").is_file()


def test_folder_that_contains_data_sets_is_not_replaced_by_a_bundle(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the build needs the [export] extra")
    (tmp_path / "data" / "train").mkdir(parents=True)
    sets = ["--calib", tmp_path / "data" / "train", "--eval", tmp_path / "data" / "test"]
    words = ["misgnet-export", "build", tmp_path / "w", *sets, "-o", tmp_path / "data", "--force"]
    assert exit_code(cli.main, *words) == 2
    assert (tmp_path / "data" / "train").is_dir()

"""Tests the check of names in a manifest, which later become parts of paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import InputError
from support.bundles import RTX, SPLIT_INT8, edit, make_bundle
from support.commands import exit_code

Change = Callable[[dict[str, Any]], object]
BAD_ENGINES = [
    "x/../../../escaped", "..", ".hidden", "", "a/b", "a\\b", "a:b", "-o", "a b", "a\n", "a\x1b[2J", "a\u202eb",
    "a\u200bb", "\u3164", "é", "a" * 201,
]  # fmt: skip
BAD_FILES = [
    "../x", "a/../b", "./a", "a/.", "a//b", "/a", "a/", "", ".", "..", "a\\b", "c:a", "a\nb", "a\n", "a\x7fb",
    "a\u202eb", "a\u115fb", "a b/\u00a0", "é", "a" * 1025,
]  # fmt: skip


def refusal(root: Path, change: Change) -> str:
    with pytest.raises(InputError) as caught:
        read_bundle(edit(root, change))
    return str(caught.value)


@pytest.mark.parametrize("name", BAD_ENGINES, ids=ascii)
def test_unsafe_engine_name_is_refused(tmp_path: Path, name: str) -> None:
    found = refusal(make_bundle(tmp_path / "b"), lambda m: m["engines"][1].update(name=name))
    assert "engines[1].name" in found and len(found.splitlines()) == 1


@pytest.mark.parametrize("key", ["file", "graph", "encoder", "head", "encoder_graph", "head_graph", "quantization"])
@pytest.mark.parametrize("name", BAD_FILES, ids=ascii)
def test_a_file_name_that_is_not_a_plain_relative_path_is_refused(tmp_path: Path, name: str, key: str) -> None:
    """The name is refused even if the manifest lists a file of that name."""

    def change(m: dict[str, Any]) -> None:
        m["files"].append({"path": name, "sha256": "0" * 64, "size": 0, "role": "engine", "precision": None})
        entry = m["engines"][0]
        part = {"file": entry, "graph": entry, "quantization": m["quantization"][0]}.get(key, entry["split"])
        part["graph" if key == "quantization" else key] = name

    found = refusal(make_bundle(tmp_path / "b", engines=[SPLIT_INT8]), change)
    assert "$.quantization[0].graph" in found or "$.engines[0]." in found, found


@pytest.mark.parametrize("name", ["a b", "a\n", "../x", "\x1b[2Ja", "\u202ex", ""])
def test_unsafe_tensor_name_is_refused(tmp_path: Path, name: str) -> None:
    root = make_bundle(tmp_path / "b", engines=[SPLIT_INT8])
    assert "features[0].name" in refusal(root, lambda m: m["features"][0].update(name=name))


@pytest.mark.parametrize("key", ["precision", "platform", "vendor_version", "cuda_driver"])
def test_control_characters_in_other_fields_of_an_engine_are_refused(tmp_path: Path, key: str) -> None:
    root = make_bundle(tmp_path / "b")
    assert f"engines[0].{key}" in refusal(root, lambda m: m["engines"][0].update({key: "1\x1b[2J"}))


@pytest.mark.parametrize(
    "name",
    [
        "cpu", "cpu-float32", "rtx-sm86,sm89", "rtx-sm86,sm89-fp16", "openvino-int8-bf16", "jetson-orin-fp16", "cpu_2",
        "int8+bf16", "v1.2",
    ],
)  # fmt: skip
def test_names_of_builds_are_accepted(tmp_path: Path, name: str) -> None:
    root = edit(make_bundle(tmp_path / "b", engines=[RTX]), lambda m: m["engines"][0].update(name=name))
    assert read_bundle(root).engine_entry(name)


def test_triton_writes_nothing_outside_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's name once led outside ``-o``. Triton's schema is not needed: the manifest is refused first."""
    from misgnet_export.integrations.triton import repository
    from misgnet_export.integrations.triton.config import Serving

    monkeypatch.setattr(repository, "load_schema", lambda: None)
    monkeypatch.setattr(repository, "model_config", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(repository, "_text", lambda _: "")
    root = edit(make_bundle(tmp_path / "b"), lambda m: m["engines"][0].update(name="x/../../../escaped"))
    with pytest.raises(InputError):
        repository.write_repository(root, tmp_path / "out/models", [], Serving())
    assert sorted(path.name for path in tmp_path.rglob("*escaped*")) == []


def test_command_reports_an_unsafe_name_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = edit(make_bundle(tmp_path / "b"), lambda m: m["engines"][0].update(name="x/../../../escaped"))
    assert exit_code(cli.main, "misgnet-run", "info", root) == 4
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not an accepted name" in err and "regex" not in err

"""Tests completion in a shell: commands, options, choices, and the engines of the bundle on the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from misgnet_runtime.cli.main import main
from support.bundles import make_bundle
from support.commands import exit_code
from support.paths import ROOT

BASH = shutil.which("bash")
PROGRAM = f"""#!{sys.executable}
import sys
sys.path[:0] = {[str(ROOT / "runtime")]!r}
from misgnet_runtime.cli.main import main
main()
"""


@pytest.fixture
def completed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Returns a function that returns what bash is offered for the last of its words."""

    def run(*words: object) -> list[str]:
        monkeypatch.setenv("_MISGNET_RUN_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(["misgnet-run", *map(str, words)]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert exit_code(main, "misgnet-run") == 0
        out, error = capsys.readouterr()
        assert error == ""
        return out.split()

    return run


def test_commands_options_and_choices_are_completed(completed: Any) -> None:
    assert completed("pre") == ["predict"]
    assert completed("predict", "--thr") == ["--threshold", "--threads"]
    assert completed("--log", "") == ["text", "json"]
    assert completed("--version", "ver") == ["verify"]
    assert completed("predict", "--bogus", "--thr") == ["--threshold", "--threads"]


def test_engines_of_the_bundle_are_completed(completed: Any, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    names = completed("predict", bundle, "a.png", "b.png", "--engine", "")
    assert names and set(names) == set(completed("verify", bundle, "--engine", ""))
    assert completed("verify", bundle, "--engine", names[0]) == [n for n in names if n.startswith(names[0])]
    assert completed("verify", tmp_path / "nowhere", "--engine", "") == []


@pytest.mark.parametrize("text", ["", "[]", '{"engines": 3}', '{"engines": [{}]}', "[" * 100_000, '"\xff"'])
def test_a_damaged_manifest_completes_nothing(completed: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    assert completed("verify", tmp_path, "--engine", "") == []


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_completes_after_it_read_the_script(tmp_path: Path) -> None:
    program = tmp_path / "misgnet-run"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    code = """
eval "$(_MISGNET_RUN_COMPLETE=source_bash misgnet-run)"
COMP_WORDS=(misgnet-run wat) COMP_CWORD=1
_misgnet_run_completion misgnet-run
echo "${COMPREPLY[*]}"
complete -p misgnet-run
"""
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run([str(BASH), "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines() == ["watch", "complete -o default -F _misgnet_run_completion misgnet-run"]


def test_completion_imports_no_engine(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = {[str(ROOT / "runtime")]!r}
os.environ.update(COMP_WORDS={f"misgnet-run verify {tmp_path} --engine "!r}, COMP_CWORD="4")
os.environ["_MISGNET_RUN_COMPLETE"] = "complete_bash"
from misgnet_runtime.cli.main import app
try:
    app(prog_name="misgnet-run")
except SystemExit:
    print({{"numpy", "onnxruntime", "openvino", "rasterio"}} & set(sys.modules))
"""
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "set()"

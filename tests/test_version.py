"""Tests that ``--version`` prints the program's name and version, before a command and after it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

from misgnet_runtime import __version__
from support.commands import exit_code
from support.paths import ROOT

SOURCES = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
PROGRAMS = {
    "misgnet-run": ("misgnet_runtime.cli.main", "predict"),
    "misgnet-export": ("misgnet_export.cli.main", "build"),
    "misgnet": ("misgnet.cli", "train"),
}


@pytest.mark.parametrize("before_command", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_version_is_printed_before_or_after_a_command(
    program: str, before_command: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    module, command = PROGRAMS[program]
    words = ["--version"] if before_command else [command, "--version"]
    assert exit_code(import_module(module).main, program, *words) == 0
    out, error = capsys.readouterr()
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    assert out.startswith(f"{program} {__version__} ({python}; engines: onnxruntime {version('onnxruntime')}")
    assert (out.count("\n"), error) == (1, "")


def test_version_states_that_no_engine_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("misgnet_runtime.engines.LIBRARIES", {"onnxruntime": ("no-such-distribution",)})
    assert exit_code(import_module("misgnet_runtime.cli.main").main, "misgnet-run", "--version") == 0
    assert capsys.readouterr().out.endswith("; engines: none found)\n")


def test_version_imports_no_engine() -> None:
    code = "import sys; from misgnet_runtime.cli.main import app; sys.argv = ['misgnet-run', '--version']\n"
    code += "try: app()\nexcept SystemExit: pass\nprint({'numpy', 'onnxruntime', 'openvino'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=SOURCES)
    assert ended.stdout.splitlines()[-1] == "set()"


def test_version_does_not_hide_an_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("misgnet_runtime.cli.main").main
    assert exit_code(main, "misgnet-run", "info", "--bogus", "--version") == 2
    out, error = capsys.readouterr()
    assert out == "" and "--bogus" in error


def test_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", __version__)

"""Tests that ``--version`` prints the program's name and version, before a command and after it."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from misgnet_runtime import __version__
from support.commands import exit_code

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
    assert capsys.readouterr() == (f"{program} {__version__}\n", "")


def test_version_does_not_hide_an_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("misgnet_runtime.cli.main").main
    assert exit_code(main, "misgnet-run", "info", "--bogus", "--version") == 2
    out, error = capsys.readouterr()
    assert out == "" and "--bogus" in error


def test_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", __version__)

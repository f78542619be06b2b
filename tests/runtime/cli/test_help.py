"""Tests help pages and messages about invalid calls: words for values, all widths, no colours where none are wanted."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from misgnet_runtime.cli import main as cli
from misgnet_runtime.cli.mistakes import PROGRAMS
from support.bundles import images, make_bundle, write_image
from support.commands import exit_code
from support.paths import ROOT

MODULES = {
    "misgnet-run": "misgnet_runtime.cli.main",
    "misgnet-export": "misgnet_export.cli.main",
    "misgnet": "misgnet.cli",
}
PACKAGES = {"misgnet-run": "misgnet_runtime", "misgnet-export": "misgnet_export", "misgnet": "misgnet"}
ALL = [(program, command) for program, commands in PROGRAMS.items() for command in ("", *commands)]
WORD = re.compile(r"[\[\]A-Z0-9/,.|]+")  # of a value; choices apart


def group(program: str) -> Any:
    return typer.main.get_command(import_module(MODULES[program]).app)


def shown(program: str, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert exit_code(import_module(MODULES[program]).main, program, *words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("program", MODULES)
def test_commands_of_other_programs_are_known(program: str) -> None:
    assert set(PROGRAMS[program]) == set(group(program).commands)


@pytest.mark.parametrize(("program", "command"), ALL)
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_fits_the_terminal_and_cuts_no_words(
    program: str, command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = shown(program, capsys, *filter(None, [command]), "-h")
    assert text.startswith(f"Usage: {program} {command}".rstrip())
    assert "\x1b" not in text and "<" not in text.replace("<=", "")
    # Only a path or a list of choices that no line can hold is longer.
    assert [line for line in text.splitlines() if len(line) > columns and " " in line.strip()] == []
    found = group(program)
    flags = [param.opts[-1] for param in (found.commands[command] if command else found).params if not param.hidden]
    assert [flag for flag in flags if flag.startswith("--") and not re.search(rf"{flag}(?![\w-])", text)] == []


@pytest.mark.parametrize("program", MODULES)
def test_both_names_of_help_show_the_same(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(program, capsys, "-h") == shown(program, capsys, "--help")


@pytest.mark.parametrize(("program", "command"), [pair for pair in ALL if pair[1]])
def test_each_value_has_a_word_in_capitals_or_its_choices(program: str, command: str) -> None:
    for param in group(program).commands[command].params:
        if param.name != "help" and not getattr(param, "is_flag", False):
            assert WORD.fullmatch(param.metavar.replace(" ", "")) or "|" in param.metavar or param.metavar == "shift", (
                param.name, param.metavar,
            )  # fmt: skip


def test_usage_names_arguments_and_required_options(capsys: pytest.CaptureFixture[str]) -> None:
    first = shown("misgnet-run", capsys, "predict", "-h").splitlines()[0]
    assert first == "Usage: misgnet-run predict BUNDLE BEFORE AFTER -o FILE [OPTIONS]"
    first = shown("misgnet-run", capsys, "series", "-h").splitlines()[0]
    assert first == "Usage: misgnet-run series BUNDLE REFERENCE DATES... -o FOLDER [OPTIONS]"


@pytest.mark.parametrize("program", MODULES)
def test_programs_run_as_modules(program: str) -> None:
    sources = os.pathsep.join(str(ROOT / folder) for folder in (".", "export", "calibration", "runtime"))
    command = [sys.executable, "-m", PACKAGES[program], PROGRAMS[program][0], "-h"]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": sources}
    )
    assert ended.stdout.startswith(f"Usage: python -m {PACKAGES[program]} {PROGRAMS[program][0]} ")


# --- on a terminal


def on_a_terminal(**variables: str) -> bytes:
    """Returns what ``misgnet-run info -h`` writes to a terminal."""
    pty = pytest.importorskip("pty", reason="Windows has no terminals of this kind")
    main, side = pty.openpty()
    command = [sys.executable, "-m", "misgnet_runtime", "info", "-h"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime"), "TERM": "xterm", "COLUMNS": "60", **variables}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        if name not in variables:
            environment.pop(name, None)
    with subprocess.Popen(command, stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        found = b"".join(_parts(main))
        assert process.wait() == 0
    os.close(main)
    return found


def _parts(main: int) -> Iterator[bytes]:
    while select.select([main], [], [], 60)[0]:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # the other end is closed
            return
        if not part:
            return
        yield part


def test_help_is_bold_on_a_terminal_only_if_colours_are_wanted() -> None:
    assert b"\x1b[1mArguments:\x1b[0m" in on_a_terminal()
    assert b"\x1b" not in on_a_terminal(NO_COLOR="1")
    assert b"\x1b" not in on_a_terminal(TERM="dumb")


# --- invalid calls

COG = "--cog is an option of predict, batch, series and watch"
PREDICT = "usage: misgnet-run predict BUNDLE BEFORE AFTER -o FILE [OPTIONS]"
MISTAKES: dict[str, tuple[str, str]] = {
    "misspelled option": ("predict --treshold 0.4", "there is no option --treshold; did you mean --threshold?"),
    "unknown option": ("info --bogus", "there is no option --bogus; see `misgnet-run info --help`"),
    "misspelled command": ("predct", "there is no command 'predct'; did you mean predict?"),
    "command of another program": ("build", "there is no command 'build' here; use `misgnet-export build`"),
    "unknown command": ("x", "there is no command 'x'; commands are predict, info, "),
    "path in place of the command": (".", "'.' is a path; a command comes first: misgnet-run COMMAND ."),
    "option before the command": ("--cog predict", f"{COG}; write it after the command"),
    "option of another command": ("info b --cog", f"{COG}, not of info; leave it out"),
    "nothing given": ("predict", f"missing: BUNDLE, BEFORE, AFTER, -o FILE; {PREDICT}"),
    "no output": ("predict b x y", f"missing: -o FILE; {PREDICT}"),
    "output without its option": (
        "predict b x y z.tif", "'z.tif' is one argument too many, and -o FILE is missing; write -o z.tif",
    ),
    "too many": ("info b c d", "'c', 'd' are 2 arguments too many; usage: misgnet-run info BUNDLE [OPTIONS]"),
    "no number": ("predict b x y -o z --batch many", "--batch is 'many'; expected a whole number"),
    "no choice": ("watch b x -o z --vector shp", "--vector is 'shp'; expected gpkg, geojson or fgb"),
    "no value": ("predict b x y -o", "Option '-o' requires an argument; see `misgnet-run predict --help`"),
}  # fmt: skip


@pytest.mark.parametrize("columns", ["60", "120"])
@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_explained_in_one_line(
    what: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    words, message = MISTAKES[what]
    assert exit_code(cli.main, "misgnet-run", *words.split()) == 2
    out, error = capsys.readouterr()
    assert error.startswith(f"error: {message}") and (error.count("\n"), out) == (1, "")


def test_swapped_arguments_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    for words, name in (
        (("predict", "a.tif", "b.tif", bundle, "-o", "c.tif"), "AFTER"),
        (("predict", "a.tif", bundle, "b.tif", "-o", "c.tif"), "BEFORE"),
        (("series", "a.tif", "b.tif", "c.tif", bundle, "-o", "out"), "DATES..."),
        (("batch", "a.tif", bundle, "-o", "out"), "SCENES"),
    ):
        assert exit_code(cli.main, "misgnet-run", *words) == 2
        message = f"BUNDLE is a.tif, and {name} is {bundle}, which is a bundle; usage: misgnet-run {words[0]} BUNDLE "
        assert message in capsys.readouterr().err


def test_a_folder_instead_of_a_file_and_a_file_instead_of_a_folder_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, folder, file = make_bundle(tmp_path / "bundle"), tmp_path / "folder", tmp_path / "file.tif"
    archive, weights = tmp_path / "bundle.tar.gz", tmp_path / "best.pth"
    folder.mkdir()
    for path in (file, archive, weights):
        path.touch()
    for words, message in (
        (("predict", bundle, file, file, "-o", folder), f"-o is {folder}, which is a folder; name a file in it, such"),
        (
            ("predict", bundle, file, file, "-o", "c.tif", "--report", folder),
            f"--report is {folder}, which is a folder",
        ),
        (
            ("predict", file, file, file, "-o", "c.tif"),
            f"BUNDLE is {file}, which is a file; a bundle is a folder; usage:",
        ),
        (("info", archive), f"BUNDLE is {archive}, which is a file; a bundle is a folder: unpack the archive first"),
        (("info", weights), f"BUNDLE is {weights}, which is a network; make a bundle of it with `misgnet-export build"),
        (("info", bundle / "manifest.json"), f"BUNDLE is {bundle / 'manifest.json'}, which is in a bundle; give its"),
        (("predict", bundle, folder, folder, "-o", "c.png"), "BEFORE and AFTER are folders, and -o is c.png, the name"),
        (("batch", bundle, folder, "-o", "out"), f"SCENES is {folder}, which is a folder; name a file"),
        (("series", bundle, file, folder, "-o", "out"), f"DATES... is {folder}, which is a folder; name a file"),
        (("watch", bundle, file, "-o", "out"), f"FOLDER is {file}, which is a file; name a folder"),
        (("watch", bundle, folder, "-o", file), f"-o is {file}, which is a file; name a folder"),
    ):
        assert exit_code(cli.main, "misgnet-run", *words) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_plain_image_in_place_of_a_geotiff_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    bundle, image = make_bundle(tmp_path / "bundle"), write_image(tmp_path / "x.png", images(64, 64)[0])
    assert exit_code(cli.main, "misgnet-run", "predict", bundle, image, image, "-o", tmp_path / "c.tif") == 4
    assert "x.png cannot be opened as a GeoTIFF: it is a PNG image; give a GeoTIFF, or two" in capsys.readouterr().err

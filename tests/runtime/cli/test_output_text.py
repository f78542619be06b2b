"""Tests that external names are escaped for terminals, are text in spreadsheets, and must be UTF-8."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from support.bundles import edit, make_bundle, write_image
from support.paths import ROOT

SOURCES = [str(ROOT / folder) for folder in (".", "export", "calibration", "runtime")]
ODD = "\x1b[31m\u202e\x07\x9b2J\r\nforged: line\u2028\u200b"  # colours, text direction, a bell, a second line
CALL = "import sys\nfrom {0}.cli.main import main\nsys.argv = sys.argv[1:]\nmain()\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def run(
    here: Path, *words: str | bytes, package: str = "misgnet_runtime", **more: str
) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "COLUMNS": "200", "TERM": "xterm"}
    variables = {**variables, "PYTHONIOENCODING": "utf-8", "MISGNET_CACHE": str(here / "cache"), **more}
    name = {"misgnet_runtime": "misgnet-run", "misgnet_export": "misgnet-export"}.get(package, package)
    command = [sys.executable, "-c", CALL.format(package), name, *words]
    return subprocess.run(command, cwd=here, env=variables, capture_output=True, check=False)


def check_plain(ended: subprocess.CompletedProcess[bytes]) -> str:
    text = (ended.stdout + ended.stderr).decode()
    assert "Traceback" not in text, text
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)
    assert not any(line.startswith("forged") for line in text.split("\n")), text
    return text


CALLS: dict[str, tuple[int, Sequence[str]]] = {
    "a bundle that is not there": (4, ("info", ODD)),
    "a wrong option": (2, ("info", "bundle", f"--{ODD}")),
    "a wrong command": (2, (ODD,)),
    "a wrong value": (2, ("predict", "bundle", "a", "b", "-o", "c.png", "--batch", ODD)),
    "an extra word": (2, ("info", "bundle", ODD)),
    "an unknown engine": (2, ("bench", "bundle", "--engine", ODD)),
    "an output": (4, ("predict", "bundle", "missing.png", "b.png", "-o", f"{ODD}.png")),
    "an input": (4, ("predict", "bundle", f"{ODD}.png", "b.png", "-o", "c.png")),
    "a table": (4, ("batch", "bundle", f"{ODD}.csv", "-o", "out")),
}


@pytest.mark.parametrize("what", CALLS)
def test_arguments_are_escaped_in_every_error(root: Path, what: str) -> None:
    code, words = CALLS[what]
    ended = run(root.parent, *words)
    text = check_plain(ended)
    assert ended.returncode == code, text


def test_texts_of_a_manifest_are_escaped_by_info(root: Path) -> None:
    def change(m: dict) -> None:  # type: ignore[type-arg]
        m.update(licence=ODD, class_names=[ODD, ODD], created=ODD, source_weights_sha256=ODD)

    edit(root, change)
    ended = run(root.parent, "info", "bundle")
    assert ended.returncode == 0
    assert "\\x1b[31m" in check_plain(ended)


def test_names_of_files_are_escaped_in_results(root: Path) -> None:
    (root.parent / ODD).mkdir()
    for date in ("before", "after"):
        write_image(root.parent / f"{date}.png", np.zeros((64, 64, 3), np.uint8))
    ended = run(root.parent, "predict", "bundle", "before.png", "after.png", "-o", f"{ODD}/{ODD}.png")
    assert ended.returncode == 0
    assert "\\u202e" in check_plain(ended)
    assert (root.parent / ODD / f"{ODD}.png").is_file()


@pytest.mark.parametrize("command", ["info", "verify"])
def test_output_to_a_pipe_does_not_depend_on_the_width(root: Path, command: str) -> None:
    """Paths and tables stay whole, so that other programs can read them."""
    found = {run(root.parent, command, "bundle", COLUMNS=width).stdout for width in ("60", "80", "120")}
    (text,) = (stdout.decode() for stdout in found)
    assert "\x1b" not in text and "…" not in text
    if command == "info":
        assert "evidence/report.html" in [line.split()[0] for line in text.splitlines() if line]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_in_a_terminal_of_any_width(root: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from misgnet_runtime.cli.info import print_info
    from misgnet_runtime.log import SafeConsole

    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    print_info(root, SafeConsole(file=stream, force_terminal=True, width=width))
    text = stream.getvalue()
    assert "\x1b" not in text and "…" not in text
    for words in ("cpu-float32", "0.9000", "golden/tiles.npz", "evidence/report.html", "auto selects "):
        assert words in text


def test_tables_hold_no_control_characters() -> None:
    """Also in styled cells and titles."""
    from rich.table import Table
    from rich.text import Text

    from misgnet_runtime.log import out_console

    table = Table("a\x1b[2J", "b\x1b[2J", title="t\x9b", caption=Text("c\u202e"))
    table.add_row("x\x07", Text("y\x1b]8;;http://x\x1b\\", style="bold"))
    with out_console.capture() as captured:
        out_console.print(table)
        out_console.print("[bold]kept[/bold] \x1b[0m")
    written = captured.get()
    assert all(line.isprintable() for line in written.split("\n")), ascii(written)
    assert "\\x1b[2J" in written and "[bold]" not in written


# Names that are not UTF-8

BYTES: dict[str, tuple[bytes, ...]] = {
    "info": (b"info", b"\xff"),
    "predict images": (b"predict", b"bundle", b"\xff.png", b"b.png", b"-o", b"c.png"),
    "predict to": (b"predict", b"bundle", b"before.png", b"after.png", b"-o", b"\xff.png"),
    "predict folders": (b"predict", b"bundle", b"A\xff", b"B\xff", b"-o", b"out"),
    "predict scenes": (b"predict", b"bundle", b"\xff.tif", b"b.tif", b"-o", b"c.tif"),
    "series": (b"series", b"bundle", b"a.tif", b"\xff.tif", b"-o", b"out"),
    "batch": (b"batch", b"bundle", b"\xff.csv", b"-o", b"out"),
    "watch": (b"watch", b"bundle", b"in\xff", b"-o", b"out", b"--once"),
    "bench": (b"bench", b"bundle", b"--json", b"\xff.json", b"--seconds", b"0.01"),
    "verify": (b"verify", b"\xff"),
    "an option": (b"info", b"bundle", b"--require-signature", b"\xff.pem"),
}


@pytest.mark.parametrize(
    ("what", "form"), [*((what, "text") for what in BYTES), ("info", "json"), ("predict to", "json"), ("batch", "json")]
)
def test_a_name_that_is_not_utf8_is_invalid_input(root: Path, what: str, form: str) -> None:
    for name in (b"A\xff", b"B\xff", b"in\xff"):
        (root.parent / os.fsdecode(name)).mkdir()
    for date in ("before", "after"):
        write_image(root.parent / f"{date}.png", np.zeros((64, 64, 3), np.uint8))
    ended = run(root.parent, "--log", form, *BYTES[what])
    assert ended.returncode == 4, ended.stderr
    (line,) = ended.stderr.decode().splitlines()
    found = json.loads(line) if form == "json" else {"level": "error", "message": line}
    assert found["level"] == "error" and "\\udcff" in found["message"] and "UTF-8" in found["message"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_listed_name_that_is_not_utf8_is_invalid_input(root: Path, form: str) -> None:
    """The name is found in a folder, not given as an argument."""
    for folder in ("A", "B"):
        write_image(root.parent / folder / os.fsdecode(b"x\xff.png"), np.zeros((64, 64, 3), np.uint8))
    ended = run(root.parent, "--log", form, "predict", "bundle", "A", "B", "-o", "out")
    assert ended.returncode == 4, ended.stderr
    last = ended.stderr.decode().splitlines()[-1]
    assert "Traceback" not in ended.stderr.decode() and "udcff" in last


def test_a_working_directory_that_is_not_utf8_is_invalid_input_or_works(root: Path) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    here = root.parent / os.fsdecode(b"cwd\xff")
    root.rename(root.parent / "moved")
    here.mkdir()
    (root.parent / "moved").rename(here / "bundle")
    for date, pixels in zip(("before", "after"), scene(80, 100, 0), strict=True):
        write_raster(root.parent / f"{date}.tif", pixels).rename(here / f"{date}.tif")
    (here / "table.csv").write_text("id,before,after\na,before.tif,after.tif\n")
    for words in (("batch", "bundle", "table.csv", "-o", "out", "--workers", "1"), ("info", "bundle")):
        ended = run(here, *words)
        assert ended.returncode in (0, 4, 6) and b"Traceback" not in ended.stderr, ended.stderr.decode()


# Spreadsheets


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\uff1d1", "\uff20x", '"=1+1"'])
def test_an_id_that_is_a_spreadsheet_formula_is_refused(tmp_path: Path, name: str) -> None:
    from misgnet_runtime.errors import InputError
    from misgnet_runtime.jobs.batch.table import read_table

    table = tmp_path / "t.csv"
    table.write_text(f"id,before,after\n{name},a.tif,b.tif\n", encoding="utf-8")
    if name.startswith("\t"):  # blanks around a cell are ignored
        table.write_text('id,before,after\n"\x0b=1",a.tif,b.tif\n', encoding="utf-8")
    with pytest.raises(InputError, match="the id is"):
        read_table(table, {}, tmp_path / "out")


def test_results_hold_no_formulas_and_numbers_stay_numbers(tmp_path: Path) -> None:
    from datetime import datetime, timezone
    from types import SimpleNamespace
    from typing import Any

    from misgnet_runtime.jobs.batch.record import Failed
    from misgnet_runtime.jobs.batch.results import write_results
    from misgnet_runtime.jobs.batch.row import Scene
    from misgnet_runtime.jobs.batch.table import Shard

    messages = ["=cmd|' /C calc'!A0", "+1", "-2", "@x", "\t=1", "\r=1", "\n=1", "\uff1d1", "plain; text"]
    scenes = [Scene(f"s{i}", Path("=a.tif"), Path("/b.tif"), {}) for i in range(len(messages))]
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    ended = {scene.id: Failed(now, scene.id, -1, text) for scene, text in zip(scenes, messages, strict=True)}
    record: Any = SimpleNamespace(ended=ended)
    (path, *_) = write_results(tmp_path, Shard(), scenes, record)
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert [row["message"].lstrip("'") for row in rows] == messages
    assert all(row["message"].startswith("'") for row in rows[:-1]) and rows[-1]["message"] == "plain; text"
    assert {row["before"] for row in rows} == {"'=a.tif"} and {row["after"] for row in rows} == {"/b.tif"}
    assert {row["attempts"] for row in rows} == {"-1"}

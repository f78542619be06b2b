"""Tests that nothing in a printed table is cut, whatever the width of the terminal."""

from __future__ import annotations

import io
import os

import pytest
from rich.text import Text

from misgnet_runtime.log import SafeConsole
from misgnet_runtime.tables import cell, plain_table, print_table

PATH = "/data/2026/a folder/evidence/throughput_of_every_engine.json"
WHY = "errors add up along the residual stream, so both inputs of a sum stay in float"
ROWS = [
    ("openvino-int8-bf16", "1234.5", WHY, PATH),
    ("cpu[bold]", "3.4\n1.1 to 2.2", "", "a"),
]


def printed(width: int, *, terminal: bool = True, columns: int = 4) -> str:
    console = SafeConsole(file=io.StringIO(), width=width, force_terminal=terminal, no_color=True, color_system=None)
    table = plain_table("Engines [i], fastest first")
    for name, numeric in [("engine", False), ("p50,\nms", True), ("why", False), ("file", False)][:columns]:
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
    for row in ROWS:
        table.add_row(*map(Text, row[:columns]))
    table.caption = Text(f"written to {PATH}")
    print_table(table, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("columns", [2, 3, 4])
@pytest.mark.parametrize("width", [30, 60, 80, 120, 240])
def test_no_cell_is_cut(width: int, columns: int, terminal: bool) -> None:
    shown = printed(width, terminal=terminal, columns=columns)
    assert "…" not in shown and "\x1b" not in shown
    for row in ROWS:
        for text in row[:columns]:
            assert all(word in shown for word in text.split())
    assert f"written to {PATH}" in shown.splitlines(), "a path in a caption is never wrapped"
    assert shown.startswith("Engines [i], fastest first\n") and shown.endswith("\n\n")


@pytest.mark.parametrize("width", [80, 120])
def test_a_wide_column_wraps_at_words(width: int) -> None:
    lines = printed(width, columns=3).splitlines()
    assert max(map(len, lines[1:-2])) <= width and any("────" in line for line in lines)
    starts = {line.index(word) for word in ("errors", "so both") for line in lines if word in line}
    assert len(starts) <= 2


def test_rows_that_do_not_fit_become_blocks() -> None:
    assert printed(60).splitlines() == [
        "Engines [i], fastest first", "openvino-int8-bf16", "  p50, ms: 1234.5", f"  why: {WHY}", f"  file: {PATH}",
        "cpu[bold]", "  p50, ms: 3.4 1.1 to 2.2  file: a", f"written to {PATH}", "",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [30, 60, 80])
def test_rows_are_single_lines_without_a_terminal(width: int) -> None:
    (line,) = (line for line in printed(width, terminal=False).splitlines() if line.startswith("openvino-int8-bf16"))
    assert WHY in line and line.rstrip().endswith(PATH)


@pytest.mark.parametrize("value", ["1", ""])
def test_no_color_prints_no_styles(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setitem(os.environ, "NO_COLOR", value)
    console = SafeConsole(file=io.StringIO(), force_terminal=True, width=80)
    console.print("[bold]heading[/]", cell("text"))
    assert ("\x1b" in console.file.getvalue()) is not bool(value)  # type: ignore[attr-defined]

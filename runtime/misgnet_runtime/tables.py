"""Prints tables that stay readable at any width: nothing in them is cut, in a terminal or in a file.

A table that is wider than the terminal gets smaller gaps, then wraps its widest column at words; if a word would be
split, each row becomes a block of lines. Where there is no terminal, tables are as wide as they need to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from misgnet_runtime.formatting import printable
from misgnet_runtime.log import out_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

_NARROWEST = 20  # characters of a wide column that is wrapped; below, blocks of lines are easier to read


def plain_table(title: str = "") -> Table:
    """Returns a table with one line below its header, and a left-aligned title whose markup is ignored."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heading = Text(plain(title), style="bold") if title else None
    return Table(title=heading, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def cell(text: str) -> Text:
    """Returns a text of a file or user as a cell: markup is ignored, control characters are escaped."""
    return Text(plain(text))


def plain(text: str) -> str:
    """Escapes like :func:`printable`, with ordinary spaces for the no-break spaces in figures."""
    return printable(text.replace("\xa0", " "))


def print_table(table: Table, console: Console = out_console) -> None:
    """Prints a table so that no cell is cut, and an empty line.

    Title and caption are lines of their own, which only a terminal wraps: a path in them can be copied.
    """
    title, table.title = table.title, None
    caption, table.caption = table.caption, None
    for part in (title, *_laid_out(table, console), caption):
        if part:
            console.print(part, soft_wrap=True)
    console.print()


def _laid_out(table: Table, console: Console) -> list[Table] | list[Text]:
    """Returns the table with a width that shows all of it, or its rows as lines of text."""
    table.width = _width(table, console)
    if console.is_terminal and table.width > console.width:
        table.width, table.padding = None, 0
        table.width = _width(table, console)
        if table.width > console.width:
            if not _wrapped(table, table.width - console.width, console):
                return list(_blocks(table, console))
            table.width = console.width
    return [table]


def _width(table: Table, console: Console) -> int:
    """Returns the width that shows the table without wrapping."""
    return console.measure(table, options=console.options.update(width=1 << 16)).maximum


def _wrapped(table: Table, excess: int, console: Console) -> bool:
    """Makes the widest column that can be wrapped at words narrower by ``excess``; returns whether there is one."""
    widths = [(*_measure(column, console), column) for column in table.columns if not column.no_wrap]
    for shortest, longest, column in sorted(widths, key=lambda each: -each[1]):
        if longest - excess >= max(shortest, min(_NARROWEST, longest // 2)):
            column.width = longest - excess
            return True
    return False


def _measure(column: Column, console: Console) -> tuple[int, int]:
    """Returns the widths of the longest word and of the longest line in a column, header included."""
    texts = [_text(each, console) for each in (column.header, *column.cells)]
    words = (len(word) for text in texts for word in text.plain.split())
    lines = (len(line) for text in texts for line in text.plain.split("\n"))
    return max(words, default=0), max(lines, default=0)


def _blocks(table: Table, console: Console) -> Iterator[Text]:
    """Yields the rows as text: the first cell, and below it the others, each as ``header: cell``."""
    names = [_one_line(column.header, console).plain for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = (_one_line(each, console) for each in row)
        yield Text.assemble(first, style="bold")
        line = Text()
        for name, text in zip(names[1:], others, strict=True):
            if not text.plain.strip():
                continue
            found = Text.assemble("  ", (f"{name}: ", "dim"), text)
            if line and len(line) + len(found) > console.width:
                yield line
                line = Text()
            line += found
        if line:
            yield line


def _one_line(value: object, console: Console) -> Text:
    return Text(" ").join(_text(value, console).split("\n"))


def _text(value: object, console: Console) -> Text:
    return value if isinstance(value, Text) else console.render_str(str(value), highlight=False)

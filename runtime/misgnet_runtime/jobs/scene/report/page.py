"""Renders the page. All texts are escaped here; equal contents give equal bytes."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from misgnet_runtime.formatting import printable

_HINT = ' <span class="hint">Choose one to see it in the pictures above.</span>'


@dataclass(frozen=True)
class Picture:
    """An image file."""

    data: bytes
    kind: str  # "jpeg" or "png"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A changed area in the table."""

    box: tuple[float, float, float, float]  # left, top, width and height, as shares of the pictures
    cells: tuple[str, ...]  # in the order of the columns
    pictures: tuple[Picture, Picture]  # before and after


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows."""

    title: str
    subtitle: str
    warnings: Sequence[str]
    summary: Sequence[tuple[str, str]]  # (label, value)
    rows: Sequence[tuple[str, str]]  # what was run
    size: tuple[int, int]  # width and height of the pictures in pixels
    before: Picture
    after: Picture
    overlay: Picture
    captions: tuple[str, str]  # of both dates
    has_nodata: bool
    resolution: str  # of the pictures
    areas: str  # how many areas there are
    columns: Sequence[str]  # of the table, after its pictures
    changes: Sequence[Row]
    software: str


def render(page: Page) -> bytes:
    """Returns the page as UTF-8."""
    style, script = _part("page.css"), _part("page.js")
    width, height = page.size
    texts = {
        "title": page.title, "subtitle": page.subtitle, "software": page.software, "resolution": page.resolution,
        "areas": page.areas, "width": str(width), "height": str(height),
        "policy": "; ".join((
            "default-src 'none'", "img-src data:", f"style-src {_source(style)}", f"script-src {_source(script)}",
            "base-uri 'none'", "form-action 'none'",
        )),
        "before_text": f"The scene on the earlier date: {page.captions[0]}",
        "after_text": f"The scene on the later date: {page.captions[1]}",
        "overlay_text": "The changed areas, outlined and filled in red",
        "before_caption": f"Before: {page.captions[0]}", "after_caption": f"After: {page.captions[1]}",
    }  # fmt: skip
    found = Template(_part("page.html")).substitute(
        {name: escaped(text) for name, text in texts.items()},
        hint=_HINT if page.changes else "", style=style, script=script, warnings=_warnings(page.warnings),
        summary=_facts(page.summary), rows=_facts(page.rows), table=_table(page), legend=_legend(page.has_nodata),
        before=_address(page.before), after=_address(page.after), overlay=_address(page.overlay),
    )  # fmt: skip
    return found.encode()


def escaped(text: str) -> str:
    """Returns a text without markup; control and format characters, which a browser obeys or hides, are written out."""
    return html.escape(printable(text))


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _source(text: str) -> str:
    """Returns the source of a Content-Security-Policy that allows one text in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _address(picture: Picture) -> str:
    return f"data:image/{picture.kind};base64,{base64.b64encode(picture.data).decode()}"


def _warnings(found: Sequence[str]) -> str:
    if not found:
        return '<p class="fine">No warnings.</p>'
    items = "".join(f"<li>{escaped(text)}</li>" for text in found)
    title = "1 warning" if len(found) == 1 else f"{len(found)} warnings"
    return f'<section class="warnings"><strong>{title}</strong><ul>{items}</ul></section>'


def _facts(found: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in found)


def _legend(has_nodata: bool) -> str:
    nodata = '<li><i class="nodata"></i>no data in at least one date</li>' if has_nodata else ""
    return f'<li><i class="changed"></i>changed</li>{nodata}'


def _table(page: Page) -> str:
    if not page.changes:
        return ""
    head = "".join(
        f'<th scope="col" role="columnheader"{_side(index)}>{escaped(name)}</th>'
        for index, name in enumerate(("Change", "Before and after", *page.columns), -2)
    )
    body = "\n".join(_row(number, row, page.columns) for number, row in enumerate(page.changes, 1))
    return (
        f'<div class="scroll"><table role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{body}\n</tbody></table></div>'
    )


def _row(number: int, row: Row, columns: Sequence[str]) -> str:
    """Returns a row of the table; its roles are stated because narrow screens show it as a card."""
    images = "".join(
        f'<img src="{_address(picture)}" width="96" height="96" alt="Change {number}, {when}">'
        for picture, when in zip(row.pictures, ("before", "after"), strict=True)
    )
    cells = "".join(
        f'<td role="cell"{_side(index)} data-label="{escaped(name)}">{escaped(text)}</td>'
        for index, (name, text) in enumerate(zip(columns, row.cells, strict=True))
    )
    box = ",".join(f"{share:.6f}" for share in row.box)
    return (
        f'<tr role="row" data-number="{number}" data-box="{box}"><th scope="row" role="rowheader">'
        f'<button type="button" aria-label="Centre change {number}">{number}</button></th>'
        f'<td role="cell" class="pictures"><span class="pair">{images}</span></td>{cells}</tr>'
    )


def _side(column: int) -> str:
    """Returns the class of a column: numbers are at the right."""
    return ' class="n"' if column >= 0 else ""

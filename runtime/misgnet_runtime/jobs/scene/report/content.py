"""Collects what the page says about a finished map."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from misgnet_runtime.formatting import format_percent, plural
from misgnet_runtime.jobs.scene.inputs import Date, Inputs
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.report.page import Page, Row
from misgnet_runtime.jobs.scene.report.pictures import Pictures
from misgnet_runtime.options import flag, stated
from misgnet_runtime.raster.changes import Change, Changes
from misgnet_runtime.raster.geotiff import load_rasterio, mapped
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.resolution import ground_resolution, longitudes_latitudes

LISTED = 50  # changes in the table
_LABELS = {  # of tags; other tags appear under their own names
    "MISGNET_BUNDLE_VERSION": "Bundle, version",
    "MISGNET_BUNDLE_SHA256": "Bundle, SHA-256 of its manifest",
    "MISGNET_WEIGHTS_SHA256": "Weights, SHA-256",
    "MISGNET_ENGINE": "Engine and device",
    "MISGNET_THRESHOLD": "Threshold of the probability of change",
    "MISGNET_OVERLAP": "Overlap of neighbouring tiles, pixels",
    "MISGNET_ALIGNED": "After warped onto the grid of before",
    "MISGNET_AOI_SHA256": "Area of interest, SHA-256",
    "MISGNET_BUNDLE_F1": "F1 that the bundle states",
    "MISGNET_SOFTWARE": "Software",
    "MISGNET_RUN_SHA256": "All settings, SHA-256",
    "MISGNET_SPLIT": "Encoder and head ran separately",
    "MISGNET_BATCH": "Tiles per inference call",
    "MISGNET_STREAMS": "Batches in flight",
}
for _date in ("Before", "After"):
    _LABELS |= {
        f"MISGNET_{_date.upper()}_SHA256": f"{_date}, SHA-256",
        f"MISGNET_{_date.upper()}_ETAG": f"{_date}, ETag",
        f"MISGNET_{_date.upper()}_SIZE_AND_TIME": f"{_date}, size and time",
        f"MISGNET_{_date.upper()}_SCALING": f"{_date}, bands and scaling",
    }
_REGISTRATION = "MISGNET_COREGISTERED"
_ELSEWHERE = (
    "_NAME", "_DATE", "MISGNET_VALID_SHARE", "MISGNET_UNREADABLE_BEFORE", "MISGNET_UNREADABLE_AFTER", _REGISTRATION,
)  # fmt: skip
# Options that change neither the map nor what is read.
_UNSHOWN = ("force", "restart", "engine", "no_tuned", "threads", "report")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a finished map."""

    scene: str  # the scene's name
    bundle: str  # the bundle's name
    tile: int  # of the network, in pixels
    inputs: Inputs
    options: SceneOptions
    tags: Mapping[str, str]  # of the change raster
    changed_share: float | None  # of the valid pixels; None: no pixel is valid
    valid_share: float
    unreadable: tuple[float, float]  # shares of the pixels of both dates
    warnings: Sequence[str]


def page_of(facts: Facts, changes: Changes, pictures: Pictures) -> Page:
    """Returns the page of a map; ``pictures`` are those of the listed ``changes``."""
    dates = facts.inputs.before, facts.inputs.after
    columns, cells = _table(changes.listed, facts.inputs.grid)
    rows = zip(changes.listed, cells, pictures.changes, strict=True)
    return Page(
        title=f"Change map of {facts.scene}",
        subtitle=" to ".join(map(_named, dates)),
        warnings=[_without_folders(text, dates) for text in facts.warnings],
        summary=_summary(facts, changes),
        rows=_run(facts),
        size=pictures.size, before=pictures.before, after=pictures.after, overlay=pictures.overlay,
        captions=(_named(dates[0]), _named(dates[1])),
        has_nodata=pictures.has_nodata,
        resolution=_resolution(pictures, facts.inputs.grid),
        areas=_areas(changes, facts),
        columns=columns,
        changes=[
            Row(box=_box(change, pictures), cells=texts, pictures=pair) for change, texts, pair in rows
        ],
        software=facts.tags["MISGNET_SOFTWARE"],
    )  # fmt: skip


def shown_date(time: datetime | None) -> str:
    """Formats when an image was taken: ``2021-05-02 10:10 UTC``; without the time if it is midnight; empty if None."""
    if time is None:
        return ""
    if (time.hour, time.minute, time.second) == (0, 0, 0):
        return time.strftime("%Y-%m-%d")
    return time.strftime("%Y-%m-%d %H:%M %Z")


def format_area(square_metres: float) -> str:
    """Formats an area on the ground in m², ha or km²."""
    for size, unit in ((1e6, "km²"), (1e4, "ha")):
        if square_metres >= 10 * size:
            return f"{square_metres / size:,.1f} {unit}"
    return f"{square_metres:,.0f} m²" if square_metres >= 10 else f"{square_metres:.3g} m²"


def _named(date: Date) -> str:
    return f"{date.origin.name} ({shown_date(date.acquired)})" if date.acquired else date.origin.name


def _without_folders(text: str, dates: tuple[Date, Date]) -> str:
    """Returns a warning without the folders of the rasters: a page may be passed on."""
    for date in dates:
        text = text.replace(str(date.origin), date.origin.name)
    return text


def _summary(facts: Facts, changes: Changes) -> list[tuple[str, str]]:
    inputs, grid = facts.inputs, facts.inputs.grid
    before, after = (f"{format_percent(share)}" for share in facts.unreadable)
    metres = ground_resolution(load_rasterio("a scene"), grid)
    found = [
        ("Changed", _share(facts.changed_share)),
        ("Changed areas", _total(changes, grid)),
        ("Valid pixels", format_percent(facts.valid_share)),
        ("Unreadable pixels", f"before {before}, after {after}"),
        ("Size", f"{grid.width:,} x {grid.height:,} px" + (f" of {metres:.3g} m" if metres else "")),
        ("Coordinate system", _system(grid) or "none"),
    ]
    if moved := facts.tags.get(_REGISTRATION):
        found.append(("Registration: after was moved back by", moved))
    if inputs.shift:
        rows, columns = inputs.shift
        found.append(("Offset of after from before, estimated", f"{rows:+.1f} rows, {columns:+.1f} columns"))
    return found


def _share(changed: float | None) -> str:
    return "no pixel is valid" if changed is None else f"{format_percent(changed)} of the valid pixels"


def _system(grid: Grid) -> str | None:
    """Returns the code of a coordinate system, or its name if it has none; None: there is no system."""
    if grid.crs is None:
        return None
    text = str(grid.crs.to_string())
    name = re.search(r'\["([^"]*)"', text)  # of WKT
    return name[1] if name else text


def _total(changes: Changes, grid: Grid) -> str:
    area = f", {format_area(changes.area)} together" if grid.georeferenced and changes.count else ""
    return f"{changes.count:,}{area}"


def _run(facts: Facts) -> list[tuple[str, str]]:
    """Returns what was run. Tags that have no label here, such as those of later versions, keep their names."""
    tags = {
        _LABELS.get(name, name): value for name, value in facts.tags.items() if not name.endswith(_ELSEWHERE)
    }  # fmt: skip
    options = " ".join(_given(facts.options))
    return [
        ("Bundle", facts.bundle), *tags.items(), ("Tile, pixels", str(facts.tile)),
        ("Options that differ from their defaults", options or "none"),
    ]  # fmt: skip


def _given(options: SceneOptions) -> list[str]:
    """Returns options as they are given on the command line; of file names, only the last part."""
    found = []
    for name, one in stated(SceneOptions).items():
        value = one.value_in(options)
        if name in _UNSHOWN or name in options.products() or value in (None, one.default):
            continue
        found.append(flag(name) if isinstance(value, bool) else f"{flag(name)} {_text(value)}")
    return found


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return value.name if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)


def _resolution(pictures: Pictures, grid: Grid) -> str:
    rows, columns, step = pictures.rows, pictures.columns, pictures.step
    if (rows.length, columns.length) == (grid.height, grid.width):
        part = "The pictures show the whole scene"
    else:
        part = (
            f"The pictures show the part of the scene that has data, rows {rows.start:,} to {rows.stop:,} and columns "
            f"{columns.start:,} to {columns.stop:,}"
        )
    return f"{part}, with all of its pixels." if step == 1 else f"{part}; a pixel stands for {step} x {step} pixels."


def _areas(changes: Changes, facts: Facts) -> str:
    if not changes.count:
        return "No changed areas were found."
    unit = "m²" if facts.inputs.grid.georeferenced else "pixels"
    least = f" of at least {facts.options.min_area:g} {unit}" if facts.options.min_area else ""
    listed = "" if len(changes.listed) == changes.count else f" The {len(changes.listed)} largest are listed."
    return f"{plural(changes.count, 'changed area')}{least}.{listed}"


def _box(change: Change, pictures: Pictures) -> tuple[float, float, float, float]:
    left, top, right, bottom = change.outline.bounds
    rows, columns = pictures.rows, pictures.columns
    return (
        (left - columns.start) / columns.length, (top - rows.start) / rows.length, (right - left) / columns.length,
        (bottom - top) / rows.length,
    )  # fmt: skip


def _table(changes: list[Change], grid: Grid) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns the columns of the table and the cells of each area. Coordinates are those of a point inside of it."""
    columns = ["Area", "Mean probability", "Highest probability"]
    points = [(point.x, point.y) for point in (change.outline.representative_point() for change in changes)]
    rows = [[_area(change, grid), f"{change.probability:.2f}", f"{change.maximum:.2f}"] for change in changes]
    places = [("Column, row", [f"{x:,.0f}, {y:,.0f}" for x, y in points])]
    if grid.has_transform:
        digits = 6 if grid.crs and grid.crs.is_geographic else 1
        there = (mapped(grid.transform, *point) for point in points)
        places = [(f"{_system(grid) or 'Map'}: x, y", [f"{x:.{digits}f}, {y:.{digits}f}" for x, y in there])]
    if (found := longitudes_latitudes(load_rasterio("a scene"), grid, points)) and grid.crs.to_epsg() != 4326:
        places.append(("Longitude, latitude", [f"{x:.6f}, {y:.6f}" for x, y in found]))
    for name, texts in places:
        columns.append(name)
        for row, text in zip(rows, texts, strict=True):
            row.append(text)
    return columns, [tuple(row) for row in rows]


def _area(change: Change, grid: Grid) -> str:
    return format_area(change.area) if grid.georeferenced else plural(change.pixels, "pixel")

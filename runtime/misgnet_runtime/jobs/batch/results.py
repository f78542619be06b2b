"""Writes the results table: ``results.csv``, and also ``results.parquet`` if pyarrow is installed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misgnet_runtime.jobs.batch.record import Done, Failed, Record
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.jobs.batch.table import FORMULA, Shard
from misgnet_runtime.raster.remote.address import hidden
from misgnet_runtime.storage.atomic import replace_file

Row = dict[str, Any]
_TEXT = ("id", "status", "before", "after", "output", "products", "engine", "worker", "finished", "message")
_WHOLE = (
    "attempts", "height", "width", "unread_blocks", "unread_pixels", "polygons", "tiles", "resumed",
    "registration_inliers", "registration_windows",
)  # fmt: skip
_SHARES = (
    "changed_share", "valid_share", "nodata_share", "aoi_valid_share", "unreadable_share_before",
    "unreadable_share_after",
)  # fmt: skip
_REAL = (*_SHARES, "registration_rows", "registration_columns", "registration_residual", "seconds")
COLUMNS = (
    "id", "status", "changed_share", "valid_share", "nodata_share", "polygons", "output", "products", "message",
    "attempts", "height", "width", "unread_blocks", "unread_pixels", "unreadable_share_before",
    "unreadable_share_after", "tiles", "resumed", "seconds", "engine", "worker", "finished", "before", "after",
    "aoi_valid_share", "registration_rows", "registration_columns", "registration_inliers", "registration_windows",
    "registration_residual",
)  # fmt: skip


def write_results(output: Path, shard: Shard, scenes: Sequence[Scene], record: Record) -> list[Path]:
    """Writes one row per scene, in the order of the table, and returns the files. Each file appears atomically.

    The last columns are those of the table that are not options; one whose name is that of a result begins with
    ``table_``.
    """
    names = {name: f"table_{name}" if name.lower() in COLUMNS else name for name in (scenes[0].kept if scenes else ())}
    rows = [_row(scene, record) | {names[name]: cell for name, cell in scene.kept.items()} for scene in scenes]
    stem, kept = output / f"results{shard.suffix}", tuple(names.values())
    written = [_write_csv(stem.with_name(f"{stem.name}.csv"), rows, kept)]
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return written
    return [*written, _write_parquet(stem.with_name(f"{stem.name}.parquet"), rows, kept)]


def _row(scene: Scene, record: Record) -> Row:
    """Returns the row of a scene, with None in cells that do not apply.

    The status is done, failed, or waiting (an interrupted run did not process the scene).
    """
    end = record.ended.get(scene.id)
    row = dict.fromkeys(COLUMNS) | {"id": scene.id, "before": hidden(str(scene.before))}
    row["after"] = hidden(str(scene.after))
    if isinstance(end, Failed):
        return row | {"status": "failed", "message": end.message, "attempts": end.attempts, "finished": _time(end)}
    if end is None:
        return row | {"status": "waiting"}
    *products, change = end.outputs
    blocks, pixels = end.figures["unread"]
    registration = {f"registration_{name}": value for name, value in (end.figures.get("registration") or {}).items()}
    figures = {**end.figures, **registration}
    return row | {
        **{name: figures[name] for name in COLUMNS if name in figures},
        "status": "done", "attempts": end.attempts, "finished": _time(end), "worker": end.worker, "output": change,
        "products": " ".join(products), "unread_blocks": blocks, "unread_pixels": pixels,
    }  # fmt: skip


def _time(end: Done | Failed) -> str:
    return end.time.isoformat()


def _write_csv(path: Path, rows: list[Row], kept: tuple[str, ...]) -> Path:
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *map(_as_text, kept)])
        texts = {*_TEXT, *kept}
        for row in rows:
            writer.writerow([_as_text(row[name]) if name in texts else row[name] for name in (*COLUMNS, *kept)])
    return path


def _as_text(cell: str | None) -> str | None:
    """Prefixes an apostrophe to a cell that a spreadsheet would treat as a formula, so that it is shown as text."""
    return f"'{cell}" if cell and cell.startswith(FORMULA) else cell


def _write_parquet(path: Path, rows: list[Row], kept: tuple[str, ...]) -> Path:
    import pyarrow
    from pyarrow import parquet

    kinds = {
        **dict.fromkeys((*_TEXT, *kept), "string"),
        **dict.fromkeys(_WHOLE, "int64"),
        **dict.fromkeys(_REAL, "float64"),
    }
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kinds[name])) for name in (*COLUMNS, *kept)])
    with replace_file(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), temporary)
    return path

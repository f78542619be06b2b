"""Reads polygons from a GeoPackage by SQLite; nothing in the file is run.

SQLite itself, not GDAL, because a table may be a view, whose query may run for hours: here only plain tables are read,
functions are denied, and the steps are counted. OGC 12-128r18 defines the tables and the header of a geometry.
"""

from __future__ import annotations

import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from misgnet_runtime.formatting import plural
from misgnet_runtime.limits import AREA_BYTES, AREA_CRS_BYTES, AREA_POLYGONS

START = b"SQLite format 3\0"
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
_STEPS, _MOST_STEPS = 100_000, 1_000  # instructions between two counts, and the most counts; about 1 s
_ENVELOPES = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}  # bytes, by the number in a geometry's flags
_EMPTY = 16  # flag of a geometry without coordinates
_POLYGONS = (3, 6)  # WKB's types, without the thousands for heights and measures
_TABLES = ("gpkg_contents", "gpkg_geometry_columns", "gpkg_spatial_ref_sys")


def read_geopackage(data: bytes) -> tuple[list[bytes], str]:
    """Returns the polygons as WKB, and the name or definition of their coordinate system.

    Raises ValueError for a file that is not a GeoPackage, has no or several layers of features, or other geometries.
    """
    try:
        with _opened(data) as database:
            table, column, system = _layer(database)
            return list(_polygons(database, table, column)), _system(database, system)
    except (sqlite3.Error, UnicodeError, OverflowError) as error:  # an interrupted query raises OperationalError
        raise ValueError(f"it is not a GeoPackage that can be read: {error}") from None


@contextmanager
def _opened(data: bytes) -> Iterator[sqlite3.Connection]:
    """Opens a copy of the bytes; read-only, without the files of a journal beside it."""
    with tempfile.TemporaryDirectory(prefix="misgnet-area-") as folder:
        path = Path(folder) / "area.gpkg"
        path.write_bytes(data)
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            if hasattr(database, "setlimit"):  # Python 3.11
                database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, AREA_BYTES)
            steps = iter(range(_MOST_STEPS))
            database.set_progress_handler(lambda: next(steps, None) is None, _STEPS)
            yield database


def _layer(database: sqlite3.Connection) -> tuple[str, str, int]:
    """Returns the table, column and coordinate system of the only layer; from here on only plain tables are read."""
    for table in _TABLES:
        _check_plain(database, table)
    database.set_authorizer(_authorize)
    found = database.execute(
        "SELECT g.table_name, g.column_name, g.srs_id FROM gpkg_contents c JOIN gpkg_geometry_columns g "
        "ON g.table_name = c.table_name WHERE c.data_type = 'features' LIMIT ?", (AREA_POLYGONS,),
    ).fetchall()  # fmt: skip
    if len(found) != 1:
        names = ", ".join(str(name) for name, *_ in found[:8])
        layers = f"{plural(len(found), 'layer')} of features ({names})"
        raise ValueError(f"it has {layers}; export the one to use to its own file")
    table, column, system = found[0]
    if not (isinstance(table, str) and isinstance(column, str) and isinstance(system, int)):
        raise ValueError("its table gpkg_geometry_columns is damaged")
    database.set_authorizer(None)
    _check_plain(database, table)
    database.set_authorizer(_authorize)
    return table, column, system


def _check_plain(database: sqlite3.Connection, table: str) -> None:
    """Raises ValueError unless a table has stored columns only: no view, virtual table or generated column."""
    rows = database.execute("SELECT type, sql FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    if [kind for kind, _ in rows] != ["table"] or "VIRTUAL" in str(rows[0][1])[:32].upper():
        raise ValueError(f"{table[:80]} is not a plain table")
    if any(hidden for *_, hidden in database.execute(f"PRAGMA table_xinfo({_quoted(table)})")):
        raise ValueError(f"{table[:80]} has computed columns")


def _authorize(action: int, *about: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED and about[-1] is None else sqlite3.SQLITE_DENY


def _polygons(database: sqlite3.Connection, table: str, column: str) -> Iterator[bytes]:
    query = f"SELECT {_quoted(column)} FROM {_quoted(table)} LIMIT ?"
    for (blob,) in database.execute(query, (AREA_POLYGONS + 1,)):
        if blob is not None and (wkb := _wkb(blob)):
            yield wkb


def _wkb(blob: object) -> bytes | None:
    """Returns the WKB of a stored geometry, or None if it is empty."""
    if not isinstance(blob, bytes) or len(blob) < 13 or blob[:3] != b"GP\0" or (blob[3] >> 1 & 7) not in _ENVELOPES:
        raise ValueError("it has a geometry that is not in the format of GeoPackage 1")
    wkb = blob[8 + _ENVELOPES[blob[3] >> 1 & 7] :]
    if blob[3] & _EMPTY:
        return None
    if len(wkb) < 9 or wkb[0] > 1:
        raise ValueError("it has a truncated geometry")
    kind = struct.unpack("<I" if wkb[0] else ">I", wkb[1:5])[0]
    if kind % 1000 not in _POLYGONS or kind > 3006:
        raise ValueError(f"it has a geometry of type {kind}; expected polygons")
    return wkb


def _system(database: sqlite3.Connection, number: int) -> str:
    query = "SELECT organization, organization_coordsys_id, definition FROM gpkg_spatial_ref_sys WHERE srs_id = ?"
    found = database.execute(query, (number,)).fetchone()
    if found is None or number in (0, -1) or not isinstance(found[2], str) or len(found[2]) > AREA_CRS_BYTES:
        raise ValueError(f"its coordinate system, number {number}, is not defined")
    return f"EPSG:{found[1]}" if str(found[0]).upper() == "EPSG" and isinstance(found[1], int) else found[2]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

"""Prepares targets with generated families of files: names in a manifest, layouts of rasters, sizes of tables."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from readers import Prepared

from support.bundles import INT8, SPLIT_FLOAT, make_bundle

Files = st.SearchStrategy[bytes]

# Names in a manifest: for any name, files must be written only to the output folder.

_NAMES = st.sampled_from([
    "x/../../../escaped", "/tmp/escaped", "..", ".", "", "../x", "a/b", "a\\b", "~", "~/x", "-o", "x\0y", "x\ny", "x y",
    "CON", "x" * 201, "x" * 300, "rtx-sm86,sm89", "cpu+1", "caf\u00e9", "\u202e", "$(x)", "'", '"', "graphs/../../x",
    "graphs//float.onnx", "./graphs/float.onnx", "graphs/./float.onnx", "graphs", ".hidden", "manifest.json",
]) | st.text(alphabet="ab./\\-_ ,+~\0\n\u00e9\u2028", max_size=12)  # fmt: skip


def renamed(seeds: Sequence[bytes]) -> Files:
    """Replaces names in a manifest at every occurrence, so that references stay valid."""

    def rename(seed: bytes, changes: list[tuple[int, str]]) -> bytes:
        found: Any = json.loads(seed)
        for where, name in changes:
            names = _names_of(found)
            old = names[where % len(names)]
            found = _replaced(found, old, name)
        return json.dumps(found).encode()

    changes = st.lists(st.tuples(st.integers(0, 1 << 16), _NAMES), min_size=1, max_size=3)
    return st.builds(rename, st.sampled_from(list(seeds)), changes)


def _names_of(found: Any) -> list[str]:
    """Returns the names of engines, files, tensors and roles."""
    entries = [*found["engines"], *found["files"], *found["features"], *found["quantization"]]
    keys = ("name", "file", "graph", "path", "role", "kind", "precision", "platform")
    return [entry[key] for entry in entries for key in keys if isinstance(entry.get(key), str)]


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    return new if value == old else value


def manifest_names(folder: Path) -> Prepared:
    """Writes a Triton repository and reads the bundle; files with the names in the manifest exist if possible."""
    from misgnet_export.integrations.triton import repository
    from misgnet_export.integrations.triton.config import Serving
    from misgnet_runtime.bundle.reader import read_bundle

    root, output = make_bundle(folder / "bundle", engines=[SPLIT_FLOAT, INT8]), folder / "work/out/triton"
    good = (root / "manifest.json").read_bytes()
    repository.load_schema = lambda: None  # type: ignore[assignment]  # not needed here
    repository.model_config = lambda *_, **__: None  # type: ignore[assignment]
    repository._text = lambda _: ""  # type: ignore[assignment]
    paths = {entry["sha256"]: root / entry["path"] for entry in json.loads(good)["files"]}
    originals = {digest: path.read_bytes() for digest, path in paths.items()}
    output.parent.mkdir(parents=True)

    def read(data: bytes) -> None:
        _restore(json.loads(data), root, originals)
        (root / "manifest.json").write_bytes(data)
        before = _all_files(folder)
        try:
            repository.write_repository(root, output, [], Serving(), force=True)
            read_bundle(root).manifest.engines  # noqa: B018
        finally:
            outside = [path for path in _all_files(folder) - before if not f"{path}/".startswith(f"{output}/")]
            shutil.rmtree(output, ignore_errors=True)
        assert not outside, f"written outside the output folder: {outside}"

    return read, [good]


def _restore(manifest: Any, root: Path, originals: dict[str, bytes]) -> None:
    """Writes the files that a manifest names, except for names outside the bundle."""
    for entry in manifest["files"]:
        try:
            path = Path(os.path.normpath(root / entry["path"]))
            if path.is_relative_to(root) and path != root and entry["sha256"] in originals:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(originals[entry["sha256"]])
        except (OSError, ValueError):  # no file system has such a name
            pass


def _all_files(folder: Path) -> set[str]:
    return {f"{parent}/{name}" for parent, folders, names in os.walk(folder) for name in (*names, *folders)}


# Layouts of rasters: sizes, blocks, bits, colours and control points that no ordinary writer would choose.

_SIDES = st.sampled_from([80, 96, 80, 96, 1, 2, 15, 16, 64, 96, 1_000, 65_535, 3_000_000, 400_000_000, (1 << 31) - 1])
_BLOCKS = st.sampled_from([1, 15, 16, 64, 96, 256, 4_096, 65_536, 1 << 30])
_COUNTS = st.sampled_from([3, 3, 3, 3, 3, 0, 1, 2, 3, 4, 5, 16, 1_200, 10_000, 65_535])
_BITS = st.sampled_from([8, 8, 8, 8, 8, 8, 16, 1, 2, 4, 7, 8, 12, 16, 24, 32, 64])
_PHOTOMETRIC = st.sampled_from([2, 2, 2, 2, 2, 2, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 32_844, 65_535])
_COMPRESSION = st.sampled_from([1, 1, 1, 1, 1, 5, 8, 2, 5, 7, 8, 32_773, 32_946, 34_925, 50_000, 50_001])
_EXTRA = st.lists(st.sampled_from([
    (339, 3, [2]), (339, 3, [3]), (339, 3, [6]), (284, 3, [2]), (317, 3, [2]), (274, 3, [3]), (274, 3, [8]),
    (338, 3, [0]), (338, 3, [1]), (42_113, 2, b"0\0"), (42_113, 2, b"nan\0"),
    (42_112, 2, b'<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.5</Item></GDALMetadata>\0'),
    (33_550, 12, [1.0, 1.0, 0.0]), (33_550, 12, [0.0, 0.0, 0.0]), (33_922, 12, [0.0] * 6), (33_922, 12, [0.0] * 24),
    (33_922, 12, [float("nan")] * 24), (34_264, 12, [1.0] * 16), (34_735, 3, [1, 1, 0, 1, 1_024, 0, 1, 1]),
    (50_844, 12, [1.0] * 92),
]), max_size=3)  # fmt: skip
_KINDS = {2: "s", 3: "H", 4: "I", 12: "d"}


def rasters(seeds: Sequence[bytes]) -> Files:
    """Draws little-endian TIFFs whose blocks share a short run of bytes, are beyond the end, or are missing."""
    layout = st.fixed_dictionaries({
        "width": _SIDES, "height": _SIDES, "bands": _COUNTS, "bits": _BITS, "photometric": _PHOTOMETRIC,
        "compression": _COMPRESSION, "tiled": st.booleans(), "block": st.tuples(_BLOCKS, _BLOCKS),
        "places": st.sampled_from(["same", "zero", "behind", "few", "overlapping"]), "extra": _EXTRA,
        "size": st.sampled_from([0, 1, 200, 23_040]), "cut": st.sampled_from([0, 0, 0, 1, 50]),
    })  # fmt: skip
    return st.builds(_tiff, st.just(_georeference(seeds[0])), layout) | st.sampled_from(list(seeds))


def _georeference(seed: bytes) -> list[tuple[int, int, Any]]:
    """Returns the georeferencing tags of a GeoTIFF."""
    with Image.open(io.BytesIO(seed)) as image:
        tags = image.tag_v2  # type: ignore[attr-defined]  # of TIFFs
        kinds = {33_550: 12, 33_922: 12, 34_735: 3, 34_736: 12}
        found = [(tag, kind, list(tags[tag])) for tag, kind in kinds.items() if tag in tags]
        return [*found, *((34_737, 2, tags[34_737].encode() + b"\0") for _ in range(34_737 in tags))]


def _tiff(georeference: list[tuple[int, int, Any]], layout: dict[str, Any]) -> bytes:
    width, height, bands = layout["width"], layout["height"], layout["bands"]
    across, down = layout["block"] if layout["tiled"] else (width, layout["block"][1])
    blocks = -(-width // across) * -(-height // down)
    count = min(blocks, 5_000) if layout["places"] != "few" else 1
    start = {"same": 8, "zero": 0, "behind": 1 << 30, "few": 8, "overlapping": 9}[layout["places"]]
    size = 0 if layout["places"] == "zero" else layout["size"]
    offsets, sizes = (273, 279) if not layout["tiled"] else (324, 325)
    tags: list[tuple[int, int, Any]] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [layout["bits"]] * max(1, min(bands, 16))),
        (259, 3, [layout["compression"]]), (262, 3, [layout["photometric"]]), (offsets, 4, [start] * count),
        (277, 3, [bands]), (sizes, 4, [size] * count), *georeference, *layout["extra"],
        *([(322, 4, [across]), (323, 4, [down])] if layout["tiled"] else [(278, 4, [down])]),
    ]  # fmt: skip
    data = _written(bytes(layout["size"]), tags)
    return data[: len(data) - layout["cut"]]


def _written(pixels: bytes, tags: list[tuple[int, int, Any]]) -> bytes:
    body, entries = b"II*\0\0\0\0\0" + pixels, b""
    for tag, kind, values in sorted(
        {tag: (tag, kind, values) for tag, kind, values in tags}.values(), key=lambda t: t[0]
    ):
        data = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{_KINDS[kind]}", *values)
        field = struct.pack("<I", len(body)) if len(data) > 4 else data.ljust(4, b"\0")
        body += data if len(data) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, len(values)) + field
    directory = struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    return body[:4] + struct.pack("<I", len(body)) + body[8:] + directory


def geotiff(folder: Path) -> Prepared:
    """Opens a scene with the file as AFTER, checks it and reads its first pixels, without and with alignment."""
    import of_pixels

    read, seeds = of_pixels.geotiff(folder)

    def quiet(data: bytes) -> None:
        with warnings.catch_warnings():  # about rasters that are not georeferenced
            warnings.simplefilter("ignore")
            read(data)

    return quiet, seeds


# Sizes of tables: columns, lines, cells and quotes.

_CELLS = st.sampled_from(
    ["", "a", "a.tif", "../a.tif", "a/" * 1_000 + "b", "x" * 5_000, '"\n"', '""""', "\u00e9" * 100, "yes"]
)
_HEADERS = st.sampled_from(
    ["id,before,after", "id,before,after,output,quicklook", "before,id,after,min_area,bands", "id"]
)
_ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", ""])


def tables(seeds: Sequence[bytes]) -> Files:
    """Draws tables that repeat one row, up to sizes beyond the limits."""

    def build(header: str, cells: list[str], numbered: bool, end: str, count: int, *, tail: str) -> bytes:
        most = 1 << 20
        row = ",".join(cells)
        rows = (f"{number}{row if numbered else ''}{end}" for number in range(min(count, most // (len(row) + 8))))
        text = (
            header + "\n" + ("".join(rows) if numbered else (row + end) * min(count, most // (len(row) + len(end) + 1)))
        )
        return (text + tail).encode("utf-8", "surrogatepass")

    tails = st.sampled_from(["", '"', '"' + "x" * 70_000, "\ud800", "," * 70_000])
    counts = st.sampled_from([0, 1, 2, 100, 100, 1_000, 1_000, 250_000])
    return st.builds(
        build, _HEADERS, st.lists(_CELLS, min_size=1, max_size=6), st.booleans(), _ENDS, counts, tail=tails
    ) | (st.sampled_from(list(seeds)))


def table(folder: Path) -> Prepared:
    import of_records

    from misgnet_runtime.jobs.batch.table import read_table

    _, seeds = of_records.table(folder)
    path = folder / "scenes.csv"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_table(path, {"engine": "cpu"}, folder / "out")

    return read, seeds

"""Defines how much of each untrusted file is read; readers, SECURITY.md and tests share these limits.

``python tests/limits --table`` prints the table of SECURITY.md. ``tests/limits/test_limits.py`` compares the two, and
checks that hostile files of many kinds take no more processor time or memory than their row states.
"""

from __future__ import annotations

from dataclasses import dataclass

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

MANIFEST_BYTES = 16 * _MIB
MANIFEST_VALUES = 200_000
BUNDLE_BYTES = 16 * _GIB
BUNDLE_FILES = 10_000

SIGNATURE_BYTES = 8 * _MIB
CERTIFICATES = 8
CERTIFICATE_BYTES = 64 * _KIB
SIGNED_NAME = 1_024
POLICY_BYTES = 64 * _KIB
POLICY_LINE = 4 * _KIB
POLICY_NAME = 128
KEY_BYTES = 1 * _MIB
CONFIG_BYTES = 64 * _KIB
CONFIG_DOTS = 200
ACCEPTED_BYTES = 64 * _KIB

GEOTIFF_BYTES = 512 * _MIB
GEOTIFF_SIDE = 1 << 20
GEOTIFF_MAP_BYTES = 1 * _GIB
GEOTIFF_DECODINGS = 128
GEOTIFF_BLOCKS = 1 << 24
GEOTIFF_DIRECTORIES = 1_024

AREA_BYTES = 16 * _MIB
AREA_POLYGONS = 1_000
AREA_VERTICES = 20_000
AREA_CRS_BYTES = 64 * _KIB
REMOTE_BYTES = 8 * _GIB

PICKLE_BYTES = 4 * _MIB
PICKLE_STEPS = 1_000_000
PICKLE_KEY = 500
CHECKPOINT_DIRECTORY_BYTES = 4 * _MIB
CHECKPOINT_ENTRIES = 20_000
WEIGHTS_BYTES = 512 * _MIB
SAFETENSORS_HEADER_BYTES = 4 * _MIB

ONNX_BYTES = 1 * _GIB
ONNX_FIELDS = 2_000_000
ONNX_NODES = 50_000
ONNX_TENSORS = 100_000
ONNX_FUNCTIONS = 1_000
ONNX_NUMBER_BYTES = 16 * _MIB
ONNX_DEPTH = 64
ONNX_AXES = 8

IMAGE_PIXELS = 178_956_970
IMAGE_PARTS = 100_000
IMAGE_EXTRA_BYTES = 16 * _MIB
JPEG_SCANS = 100
TIFF_TAGS = 4_096
TIFF_TILED_PIXELS = 2 * IMAGE_PIXELS
TIFF_TILE_PIXELS = 1 << 24

ARCHIVE_BYTES = 512 * _MIB
ARCHIVE_DIRECTORY_BYTES = 64 * _KIB
OBSERVATIONS_HEADER_BYTES = 4 * _MIB

FEATURES_FOOTER_BYTES = 16 * _MIB
JOURNAL_LINE_BYTES = 4 * _MIB
TUNING_BYTES = 1 * _MIB
PLAN_RECORD_BYTES = 1 * _MIB
KERNEL_TIMINGS_BYTES = 512 * _MIB
COMPILED_GRAPH_BYTES = 512 * _MIB
COMPILED_GRAPHS_BYTES = 1 * _GIB
COMPILED_KERNELS_BYTES = 256 * _MIB
COMPILED_KERNELS_TOTAL_BYTES = 1 * _GIB

STAC_ITEM_BYTES = 1 * _MIB
STAC_ASSETS = 512
STAC_BANDS = 512
STAC_TEXT = 4_096

TABLE_BYTES = 64 * _MIB
TABLE_LINES = 200_000
TABLE_ROW = 64 * _KIB


@dataclass(frozen=True)
class Limit:
    """A limit, ``value`` in ``unit``, and the reason for its size."""

    quantity: str
    value: int
    unit: str
    reason: str

    def text(self) -> str:
        """Formats the limit for the table: "4 MiB of JSON"."""
        return f"{_amount(self.value, self.unit)} {self.quantity}".strip()


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A kind of file, how it is read, its limits, and the most processor time and memory that one file may take."""

    # Identifies the reader in tests.
    name: str
    # The kind of file, for SECURITY.md.
    file: str
    # How it is read, for SECURITY.md.
    how: str
    limits: tuple[Limit, ...]
    # Processor time, in seconds.
    seconds: int
    # Memory in addition to that of the process before reading, in MiB.
    mebibytes: int

    def row(self) -> str:
        limits = "; ".join(limit.text() for limit in self.limits)
        return f"| {self.file} | {self.how} | {limits} | {self.seconds} | {self.mebibytes:,} |"


READERS = (
    Reader(name="manifest", file="`manifest.json`", how="strict JSON of known fields", limits=(
        Limit("of JSON", MANIFEST_BYTES, "bytes", "it states the numbers of each operator of each graph"),
        Limit("lists and objects", MANIFEST_VALUES, "", "about 5 per operator; even an empty one takes much memory"),
        Limit("of files that it lists", BUNDLE_BYTES, "bytes", "a sparse file of any size costs its sender nothing"),
        Limit("files", BUNDLE_FILES, "", "a bundle has about 20"),
    ), seconds=10, mebibytes=320),
    Reader(name="signature", file="`model.sig`", how="JSON", limits=(
        Limit("", SIGNATURE_BYTES, "bytes", "certificates and a digest of each file take a few kB"),
        Limit("different certificates", CERTIFICATES, "", "chains of public authorities are no longer"),
        Limit("of certificates", CERTIFICATE_BYTES, "bytes", "one has 2 kB"),
        Limit("signed names", BUNDLE_FILES, "", "as in a manifest"),
        Limit("characters of a name", SIGNED_NAME, "", "time to normalise grows with the square of a run of marks"),
    ), seconds=10, mebibytes=256),
    Reader(name="key", file="key file", how="PEM", limits=(
        Limit("", KEY_BYTES, "bytes", "a root's certificate has 2 kB"),
    ), seconds=10, mebibytes=64),
    Reader(name="policy", file="policy file", how="TOML of known fields", limits=(
        Limit("", POLICY_BYTES, "bytes", "about 500 products"),
        Limit("in a line", POLICY_LINE, "bytes", "the longest path"),
        Limit("of a field's name", POLICY_NAME, "bytes", "time to parse grows with the square of its dotted parts"),
    ), seconds=2, mebibytes=64),
    Reader(name="config", file="options (`--config`, `MISGNET_CONFIG`)", how="TOML of known options", limits=(
        Limit("", CONFIG_BYTES, "bytes", "all options of a build with their help take 9 kB"),
        Limit("dots in a line", CONFIG_DOTS, "", "time to parse grows with the square of a name's dotted parts"),
    ), seconds=2, mebibytes=64),
    Reader(name="checkpoint", file="checkpoint, a pickle",
           how="by an unpickler that calls nothing (`misgnet/_unpickle.py`); "
           "no byte of the file counts twice", limits=(
        Limit("of pickle", PICKLE_BYTES, "bytes", "a snapshot with its optimizer has 0.2 MB besides its tensors"),
        Limit("instructions", PICKLE_STEPS, "", "a snapshot has 60,000, and each may create an object"),
        Limit("characters of a key, which is text", PICKLE_KEY, "", "hashes of numbers can be made to collide"),
        Limit("of its zip directory", CHECKPOINT_DIRECTORY_BYTES, "bytes", "a snapshot has 1,400 entries, 80 kB"),
        Limit("tensors", CHECKPOINT_ENTRIES, "", "an EMA wrapper has 2,000"),
        Limit("of numbers", WEIGHTS_BYTES, "bytes", "tensors may share storage: a file of any size may declare more"),
    ), seconds=20, mebibytes=2_304),
    Reader(name="safetensors", file="safetensors",
           how="by the `safetensors` library; no byte outside the file", limits=(
        Limit("of header", SAFETENSORS_HEADER_BYTES, "bytes", "MISGNet's has 0.1 MB, and the library reads 100 MB"),
        Limit("of numbers, if shapes are not known before", WEIGHTS_BYTES, "bytes", "as for a pickle"),
    ), seconds=20, mebibytes=2_304),
    Reader(name="onnx", file="ONNX file that a build starts from",
           how="its protobuf fields are counted before they are parsed; tensors in other files only from its folder, "
           "through no links", limits=(
        Limit("with tensors in other files", ONNX_BYTES, "bytes", "a protobuf message ends at 2 GiB, and libraries "
              "copy it"),
        Limit("fields", ONNX_FIELDS, "", "a node has about 40, and parsing may make an object of every 2 bytes"),
        Limit("nodes, also after functions are expanded", ONNX_NODES, "", "large transformers have 5,000"),
        Limit("tensors", ONNX_TENSORS, "", "at most 2 for each node"),
        Limit("functions", ONNX_FUNCTIONS, "", "exporters write about 30"),
        Limit("of integers that are not raw data", ONNX_NUMBER_BYTES, "bytes", "they take up to 8 times as much in "
              "memory"),
        Limit("nested messages", ONNX_DEPTH, "", "a graph without branches has 7"),
        Limit("axes of a tensor", ONNX_AXES, "", "windows of a transformer have 6"),
    ), seconds=20, mebibytes=4_096),
    Reader(name="image", file="tiles and images",
           how="PNG, TIFF or JPEG by their first bytes, not by the file name", limits=(
        Limit("pixels", IMAGE_PIXELS, "", "Pillow's own limit"),
        Limit("chunks, segments, strips or tiles", IMAGE_PARTS, "", "libpng writes 70,000 at the most pixels"),
        Limit("besides the pixels", IMAGE_EXTRA_BYTES, "bytes", "colour profiles and previews have a few MB"),
        Limit("scans of a JPEG", JPEG_SCANS, "", "encoders write about 10, and each costs as much as all pixels"),
        Limit("tags of a TIFF", TIFF_TAGS, "", "a real one has about 30"),
        Limit("pixels in all of its tiles", TIFF_TILED_PIXELS, "", "whole tiles are decoded, also beyond the edges"),
        Limit("in one that is larger than the image", TIFF_TILE_PIXELS, "", "4,096 x 4,096; usual are 512 x 512"),
    ), seconds=20, mebibytes=2_560),
    Reader(name="label", file="labels", how="as images; 0 and 255, or 0 and 1", limits=(
        Limit("pixels", IMAGE_PIXELS, "", "Pillow's own limit"),
    ), seconds=20, mebibytes=2_560),
    Reader(name="geotiff", file="GeoTIFF; any TIFF of a network that reads other bands than RGB, or 16 bits",
           how="by GDAL's GTiff driver only: no VRT, no sidecar files, one thread", limits=(
        Limit("for a block, or for one read", GEOTIFF_BYTES, "bytes", "256 rows of 40,000 px take 120 MB"),
        Limit("pixels along a side", GEOTIFF_SIDE, "", "tile positions and weights take about 20 bytes per pixel"),
        Limit("of the map's unfinished rows (width x tile)", GEOTIFF_MAP_BYTES, "bytes", "838,860 px wide at 256 px"),
        Limit("decodings of a block", GEOTIFF_DECODINGS, "", "blocks not aligned with tiles are decoded repeatedly"),
        Limit("blocks", GEOTIFF_BLOCKS, "", "1 or 2 bytes of memory each; 256 px blocks make 10^12 pixels"),
        Limit("images, overviews and masks", GEOTIFF_DIRECTORIES, "", "a real file has about 30"),
    ), seconds=20, mebibytes=1_536),
    Reader(name="stac-item", file="STAC Item", how="JSON; fields of known types, other fields are skipped", limits=(
        Limit("", STAC_ITEM_BYTES, "bytes", "an item of Sentinel-2 has 60 kB"),
        Limit("assets", STAC_ASSETS, "", "an item of Sentinel-2 has 40"),
        Limit("bands of an asset", STAC_BANDS, "", "hyperspectral sensors have 300"),
        Limit("characters of a text", STAC_TEXT, "", "signed addresses have 1,000"),
    ), seconds=2, mebibytes=128),
    Reader(name="golden", file="golden and evaluation tiles, saved activation statistics",
           how="`.npz` without pickles, stored or "
           "deflated, opened by one zip reader", limits=(
        Limit("unpacked", ARCHIVE_BYTES, "bytes", "8 evaluation tiles of 1,024 px have 67 MB"),
        Limit("of its zip directory", ARCHIVE_DIRECTORY_BYTES, "bytes", "it has 7 entries"),
        Limit("of JSON in activation statistics", OBSERVATIONS_HEADER_BYTES, "bytes", "names of thousands of tensors"),
    ), seconds=10, mebibytes=576),
    Reader(name="area", file="area of interest (`--aoi`)",
           how="GeoJSON as JSON of known fields; GeoPackage by SQLite, from plain tables only, "
           "without functions, views and extensions", limits=(
        Limit("", AREA_BYTES, "bytes", "20,000 vertices of 40 characters have 1 MB"),
        Limit("polygons", AREA_POLYGONS, "", "each may cover the whole scene"),
        Limit("vertices", AREA_VERTICES, "", "time to check and to cut a ring may grow with their square"),
        Limit("of a coordinate system's definition", AREA_CRS_BYTES, "bytes", "one has 2 kB"),
    ), seconds=30, mebibytes=768),
    Reader(name="features", file="features of a date",
           how="records mapped a few at a time", limits=(
        Limit("of footer", FEATURES_FOOTER_BYTES, "bytes", "about 1.3 million tiles: 150,000 x 150,000 px at least"),
    ), seconds=10, mebibytes=640),
    Reader(name="journal", file="journals of scenes, folders, watchers, batches and prepared data sets",
           how="line by line; file names in them "
           "must lie in the journal's folder", limits=(
        Limit("in a line", JOURNAL_LINE_BYTES, "bytes", "the longest line of a scene names its unreadable blocks"),
    ), seconds=10, mebibytes=320),
    Reader(name="tuning", file="tuning", how="strict JSON after its digest", limits=(
        Limit("", TUNING_BYTES, "bytes", "about 2,000 measurements"),
    ), seconds=2, mebibytes=64),
    Reader(name="accepted", file="accepted versions", how="strict JSON", limits=(
        Limit("", ACCEPTED_BYTES, "bytes", "a record has 300 bytes"),
    ), seconds=2, mebibytes=64),
    Reader(name="plans", file="records of compiled plans, kernel timings, compiled graphs and kernels",
           how="strict JSON after its digest, opaque bytes after theirs", limits=(
        Limit("of JSON", PLAN_RECORD_BYTES, "bytes", "a record has 1 kB"),
        Limit("of timings", KERNEL_TIMINGS_BYTES, "bytes", "TensorRT's have a few MB"),
        Limit("of a compiled graph", COMPILED_GRAPH_BYTES, "bytes", "the float graph has 38 MB"),
        Limit("of compiled kernels", COMPILED_KERNELS_BYTES, "bytes", "those of a plan have a few MB"),
    ), seconds=10, mebibytes=1_100),
    Reader(name="table", file="table of scenes", how="CSV in UTF-8", limits=(
        Limit("", TABLE_BYTES, "bytes", "300 bytes for each line"),
        Limit("lines", TABLE_LINES, "", "a scene takes 3 kB with its options; split larger tables"),
        Limit("characters in a row", TABLE_ROW, "", "two paths and 28 options of the longest kind"),
    ), seconds=30, mebibytes=768),
)  # fmt: skip


def reader(name: str) -> Reader:
    return next(found for found in READERS if found.name == name)


def markdown() -> str:
    """Returns the table of SECURITY.md."""
    head = "| file | how it is read | limits | CPU, s | memory, MiB |\n|---|---|---|---|---|"
    return "\n".join([head, *(found.row() for found in READERS)])


def _amount(value: int, unit: str) -> str:
    if unit != "bytes":
        return f"{value:,}"
    for size, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if value % size == 0:
            return f"{value // size} {name}"
    return f"{value:,} bytes"

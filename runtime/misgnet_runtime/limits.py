"""How much of a file from outside is read: each limit stands here once, for its reader, for SECURITY.md and for tests.

``python tests/limits --table`` prints the table of SECURITY.md. ``tests/test_limits.py`` compares the two, and measures
that no file of many hostile families takes more processor time or memory than its row promises.
"""

from __future__ import annotations

from dataclasses import dataclass

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

MANIFEST_BYTES = 16 * _MIB
MANIFEST_VALUES = 200_000
BUNDLE_BYTES = 16 * _GIB
BUNDLE_FILES = 10_000

# Of these the readers' own constants are the definition; tests/test_limits.py compares them.
SIGNATURE_BYTES = 8 * _MIB
CERTIFICATES = 8
CERTIFICATE_BYTES = 64 * _KIB
SIGNED_NAME = 1_024
POLICY_BYTES = 64 * _KIB
KEY_BYTES = 1 * _MIB
ACCEPTED_BYTES = 64 * _KIB

GEOTIFF_BYTES = 512 * _MIB
GEOTIFF_SIDE = 1 << 20
GEOTIFF_MAP_BYTES = 1 * _GIB
GEOTIFF_DECODINGS = 128
GEOTIFF_BLOCKS = 1 << 24
GEOTIFF_DIRECTORIES = 1_024

PICKLE_BYTES = 4 * _MIB
PICKLE_STEPS = 1_000_000
PICKLE_KEY = 500
CHECKPOINT_DIRECTORY_BYTES = 4 * _MIB
CHECKPOINT_ENTRIES = 20_000
WEIGHTS_BYTES = 512 * _MIB
SAFETENSORS_HEADER_BYTES = 4 * _MIB

IMAGE_PIXELS = 178_956_970
IMAGE_PARTS = 100_000
IMAGE_EXTRA_BYTES = 16 * _MIB
JPEG_SCANS = 100
TIFF_TAGS = 4_096

ARCHIVE_BYTES = 512 * _MIB
ARCHIVE_DIRECTORY_BYTES = 64 * _KIB
OBSERVATIONS_HEADER_BYTES = 4 * _MIB

FEATURES_FOOTER_BYTES = 16 * _MIB
JOURNAL_LINE_BYTES = 4 * _MIB
TUNING_BYTES = 1 * _MIB
PLAN_RECORD_BYTES = 1 * _MIB
KERNEL_TIMINGS_BYTES = 512 * _MIB

TABLE_BYTES = 64 * _MIB
TABLE_LINES = 200_000
TABLE_ROW = 64 * _KIB


@dataclass(frozen=True)
class Limit:
    """``value`` in ``unit``, and why it is no larger and no smaller."""

    quantity: str
    value: int
    unit: str
    reason: str

    def words(self) -> str:
        """For the table: "4 MiB of JSON"."""
        return f"{_amount(self.value, self.unit)} {self.quantity}".strip()


@dataclass(frozen=True)
class Reader:
    """A kind of file, how it is read, its limits, and the most processor time and memory that one file takes.

    Attributes:
        name: By which tests find it.
        file: What the file is, for SECURITY.md.
        how: How it is read.
        seconds: Of processor time.
        mebibytes: Of memory, beyond what the process had before.
    """

    name: str
    file: str
    how: str
    limits: tuple[Limit, ...]
    seconds: int
    mebibytes: int

    def row(self) -> str:
        limits = "; ".join(limit.words() for limit in self.limits)
        return f"| {self.file} | {self.how} | {limits} | {self.seconds} | {self.mebibytes:,} |"


READERS = (
    Reader("manifest", "`manifest.json`", "strict JSON of known fields", (
        Limit("of JSON", MANIFEST_BYTES, "bytes", "it states the numbers of each operator of each graph"),
        Limit("lists and objects", MANIFEST_VALUES, "", "some 5 for an operator; an empty one takes much memory"),
        Limit("of files that it lists", BUNDLE_BYTES, "bytes", "a sparse file of any size costs who sends it nothing"),
        Limit("files", BUNDLE_FILES, "", "a bundle has some 20"),
    ), 10, 320),
    Reader("signature", "`model.sig`", "JSON", (
        Limit("", SIGNATURE_BYTES, "bytes", "certificates and a digest of each file have some kB"),
        Limit("different certificates", CERTIFICATES, "", "public authorities go no deeper"),
        Limit("of certificates", CERTIFICATE_BYTES, "bytes", "one has 2 kB"),
        Limit("signed names", BUNDLE_FILES, "", "as in a manifest"),
        Limit("characters of a name", SIGNED_NAME, "", "normalising takes the square of a run of marks"),
    ), 10, 256),
    Reader("key", "key file", "PEM", (
        Limit("", KEY_BYTES, "bytes", "a root's certificate has 2 kB"),
    ), 10, 64),
    Reader("policy", "policy file", "TOML of known fields", (
        Limit("", POLICY_BYTES, "bytes", "some 500 products"),
    ), 2, 64),
    Reader("checkpoint", "checkpoint, a pickle", "by an unpickler that calls nothing (`misgnet/_unpickle.py`); "
           "no byte of the file counts twice", (
        Limit("of pickle", PICKLE_BYTES, "bytes", "a snapshot with its optimizer has 0.2 MB without its numbers"),
        Limit("instructions", PICKLE_STEPS, "", "a snapshot has 60,000, and each may make an object"),
        Limit("characters of a key, which is text", PICKLE_KEY, "", "hashes of numbers can be made to collide"),
        Limit("of its zip directory", CHECKPOINT_DIRECTORY_BYTES, "bytes", "a snapshot has 1,400 entries, 80 kB"),
        Limit("tensors", CHECKPOINT_ENTRIES, "", "an EMA wrapper has 2,000"),
        Limit("of numbers", WEIGHTS_BYTES, "bytes", "tensors may share numbers: a file of any size may declare more"),
    ), 20, 2_304),
    Reader("safetensors", "safetensors", "by the `safetensors` library; no byte outside the file", (
        Limit("of header", SAFETENSORS_HEADER_BYTES, "bytes", "MISGNet's has 0.1 MB, and the library reads 100 MB"),
        Limit("of numbers, where shapes are not known before", WEIGHTS_BYTES, "bytes", "as of a pickle"),
    ), 20, 2_304),
    Reader("image", "tiles and images", "PNG, TIFF or JPEG by their first bytes, whatever the name", (
        Limit("pixels", IMAGE_PIXELS, "", "Pillow's own limit"),
        Limit("chunks, segments, strips or tiles", IMAGE_PARTS, "", "libpng writes 70,000 for the most pixels"),
        Limit("beside the pixels", IMAGE_EXTRA_BYTES, "bytes", "colour profiles and previews have some MB"),
        Limit("scans of a JPEG", JPEG_SCANS, "", "encoders write some 10, and each costs as much as all pixels"),
        Limit("tags of a TIFF", TIFF_TAGS, "", "a real one has some 30"),
    ), 20, 2_560),
    Reader("label", "labels", "as images; 0 and 255, or 0 and 1", (
        Limit("pixels", IMAGE_PIXELS, "", "Pillow's own limit"),
    ), 20, 1_280),
    Reader("geotiff", "GeoTIFF", "by GDAL's GTiff driver alone: no VRT, nothing beside the file, one thread", (
        Limit("for a block, or for what is read at once", GEOTIFF_BYTES, "bytes", "256 rows of 40,000 px take 120 MB"),
        Limit("pixels along a side", GEOTIFF_SIDE, "", "places and weights of tiles take some 20 bytes for each"),
        Limit("of the map's unfinished rows (width x tile)", GEOTIFF_MAP_BYTES, "bytes", "838,860 px wide at 256 px"),
        Limit("decodings of a block", GEOTIFF_DECODINGS, "", "blocks that do not suit tiles are decoded often"),
        Limit("blocks", GEOTIFF_BLOCKS, "", "a byte or two of memory for each; 256 px blocks make 10^12 pixels"),
        Limit("images, overviews and masks", GEOTIFF_DIRECTORIES, "", "a real file has about 30"),
    ), 20, 1_536),
    Reader("golden", "golden and evaluation tiles, saved observations", "`.npz` without pickles, stored or "
           "deflated, opened by one zip reader", (
        Limit("unpacked", ARCHIVE_BYTES, "bytes", "8 evaluation tiles of 1,024 px have 67 MB"),
        Limit("of its zip directory", ARCHIVE_DIRECTORY_BYTES, "bytes", "it has 7 entries"),
        Limit("of JSON in observations", OBSERVATIONS_HEADER_BYTES, "bytes", "names of some thousand tensors"),
    ), 10, 576),
    Reader("features", "features of a date", "records mapped a few at a time", (
        Limit("of footer", FEATURES_FOOTER_BYTES, "bytes", "some 1.3 million tiles: 150,000 x 150,000 px at least"),
    ), 10, 640),
    Reader("journal", "journals of scenes, folders, watchers and batches", "line by line; names of files in them "
           "stay in their folder; what the lines say", (
        Limit("in a line", JOURNAL_LINE_BYTES, "bytes", "the longest line of a scene names its unreadable blocks"),
    ), 10, 320),
    Reader("tuning", "tuning", "strict JSON behind its digest", (
        Limit("", TUNING_BYTES, "bytes", "some 100 trials"),
    ), 2, 64),
    Reader("accepted", "accepted versions", "strict JSON", (
        Limit("", ACCEPTED_BYTES, "bytes", "a record has 300 bytes"),
    ), 2, 64),
    Reader("plans", "records of compiled plans, kernel timings", "strict JSON behind its digest, opaque "
           "bytes behind theirs", (
        Limit("of JSON", PLAN_RECORD_BYTES, "bytes", "a record has 1 kB"),
        Limit("of timings", KERNEL_TIMINGS_BYTES, "bytes", "TensorRT's have some MB"),
    ), 10, 1_100),
    Reader("table", "table of scenes", "CSV in UTF-8", (
        Limit("", TABLE_BYTES, "bytes", "300 bytes for each line"),
        Limit("lines", TABLE_LINES, "", "a scene takes 3 kB with its options; more go into several tables"),
        Limit("characters in a row", TABLE_ROW, "", "two paths and 28 options of the longest kind"),
    ), 30, 768),
)  # fmt: skip


def reader(name: str) -> Reader:
    return next(found for found in READERS if found.name == name)


def markdown() -> str:
    """The table of SECURITY.md."""
    head = "| file | what is read of it | at most | CPU, s | memory, MiB |\n|---|---|---|---|---|"
    return "\n".join([head, *(found.row() for found in READERS)])


def _amount(value: int, unit: str) -> str:
    if unit != "bytes":
        return f"{value:,}"
    for size, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if value % size == 0:
            return f"{value // size} {name}"
    return f"{value:,} bytes"

"""Generates families of hostile files, each at the largest size that its reader accepts, and just over a limit.

Each family names a reader of ``misgnet_runtime.limits.READERS``, whose promise is compared with the measurement.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Read = Callable[[Path], object]
MIB = 1 << 20


@dataclass(frozen=True)
class Family:
    """A family of hostile files."""

    # Name in READERS.
    reader: str
    # Reads a good file in a folder, and returns the function to measure.
    prepare: Callable[[Path], Read]
    # Writes the file; just over a limit if the second argument is true.
    make: Callable[[Path, bool], None]
    # Whether ``make`` can write a file over a limit.
    has_over: bool = False
    # Whether only ``python tests/limits`` measures it, not the test suite.
    slow: bool = False


# NumPy archives


def _golden(folder: Path) -> Read:
    from misgnet_runtime.bundle.golden import GoldenTiles, read_golden, write_golden

    zeros = np.zeros((1, 8, 8, 3), np.uint8)
    write_golden(folder / "good.npz", GoldenTiles(zeros, zeros, np.zeros((1, 8, 8), np.float32)))
    read_golden(folder / "good.npz")
    return read_golden


def _npy(shape: tuple[int, ...], descr: str = "|u1", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _archive(path: Path, members: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", packed, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


NAMES = ("before", "after", "probability")


def polyglot(path: Path, _over: bool) -> None:
    """Writes an array of 3 GiB for NumPy, which reads the first bytes, and a small archive for a zip reader."""
    _archive(path, dict.fromkeys(NAMES, _npy((0,))))
    path.write_bytes(_npy((3 << 30,)) + bytes(8000) + path.read_bytes())


def unfolding(path: Path, over: bool) -> None:
    """Writes zeros that decompress to the largest permitted size."""
    part = 511 * MIB // 3 + (MIB if over else 0)
    _archive(path, dict.fromkeys(NAMES, _npy((part,), data=bytes(part))))


def lying_sizes(path: Path, _over: bool) -> None:
    """Writes empty entries that declare 170 MiB each."""
    _archive(path, dict.fromkeys(NAMES, _npy((170 * MIB,))), zipfile.ZIP_STORED)
    _change_directory(path, 24, struct.pack("<I", 170 * MIB))


def _change_directory(path: Path, at: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        data[place + at : place + at + len(value)] = value
        place = data.find(b"PK\x01\x02", place + 46)
    path.write_bytes(data)


def many_members(path: Path, over: bool, count: int = 1_200, most: int = 1 << 20) -> None:
    """Writes a directory of many entries that share a few bytes."""
    data = _npy((0,))
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), 5, 0)
    count = most if over else count
    entry = [
        struct.pack(
            "<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data),
            7, 0, 0, 0, 0, 0, 0,
        ) + f"{number:07}".encode()
        for number in range(count)
    ]  # fmt: skip
    directory, start = b"".join(entry), len(local) + 5 + len(data)
    ends = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(directory), start)
    zip64 = b"PK\x06\x06" + ends + b"PK\x06\x07" + struct.pack("<IQI", 0, start + len(directory), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), start, 0)
    path.write_bytes(local + b"a.npy" + data + directory + zip64 + end)


def empty_items(path: Path, _over: bool) -> None:
    """Writes 2**62 items of zero bytes."""
    _archive(path, dict.fromkeys(NAMES, _npy((1 << 62,), "<U0")))


def odd_types(path: Path, _over: bool) -> None:
    """Writes items of 2 GB each."""
    _archive(
        path, {"before": _npy((1,), "<U500000000"), "after": _npy((1,), "<V2000000000"), "probability": _npy((1,))}
    )


def nested_header(path: Path, _over: bool) -> None:
    header = b"(" * 9_000
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    _archive(path, dict.fromkeys(NAMES, data))


def _evaluation(folder: Path) -> Read:
    from misgnet_runtime.accuracy.evaluation_tiles import EvaluationTiles, read_evaluation, write_evaluation

    write_evaluation(folder / "good.npz", EvaluationTiles(**_evaluation_arrays(1, 8)))
    read_evaluation(folder / "good.npz")
    return read_evaluation


def _evaluation_arrays(count: int, size: int) -> dict[str, Any]:
    date, mask = np.zeros((count, size, size, 3), np.uint8), np.zeros((count, size, size), np.bool_)
    return {
        "before": date, "after": date, "label": mask, "reference": mask, "owned": np.zeros((count, 4), np.int64),
        "names": np.array(["a"] * count), "sources": np.array(["a"] * count),
    }  # fmt: skip


def evaluation_of_many_tiles(path: Path, over: bool) -> None:
    """Writes many named tiles of one pixel."""
    np.savez_compressed(path.with_suffix(".npz"), **_evaluation_arrays(12_000_000 if over else 10_000_000, 1))
    path.with_suffix(".npz").rename(path)


# Pickles


def _checkpoint(folder: Path) -> Read:
    import torch

    from misgnet.checkpoint import load_checkpoint, read_tensors
    from misgnet_runtime.errors import MisgnetError

    torch.save({"a": torch.ones(3)}, folder / "good.pt")
    read_tensors(folder / "good.pt")

    def read(path: Path) -> None:
        try:
            load_checkpoint(path)
        except MisgnetError:
            read_tensors(path)

    read(folder / "good.pt")
    return read


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _long(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


MODEL, TAIL = _text("model"), b"N"
BYTES = 4 * MIB - 64  # largest accepted pickle


def pickled(body: Callable[[int], bytes]) -> Callable[[Path, bool], None]:
    """Returns a maker of checkpoints whose pickle is ``body(maximum bytes)``."""

    def make(path: Path, over: bool) -> None:
        data = b"\x80\x02" + body(2 * BYTES if over else BYTES) + b"."
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)

    return make


def _repeated(unit: bytes, steps: int, most: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """Repeats ``unit`` up to ``most`` bytes and a million instructions; ten million if over the limit of bytes."""
    allowed = 999_000 if most <= BYTES else 10_000_000
    return before + unit * min((most - len(before) - len(after)) // len(unit), allowed // steps) + after


def _colliding(key: Callable[[int], bytes], steps: int) -> Callable[[int], bytes]:
    """Returns the body of a dict whose keys all have the same hash."""

    def body(most: int) -> bytes:
        allowed = 999_000 if most <= BYTES else 10_000_000
        size = len(key(1)) + 1
        return b"}(" + b"".join(key(n) + b"N" for n in range(min((most - 3) // size, allowed // (steps + 1)))) + b"u"

    return body


PRIME = (1 << 61) - 1  # modulus of the hashes of integers


def _distinct_sets(most: int) -> bytes:
    return b"\x8f(" + b"".join(_long(n * PRIME) for n in range(min(most // 19, 900_000))) + b"\x90"


def _memo(most: int) -> bytes:
    return b"N" + b"".join(f"p{n * PRIME}\n".encode() for n in range(1, min(most // 26, 900_000)))


def _equal_keys(most: int) -> bytes:
    """Sets two equal long strings as keys in turn, so that they are compared with each other."""
    key = "k" * (MIB // 2)
    return b"}" + _text(key) + b"q\x000" + _text(key) + b"q\x010" + b"h\x00Nsh\x01Ns" * min(most // 24, 160_000)


def many_names(path: Path, over: bool) -> None:
    """Writes a state dict with many names of one number."""
    number = b"ctorch._utils\n_rebuild_tensor_v2\n((" + (
        _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x01tQ"
        b"K\x00K\x01\x85K\x01\x85\x89}tR"
    )  # fmt: skip
    names = b"".join(_text(f"{n:x}") + b"h\x00" for n in range(200_000 if over else 20_000))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + number + b"q\x000}(" + names + b"u.")
        archive.writestr("archive/data/0", bytes(4))


def _shared_names(_most: int) -> bytes:
    """Returns modules with long names that share a parameter with a long name."""
    record = b"ca\nb\n)R}"
    leaf = _text("_parameters") + b"}" + _text("p" * 499) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + (
        b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x01tQ" + b"K\x00))\x89"
        b"ccollections\nOrderedDict\n)RtR"
    ) + b"s"  # fmt: skip
    names = [_text(f"{n:0499}") for n in range(5_000)]
    children = b"".join(name + record + _text("_parameters") + b"h\x01sb" for name in names)
    return (
        b"}q\x01"
        + leaf[len(_text("_parameters")) + 1 :]
        + b"0"
        + record
        + _text("_modules")
        + b"}("
        + children
        + b"usb"
    )


def sharing_numbers(path: Path, over: bool) -> None:
    """Writes one number that is expanded to a tensor of 2**28 elements."""
    import torch

    torch.save({"a": torch.zeros(1, dtype=torch.float64).expand((1 << 28) + (MIB if over else 0))}, path)


def many_torch_members(path: Path, over: bool) -> None:
    many_members(path, over, 75_000)


# Safetensors weights


def _header(path: Path, header: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def many_tensors(path: Path, over: bool) -> None:
    count = (100 if over else 4) * MIB // 60 - 10
    _header(path, b"{" + b",".join(
        b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(count)) + b"}")  # fmt: skip


def many_dimensions(path: Path, over: bool) -> None:
    shape = b"0," * (((100 if over else 4) * MIB - 100) // 2)
    _header(path, b'{"a":{"dtype":"F32","shape":[%s0],"data_offsets":[0,0]}}' % shape)


# Images


def _image(folder: Path) -> Read:
    from misgnet_runtime.raster.images import image_size, read_image, read_label

    def read(path: Path) -> None:
        image_size(path)
        read_image(path)

    for form in ("PNG", "TIFF", "JPEG"):
        Image.new("RGB", (8, 8)).save(folder / "good.png", form)
        read(folder / "good.png")
        read_label(folder / "good.png")
    return read


def _label(folder: Path) -> Read:
    from misgnet_runtime.raster.images import read_label

    _image(folder)
    return read_label


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, before: bytes = b"", inside: bytes = b"", *, color: int = 2, depth: int = 8) -> bytes:
    channels = {0: 1, 2: 3, 6: 4}[color]
    packer, row = zlib.compressobj(9), bytes(1 + width * channels * depth // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return head + before + _chunk(b"IDAT", pixels[:20]) + inside + _chunk(b"IDAT", pixels[20:]) + _chunk(b"IEND")


def png(**parts: Any) -> Callable[[Path, bool], None]:
    def make(path: Path, over: bool) -> None:
        found = {name: part(over) if callable(part) else part for name, part in parts.items()}
        path.write_bytes(_png(**{"width": 8, "height": 8, **found}))

    return make


SIDE = 13_377  # pixels; a square of this side is just within Pillow's limit


def jpeg_scans(path: Path, over: bool) -> None:
    """Writes a large progressive JPEG with many scans, each of which costs as much as the whole image."""
    width = height = 4_000 if over else SIDE
    head = b"\xff\xd8" + b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    head += b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    table = b"\xff\xc4\x00\x14%s" + b"\x01" + b"\x00" * 15 + b"%s"
    head += table % (b"\x00", b"\x00") + table % (b"\x10", b"\xe0")  # DC: difference 0; AC: the end of 2**14 blocks
    dc = b"\xff\xda" + struct.pack(">HB", 12, 3) + b"\x01\x00\x02\x00\x03\x00\x00\x00\x00"
    blocks = (width // 8 + 1) * (height // 8 + 1)
    ac = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x01\x3f\x00" + bytes(2 * blocks // (1 << 14) + 4)
    scans = 2_000 if over else 98
    path.write_bytes(head + dc + bytes(3 * blocks // 8 + 1) + ac * scans + b"\xff\xd9")


def jpeg_segments(path: Path, over: bool) -> None:
    """Writes empty comments, or padding."""
    good = io.BytesIO()
    Image.new("RGB", (8, 8)).save(good, "JPEG")
    more = b"\xff\xfe\x00\x02" * 2_000_000 if over else b"\xff" * 65_000 + b"\xff\xfe\x00\x02" * 98_000
    path.write_bytes(good.getvalue()[:2] + more + good.getvalue()[2:])


def sparse_chunk(path: Path, _over: bool) -> None:
    """Writes a sparse chunk of 2 GiB."""
    data = _png(8, 8)
    with path.open("wb") as file:
        file.write(data[:33] + struct.pack(">I", (1 << 31) - 1) + b"prIv")
        file.truncate(3 << 30)


def tiff_strips(path: Path, over: bool) -> None:
    """Writes many strips of one byte."""
    count = 4_000_000 if over else 99_000
    tags = [(256, 3, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, 8),
            (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, count, 8 + 4 * count)]  # fmt: skip
    offsets, entries = bytes(4 * count), b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = struct.pack("<I", 8 + 8 * count)
    path.write_bytes(
        b"II*\0" + start + offsets + b"\1\0\0\0" * count + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def tiff_tiles(path: Path, over: bool) -> None:
    """Writes a row of pixels in tall tiles that share the same bytes."""
    side, count = (16_000, 11_000) if over else (4_096, 21)
    tile, arrays = zlib.compress(bytes(side * side * 3), 9), 4 * count
    start = 8 + len(tile) + len(tile) % 2
    tags = [(256, 4, 1, side * count), (257, 3, 1, 1), (258, 3, 3, start + 2 * arrays), (259, 3, 1, 8), (262, 3, 1, 2),
            (277, 3, 1, 3), (322, 4, 1, side), (323, 4, 1, side), (324, 4, count, start),
            (325, 4, count, start + arrays)]  # fmt: skip
    data = tile.ljust(start - 8, b"\0") + struct.pack("<I", 8) * count + struct.pack("<I", len(tile)) * count
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data) + 6) + data + b"\x08\0" * 3 + directory)


def tiff_tags(path: Path, over: bool) -> None:
    """Writes tags that all point to the same bytes."""
    count, size = (60_000, MIB) if over else (4_080, 4_000)
    width = [
        (256, 3, 1, 8),
        (257, 3, 1, 8),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (278, 3, 1, 8),
        (279, 4, 1, 64),
    ]
    tags = width + [(1_000 + n, 7, size, 8) for n in range(count)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    content = bytes(size)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + size) + content + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def bigtiff_tags(path: Path, _over: bool) -> None:
    """Writes two million tags."""
    tags = struct.pack("<HHQQ", 256, 3, 1, 8) * 2_000_000
    path.write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2_000_000) + tags + bytes(8))


# Files of a bundle and of a device


def _manifest(folder: Path) -> Read:
    from rich.console import Console

    from misgnet_runtime.cli.info import bundle_figures, print_info
    from support.bundles import INT8, SPLIT_FLOAT, make_bundle

    root = make_bundle(folder / "bundle", engines=[SPLIT_FLOAT, INT8])

    def read(path: Path) -> None:
        path.replace(root / "manifest.json")
        print_info(root, Console(file=io.StringIO()))
        bundle_figures(root)

    print_info(root, Console(file=io.StringIO()))
    bundle_figures(root)
    return read


def manifest(**fields: Any) -> Callable[[Path, bool], None]:
    """Returns a maker of manifests with ``fields``, in which "HERE" is replaced by a list of repeated ``unit``."""
    unit: bytes = fields.pop("unit")

    def make(path: Path, over: bool) -> None:
        from support.bundles import INT8, SPLIT_FLOAT, make_bundle

        with tempfile.TemporaryDirectory() as folder:
            root = make_bundle(Path(folder) / "bundle", engines=[SPLIT_FLOAT, INT8])
            good = {**json.loads((root / "manifest.json").read_bytes()), **fields}
        most, values = 16 * MIB - 20_000, sum(map(unit.count, (b"[", b"{")))
        count = min(most // len(unit), 195_000 // values if values and not over else most)
        items = b"[" + unit * count + unit.rstrip(b",") + b"]"
        path.write_bytes(json.dumps(good).encode().replace(b'"HERE"', items))

    return make


def _features(folder: Path) -> Read:
    from misgnet_runtime.jobs.series.features import Footer, footer_bytes, open_features

    (folder / "good.features").write_bytes(footer_bytes(Footer(1, {}, 8, [], [], [], [], [])))
    open_features(folder / "good.features")
    return open_features


FOOTER = {"format": 1, "settings": {}, "tile": 8, "rows": [], "columns": [], "features": [], "holes": [], "crc32": []}


def footer(name: str, unit: Callable[[int], bytes]) -> Callable[[Path, bool], None]:
    """Returns a maker of footers whose field ``name`` fills the permitted size."""

    def make(path: Path, over: bool) -> None:
        import hashlib

        most = (64 if over else 16) * MIB - 1_000
        size = len(unit(1))
        items = b",".join(unit(n) for n in range(most // (size + 1)))
        content = json.dumps({**FOOTER, name: "HERE"}).encode().replace(b'"HERE"', b"[" + items + b"]")
        tail = hashlib.sha256(content).digest() + len(content).to_bytes(8, "little") + b"MISGFEAT"
        path.write_bytes(content + tail)

    return make


def _feature(number: int) -> bytes:
    return b'{"name":"%07d","dtype":"f","shape":[-1,0],"layout":""}' % number


def _batch_record(folder: Path) -> Read:
    from misgnet_runtime.jobs.batch.record import open_record
    from misgnet_runtime.jobs.batch.table import Shard

    with open_record(folder / "out", Shard()):
        pass

    def read(path: Path) -> None:
        path.replace(folder / "out/batch.jsonl")
        with open_record(folder / "out", Shard()):
            pass

    return read


DONE = (
    '{"type":"done","time":"2026-01-01T00:00:00Z","scene":"%07d","key":"' + "0" * 64 + '","outputs":["a.tif"],'
    '"attempts":1,"worker":"here","figures":{"changed_share":0.5,"unread":[0,0],"more":%s}}\n'
)  # fmt: skip


def record_of_one_line(path: Path, over: bool) -> None:
    most = (64 if over else 4) * MIB - 1_000
    path.write_text(DONE % (1, "[" + "{}," * (most // 3) + "0]"))


def record_of_many_lines(path: Path, _over: bool) -> None:
    with path.open("w") as file:
        file.writelines(DONE % (n, "0") for n in range(200_000))


# Tables of scenes


def _stac_item(_folder: Path) -> Read:
    from misgnet_runtime.raster.remote import RemoteOptions
    from misgnet_runtime.raster.stac.locate import locate_item

    return lambda path: locate_item(str(path), None, RemoteOptions())


def stac_item(unit: Callable[[int], str], *, before: str = "", after: str = "") -> Callable[[Path, bool], None]:
    """Returns a maker of items with as many repetitions of a unit as the limit of bytes admits, or over it."""
    head = '{"type":"Feature","stac_version":"1.1.0","id":"a","properties":{},"assets":{' + before

    def make(path: Path, over: bool) -> None:
        most = MIB + 1_000 if over else MIB - 1_000
        size = len(unit(1 << 19)) + 1
        path.write_text(head + ",".join(unit(number) for number in range(most // size)) + after + "}}")

    return make


def _table(folder: Path) -> Read:
    from misgnet_runtime.jobs.batch.table import read_table

    (folder / "good.csv").write_text("id,before,after\na,b,c\n")
    read_table(folder / "good.csv", {}, folder / "out")
    return lambda path: read_table(path, {"engine": "cpu"}, folder / "out")


LINES = 199_990
MORE = "engine,output,probability,vector,quicklook,overlap,min_area,bands,scale,before_bands,after_bands"


def table(
    row: Callable[[int], str], header: str = "id,before,after", *, most: int = 63 * MIB, lines: int = LINES
) -> Any:
    """Returns a maker of tables with rows up to the limit of lines or bytes, or far over it."""

    def make(path: Path, over: bool) -> None:
        left, count = most, 1_500_000 if over else lines
        with path.open("w") as file:
            file.write(header + "\n")
            for number in range(count):
                text = row(number)
                left -= len(text) + 1
                if left < 0 and not over:
                    break
                file.write(text + "\n")

    return make


TABLES = {
    "table-scenes": table(lambda n: f"{n},a,b"),
    "table-products": table(lambda n: f"{n},a,b" + ",yes" * 4, "id,before,after,output,probability,vector,quicklook"),
    "table-options": table(
        lambda n: f"{n},data/{n}/before.tif,data/{n}/after.tif,cpu,maps/{n}.tif,p/{n}.tif,v/{n}.gpkg,q/{n}.png,16,1.5,"
        '"1,2,3",0.5,"3,2,1","3,2,1"', f"id,before,after,{MORE}",
    ),
    "table-deep-paths": table(lambda n: f"{n},{'a/' * 15_000}{n},b"),
    "table-empty-lines": table(lambda _: ""),
    "table-cells": table(lambda _: "," * 65_000),
    "table-quoted": table(lambda _: '"\n",', lines=90_000),
    "table-one-row": table(lambda _: "x" * MIB, most=60 * MIB),
}  # fmt: skip


# Policy files


def _policy(_folder: Path) -> Read:
    from misgnet_runtime.bundle.signing.policy_file import read_policy

    return read_policy


def _config(_folder: Path) -> Read:
    from misgnet_runtime.storage.config import read_toml

    return lambda path: read_toml(path, "--config x")


def config(text: str) -> Any:
    """Returns a maker of files of options that repeat ``text``; over the limit, of a name with too many parts."""

    def make(path: Path, over: bool) -> None:
        whole = "".join(text.replace("{number}", str(number)) for number in range((1 << 16) // len(text)))
        path.write_text("a" + ".a" * 32_000 + " = 1\n" if over else whole[: 1 << 16])

    return make


def policy(*lines: str, dots: int) -> Any:
    """Returns a maker of policy files with names of ``dots`` parts; over the limit, a single very long name."""

    def make(path: Path, over: bool) -> None:
        parts = ".a" * dots
        text = "".join(line.format(parts=parts, number=number) for number in range(500) for line in lines)
        path.write_text("a" + ".a" * 32_000 + " = 1\n" if over else text[: 1 << 16].rpartition("\n")[0])

    return make


def _png_bomb(over: bool, kind: bytes = b"zTXt") -> bytes:
    return _chunk(kind, b"a\0\0" + zlib.compress(bytes(60 * MIB), 9)) * (200 if over else 1)


SLOW_PICKLES = ("colliding-set", "empty-lists", "ordered-dicts", "marks", "memoized", "tuples", "long-number")
SLOW = ("table-options", "table-products", "table-deep-paths")
# ONNX files


def _onnx(folder: Path) -> Read:
    from misgnet_export.sources.onnx_reader import read_model

    onnx_file(folder / "good.onnx", [("Neg", "x", "y")])
    read_model(folder / "good.onnx")
    return read_model


def onnx_file(path: Path, nodes: list[tuple[str, str, str]], **more: Any) -> None:
    """Writes a graph of (operator, input, output); ``more`` are fields of the graph."""
    from onnx import TensorProto, helper

    made = [helper.make_node(operator, [read], [written]) for operator, read, written in nodes]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(made, "g", value[:1], value[1:], **more)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def onnx_nodes(path: Path, over: bool) -> None:
    names = ["x", *(f"t{index}" for index in range(999_999 if over else 49_999)), "y"]
    onnx_file(path, [("Neg", read, written) for read, written in pairwise(names)])


def onnx_appended(unit: bytes, most: int) -> Callable[[Path, bool], None]:
    """Returns a function that writes a good file with ``unit`` repeated up to a limit; protobuf merges its fields."""

    def make(path: Path, over: bool) -> None:
        onnx_file(path, [("Neg", "x", "y")])
        with path.open("ab") as file:
            file.write(unit * (2 * most if over else most - 1_000))

    return make


def onnx_integers(path: Path, over: bool) -> None:
    """Writes integers of a byte each that take eight in memory."""
    count = (16 * MIB - 1000) * (2 if over else 1)
    values = _field(7, bytes(count))
    tensor = b"\x08" + _varint(count) + b"\x10\x07" + _field(8, b"w") + values
    onnx_file(path, [("Neg", "x", "y")])
    with path.open("ab") as file:
        file.write(_field(7, _field(5, tensor)))


def onnx_weights(path: Path, over: bool) -> None:
    """Writes a weight of almost 1 GiB, as a hole in the file."""
    size = (1 << 30) + 4096 if over else (1 << 30) - 4096
    head = b"\x08" + _varint(size // 4) + b"\x10\x01" + _field(8, b"w") + b"\x4a" + _varint(size)
    initializer = b"\x2a" + _varint(len(head) + size) + head
    onnx_file(path, [("Neg", "x", "y")])
    with path.open("ab") as file:
        file.write(b"\x3a" + _varint(len(initializer) + size) + initializer)
        file.truncate(file.tell() + size)


def onnx_outside(path: Path, over: bool) -> None:
    """Writes weights in another file, as a hole in it, all at the same position."""
    from onnx import TensorProto

    size, count = 1 << 26, 20 if over else 15
    tensors = [TensorProto(name=f"w{n}", data_type=1, dims=[size // 4], data_location=1) for n in range(count)]
    for tensor in tensors:
        tensor.external_data.add(key="location", value="file.bin")
    with path.with_name("file.bin").open("wb") as file:
        file.truncate(size)
    onnx_file(path, [("Neg", "x", "y")], initializer=tensors)


def onnx_functions(path: Path, over: bool) -> None:
    """Writes functions that double: 2^15 nodes, or 2^63."""
    from onnx import TensorProto, helper

    most, sets = (63 if over else 15), [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(most):
        call, domain = (f"f{level + 1}", "own") if level + 1 < most else ("Neg", "")
        nodes = [helper.make_node(call, [a], [b], domain=domain) for a, b in (("x", "t"), ("t", "y"))]
        functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, sets))
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="own")], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=sets, functions=functions, ir_version=8)
    path.write_bytes(model.SerializeToString())


def onnx_nested(path: Path, over: bool) -> None:
    """Writes a type of sequences of sequences."""
    inner = b""
    for _ in range(20_000 if over else 25):
        inner = _field(4, _field(1, inner))
    onnx_file(path, [("Neg", "x", "y")])
    with path.open("ab") as file:
        file.write(_field(7, _field(13, _field(1, b"v") + _field(2, inner))))


def onnx_names(path: Path, _over: bool) -> None:
    onnx_file(path, [("Neg", "x", "t" * (100 * MIB)), ("Evil" * (25 * MIB), "x", "y")])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


# Areas of interest


def _area(folder: Path) -> Read:
    from rasterio.crs import CRS
    from rasterio.transform import from_origin

    from misgnet_runtime.raster.area.area_file import read_area
    from misgnet_runtime.raster.area.placement import place_area
    from misgnet_runtime.raster.grid import Grid

    grid = Grid(2_000, 2_000, CRS.from_epsg(32633), from_origin(500_000, 5_000_000, 50, 50))

    def read(path: Path) -> None:
        place_area(read_area(path), grid)

    for suffix, make in (("json", area_of([[[15, 44.5], [15.5, 44.5], [15, 45], [15, 44.5]]])), ("gpkg", _geopackage)):
        make(folder / f"good.{suffix}", False)
        read(folder / f"good.{suffix}")
    return read


def area_of(*polygons: list[Any]) -> Callable[[Path, bool], None]:
    """Returns a maker of GeoJSON with polygons, each a list of rings."""
    content = json.dumps({"type": "MultiPolygon", "coordinates": polygons})
    return lambda path, _over: _write_text(path, content)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def area_positions(path: Path, over: bool) -> None:
    """Writes as many positions as fit into the file; over the limit of vertices, then of bytes."""
    count = (17 if over else 15) * MIB // 6
    path.write_text('{"type": "Polygon", "coordinates": [[' + "[0,0]," * count + "[0,0]]]}")


def _vertices(number: int) -> list[list[float]]:
    random = np.random.default_rng(0)
    ring = np.column_stack([15 + random.random(number), 44 + random.random(number)]).tolist()
    return [*ring, ring[0]]


def _comb(teeth: int) -> list[list[float]]:
    """Returns a valid ring of long diagonal teeth, whose envelopes all overlap."""
    steps = np.linspace(0, 0.4, 2 * teeth)
    ring = [[15 + step + (0.5 if n % 4 in (1, 2) else 0), 44 + (0.9 if n % 4 in (1, 2) else 0)]
            for n, step in enumerate(steps.tolist())]  # fmt: skip
    return [*ring, [16.5, 43.5], [14.5, 43.5], ring[0]]


def area_members(path: Path, _over: bool) -> None:
    """Writes members that are not read, nested and with many values."""
    filler = '"x": ' + "[" * 400 + "]" * 400 + ', "y": [' + "{}," * (5 * MIB) + "{}]"
    path.write_text('{"type": "Feature", "properties": {' + filler + '}, "geometry": null}')


def area_nested(path: Path, _over: bool) -> None:
    path.write_text('{"type": "Polygon", "coordinates": ' + "[" * (15 * MIB))


def _geopackage(path: Path, _over: bool, *statements: str) -> None:
    import sqlite3

    ring = np.array([[15, 44.5], [15.5, 44.5], [15, 45], [15, 44.5]])
    wkb = struct.pack("<BIII", 1, 3, 1, 4) + ring.astype("<f8").tobytes()
    database = sqlite3.connect(path)
    for statement in (
        "CREATE TABLE gpkg_contents (table_name TEXT, data_type TEXT)",
        "CREATE TABLE gpkg_geometry_columns (table_name TEXT, column_name TEXT, srs_id INTEGER)",
        "CREATE TABLE gpkg_spatial_ref_sys (srs_id, organization, organization_coordsys_id, definition)",
        "CREATE TABLE area (geom BLOB)", "INSERT INTO gpkg_contents VALUES ('area', 'features')",
        "INSERT INTO gpkg_geometry_columns VALUES ('area', 'geom', 4326)",
        "INSERT INTO gpkg_spatial_ref_sys VALUES (4326, 'EPSG', 4326, 'GEOGCS[]')",
        f"INSERT INTO area VALUES (x'4750000100000000{wkb.hex()}')", *statements,
    ):  # fmt: skip
        database.execute(statement)
    database.commit()
    database.close()


def geopackage(*statements: str) -> Callable[[Path, bool], None]:
    return lambda path, over: _geopackage(path, over, *statements)


_COUNTED = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT {})"
AREAS = {
    "area-positions": area_positions,
    "area-crossing": area_of([_vertices(19_000)]),
    "area-repaired": area_of([_vertices(98)]),
    "area-repaired-many": area_of(*[[_vertices(4)] for _ in range(400)]),
    "area-comb": area_of([_comb(9_900)]),
    "area-holes": area_of([[[14, 43], [17, 43], [17, 46], [14, 43]], *[_vertices(3) for _ in range(4_900)]]),
    "area-overlapping": area_of(*[[[[14, 43], [17, 43], [17, 46], [14, 46], [14, 43]]] for _ in range(1_000)]),
    "area-members": area_members,
    "area-nested": area_nested,
    "area-endless-view": geopackage("DROP TABLE area", "CREATE VIEW area AS WITH RECURSIVE r(geom) AS "
        "(SELECT 1 UNION ALL SELECT geom + 1 FROM r) SELECT geom FROM r"),
    "area-computed": geopackage("DROP TABLE area", "CREATE TABLE area (n, geom AS (randomblob(900000000)))",
        "INSERT INTO area (n) VALUES (1)"),
    "area-many-rows": geopackage(
        f"INSERT INTO area {_COUNTED.format(1_000_000)} SELECT NULL FROM r"),
    "area-many-layers": geopackage(
        f"INSERT INTO gpkg_contents {_COUNTED.format(2_000)} SELECT 'area', 'features' FROM r",
        f"INSERT INTO gpkg_geometry_columns {_COUNTED.format(2_000)} SELECT 'x', 'geom', 1 FROM r"),
    "area-count-in-wkb": geopackage("UPDATE area SET geom = x'47500001000000000103000000ffffff0fffffff0f'"),
}  # fmt: skip


FAMILIES: dict[str, Family] = {
    "npz-polyglot": Family("golden", _golden, polyglot),
    "npz-unfolding": Family("golden", _golden, unfolding, has_over=True),
    "npz-lying-sizes": Family("golden", _golden, lying_sizes),
    "npz-members": Family("golden", _golden, many_members, has_over=True),
    "npz-empty-items": Family("golden", _golden, empty_items),
    "npz-odd-types": Family("golden", _golden, odd_types),
    "npz-nested-header": Family("golden", _golden, nested_header),
    "npz-many-tiles": Family("golden", _evaluation, evaluation_of_many_tiles, has_over=True, slow=True),
    **{
        f"pickle-{name}": Family("checkpoint", _checkpoint, pickled(body), True, name in SLOW_PICKLES)
        for name, body in {
            "colliding-numbers": _colliding(lambda n: _long(n * PRIME), 1),
            "colliding-tuples": _colliding(lambda n: _long(n * PRIME) + b"\x85", 2),
            "colliding-set": _distinct_sets,
            "colliding-memo": _memo,
            "equal-keys": _equal_keys,
            "empty-dicts": lambda most: _repeated(b"}", 1, most, b"](", b"e"),
            "empty-lists": lambda most: _repeated(b"]", 1, most, b"](", b"e"),
            "empty-sets": lambda most: _repeated(b"\x8f", 1, most, b"](", b"e"),
            "records": lambda most: _repeated(b"h\x00)R", 3, most, b"ca\nb\nq\x000](", b"e"),
            "ordered-dicts": lambda most: _repeated(b"h\x00)R", 3, most, b"ccollections\nOrderedDict\nq\x000](", b"e"),
            "marks": lambda most: b"(" * min(most, 990_000 if most <= BYTES else most) + b"t",
            "memoized": lambda most: _repeated(b"]\x94", 2, most, b"](", b"e"),
            "tuples": lambda most: _repeated(b"\x85", 1, most, b")"),
            "long-number": lambda most: b"\x8b" + struct.pack("<I", most - 10) + b"\x7f" * (most - 10),
            "digits": lambda most: b"F" + b"9" * (most - 10) + b"\n",
            "text": lambda most: b"X" + struct.pack("<I", most - 10 & ~3) + "\U0001f600".encode() * ((most - 10) // 4),
        }.items()
    },
    "pickle-shared-names": Family("checkpoint", _checkpoint, pickled(_shared_names)),
    "pickle-steps": Family("checkpoint", _checkpoint, pickled(lambda _: b"](" + b"N" * 3_000_000 + b"e")),
    "checkpoint-shared-numbers": Family("checkpoint", _checkpoint, sharing_numbers, has_over=True, slow=True),
    "checkpoint-names": Family("checkpoint", _checkpoint, many_names, has_over=True),
    "checkpoint-members": Family("checkpoint", _checkpoint, many_torch_members, has_over=True),
    "safetensors-tensors": Family("safetensors", _checkpoint, many_tensors, has_over=True),
    "safetensors-dimensions": Family("safetensors", _checkpoint, many_dimensions, has_over=True),
    "onnx-nodes": Family("onnx", _onnx, onnx_nodes, has_over=True),
    "onnx-fields": Family("onnx", _onnx, onnx_appended(b"\x72\x00", 2_000_000), has_over=True),
    "onnx-tensors": Family("onnx", _onnx, onnx_appended(b"\x3a\x02\x2a\x00", 100_000), has_over=True),
    "onnx-integers": Family("onnx", _onnx, onnx_integers, has_over=True),
    "onnx-weights": Family("onnx", _onnx, onnx_weights, has_over=True, slow=True),
    "onnx-outside": Family("onnx", _onnx, onnx_outside, has_over=True, slow=True),
    "onnx-functions": Family("onnx", _onnx, onnx_functions, has_over=True),
    "onnx-nested": Family("onnx", _onnx, onnx_nested, has_over=True),
    "onnx-names": Family("onnx", _onnx, onnx_names),
    "png-pixels": Family("image", _image, png(width=SIDE, height=SIDE)),
    "png-transparent": Family("image", _image, png(width=SIDE, height=SIDE, color=6), slow=True),
    "png-texts": Family("image", _image, png(before=_png_bomb), has_over=True),
    "png-profile": Family("image", _image, png(before=lambda _: _png_bomb(False, b"iCCP"))),
    "png-chunks": Family("image", _image, png(
        before=lambda over: _chunk(b"prIv") * (2_000_000 if over else 99_000)), has_over=True),
    "png-empty-data": Family("image", _image, png(
        inside=lambda over: _chunk(b"IDAT") * (2_000_000 if over else 99_000)), has_over=True),
    "png-label": Family("label", _label, png(width=SIDE, height=SIDE, color=0)),
    "png-wide-label": Family("label", _label, png(width=SIDE, height=SIDE, color=0, depth=16), slow=True),
    "png-colour-label": Family("label", _label, png(width=SIDE, height=SIDE), slow=True),
    "jpeg-scans": Family("image", _image, jpeg_scans, has_over=True, slow=True),
    "jpeg-segments": Family("image", _image, jpeg_segments, has_over=True),
    "png-sparse": Family("image", _image, sparse_chunk),
    "tiff-strips": Family("image", _image, tiff_strips, has_over=True),
    "tiff-tiles": Family("image", _image, tiff_tiles, has_over=True),
    "tiff-tags": Family("image", _image, tiff_tags, has_over=True),
    "tiff-many-tags": Family("image", _image, bigtiff_tags),
    "manifest-metrics": Family("manifest", _manifest, manifest(metrics={"a": "HERE"}, unit=b"{},"), has_over=True),
    "manifest-lists": Family("manifest", _manifest, manifest(metrics={"a": "HERE"}, unit=b"[],"), has_over=True),
    "manifest-digits": Family("manifest", _manifest, manifest(metrics={"a": "HERE"}, unit=b"9")),
    "manifest-numbers": Family("manifest", _manifest, manifest(metrics={"a": "HERE"}, unit=b"300,")),
    "manifest-fraction": Family("manifest", _manifest, manifest(metrics={"a": "HERE"}, unit=b"0." + b"9" * 500 + b",")),
    "manifest-nodes": Family("manifest", _manifest, manifest(quantization=[{
        "graph": "", "recipe": "", "quantized_nodes": 0, "weight_bits": 8, "int8_share_of_multiply_adds": 0,
        "calibrator": "", "placement": "HERE",
    }], unit=b'{"node":"","operator":"","precision":"int8","rule":"","multiply_adds":0},'), has_over=True),
    "manifest-graphs": Family("manifest", _manifest, manifest(quantization="HERE", unit=(
        b'{"graph":"","recipe":"","quantized_nodes":0,"weight_bits":8,"int8_share_of_multiply_adds":0,"calibrator":""},'
    )), has_over=True),
    "features-rows": Family("features", _features, footer("rows", lambda n: b"%d" % (300 + n % 700)), has_over=True),
    "features-holes": Family("features", _features, footer("holes", lambda _: b"[0,0,0,0]"), has_over=True),
    "features-entries": Family("features", _features, footer("features", _feature), has_over=True),
    "journal-line": Family("journal", _batch_record, record_of_one_line, has_over=True),
    "journal-lines": Family("journal", _batch_record, record_of_many_lines),
    "config-dotted": Family("config", _config, config("d{number}" + ".a" * 199 + " = 1\n"), has_over=True),
    "config-headers": Family("config", _config, config("[h{number}" + ".a" * 60 + "]\n")),
    "config-nested": Family("config", _config, config("a = [" + "[" * 60_000 + "\n")),
    "policy-headers": Family("policy", _policy, policy("[b{number}{parts}]\n", dots=60), has_over=True),
    "policy-dotted": Family("policy", _policy, policy("[c{number}{parts}]\n", "d{parts} = 1\n", dots=60)),
    "policy-quoted": Family("policy", _policy, policy('"="{parts} = 1\n', dots=2_000)),
    **{name: Family("area", _area, make, name == "area-positions") for name, make in AREAS.items()},
    "stac-assets": Family("stac-item", _stac_item, stac_item(lambda n: f'"{n}":{{"href":""}}'), has_over=True),
    "stac-bands": Family("stac-item", _stac_item, stac_item(
        lambda _: "{}", before='"a":{"href":"","bands":[', after="]}"), has_over=True),
    "stac-values": Family("stac-item", _stac_item, stac_item(
        lambda n: f'{{"name":"{n}","nodata":1,"scale":1,"offset":1,"unit":"{n}"}}',
        before='"a":{"href":"","eo:bands":[', after="]}"), has_over=True),
    "stac-depth": Family("stac-item", _stac_item, stac_item(
        lambda _: "[" * 400_000, before='"a":{"href":"","x":', after="}")),
    **{name: Family("table", _table, make, name == "table-scenes", name in SLOW) for name, make in TABLES.items()},
}  # fmt: skip

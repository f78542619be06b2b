"""Tests reading a bundle: any difference from its manifest raises InputError, and no other error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misgnet_runtime.bundle import MANIFEST
from misgnet_runtime.bundle.golden import GoldenTiles, read_golden, write_golden
from misgnet_runtime.bundle.manifest import Manifest, decode_manifest
from misgnet_runtime.bundle.reader import describe_files, read_bundle
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.limits import MANIFEST_BYTES
from misgnet_runtime.storage.schema import encode
from support.bundles import DATA, FLOAT, TILE, edit, images, make_bundle

FILES = ("engines/rtx.plan", "evidence/report.html", "golden/tiles.npz", "graphs/float.onnx", "graphs/int8.onnx")
Values = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def refused(root: Path) -> str:
    """Returns the message of the error that refuses the bundle."""
    with pytest.raises(InputError) as caught:
        read_bundle(root)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_valid_bundle_is_read(bundle: Path) -> None:
    found = read_bundle(bundle)
    assert [f.path for f in found.manifest.files] == list(FILES)
    assert found.file("graphs/float.onnx") == bundle / "graphs/float.onnx"
    assert found.engine_entry("cpu-float32") == FLOAT
    with pytest.raises(UsageError, match="'gpu'; it has cpu-float32, cpu"):
        found.engine_entry("gpu")
    with pytest.raises(InputError, match="does not list the file 'x'"):
        found.file("x")
    with pytest.raises(InputError, match="no file with the role 'music'"):
        found.manifest.file("music")


def test_manifest_is_unchanged_by_writing_and_reading(bundle: Path) -> None:
    manifest = decode_manifest(bundle / MANIFEST)
    assert encode(manifest) == (bundle / MANIFEST).read_bytes()
    assert msgspec.json.decode(encode(manifest), type=Manifest) == manifest


def test_manifest_of_an_earlier_version_is_read(bundle: Path) -> None:
    edit(bundle, lambda m: [engine.pop("needs") for engine in m["engines"]])
    assert read_bundle(bundle).engine_entry("cpu-float32").needs == []


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("tiny_*.onnx")))
def test_stored_graphs_match_their_generator(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    from support.tiny_graphs import tiny

    assert onnx.load(DATA / name) == tiny(name)


# Files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["first", "middle", "last", "cut", "longer"])
def test_changed_byte_is_detected(bundle: Path, name: str, change: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    if change == "cut":
        del data[-1]
    elif change == "longer":
        data += b"\0"
    else:
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[change]] ^= 1
    (bundle / name).write_bytes(data)
    assert f"'{name}' does not match its digest" in refused(bundle)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_detected(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"the file '{name}' is missing" in refused(bundle)


@pytest.mark.parametrize("name", ["extra", "graphs/extra.onnx", "graphs/.lock", "new/folder/x", ".hidden"])
def test_extra_file_is_detected(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).touch()
    assert f"holds '{name}'" in refused(bundle)


@pytest.mark.parametrize("name", ["graphs/float.onnx", MANIFEST])
def test_link_instead_of_a_file_is_detected(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    assert name in refused(bundle)


def test_link_instead_of_a_folder_is_detected(bundle: Path) -> None:
    (bundle / "graphs").rename(bundle.parent / "outside")
    (bundle / "graphs").symlink_to(bundle.parent / "outside")
    assert "the file 'graphs/float.onnx' is missing, a link, or not a regular file" in refused(bundle)


@pytest.mark.parametrize("target", [".", "nowhere"])
def test_extra_link_is_detected(bundle: Path, target: str) -> None:
    (bundle / "link").symlink_to(bundle.parent / target)
    assert "holds 'link'" in refused(bundle)


def test_pipe_instead_of_a_file_is_detected(bundle: Path) -> None:
    (bundle / "graphs/float.onnx").unlink()
    os.mkfifo(bundle / "graphs/float.onnx")
    assert "graphs/float.onnx" in refused(bundle)
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    assert "not a regular file" in refused(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/hostname",
        "graphs/../../outside",
        "..",
        ".",
        "",
        "a\\b",
        "graphs\\float.onnx",
        "nul\0",
        "x" * 400,
    ],
)
def test_a_path_outside_the_bundle_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "outside").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    entry = {"path": name, "sha256": empty, "size": 0, "role": "engine", "precision": None}
    refused(edit(bundle, lambda m: m["files"].append(entry)))


def test_an_engine_whose_file_is_not_listed_is_refused(bundle: Path) -> None:
    """The digest of such a file would never be checked."""
    edit(bundle, lambda m: m["engines"][0].update(file="other.onnx"))
    assert "does not list: other.onnx" in refused(bundle)


def test_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    assert "is not a bundle" in refused(tmp_path)
    assert "is not a bundle" in refused(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    refused(tmp_path / "file")
    (tmp_path / MANIFEST).mkdir()
    assert "is not a regular file" in refused(tmp_path)


def test_files_are_described_by_role(bundle: Path) -> None:
    entries = describe_files(bundle, dict.fromkeys(FILES, ("any", None)))
    assert [(e.path, e.size) for e in entries] == [(n, (bundle / n).stat().st_size) for n in FILES]


# The manifest


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'"\xff"', b'{"schema_version": "1"}', b'{"schema_version": 1}',
        b'{"schema_version": 1, "licence": "\xff"}', b"[" * 10**6, b'{"a":' * 10**5, b'{"schema_version": NaN}',
        b'{"schema_version": 1e999}', b'{"schema_version": 1' + b"0" * 5000 + b"}", b"\xef\xbb\xbf{}", b" " * 100,
    ],
)  # fmt: skip
def test_invalid_manifest_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / MANIFEST).write_bytes(data)
    assert MANIFEST in refused(bundle)


def test_deep_nesting_within_a_field_is_refused(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_bytes()
    deep = text.replace(b'"latency": {}', b'"latency": {"x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}")
    assert deep != text
    (bundle / MANIFEST).write_bytes(deep)
    assert "cannot be read" in refused(bundle)


def test_huge_manifest_is_refused(bundle: Path) -> None:
    with (bundle / MANIFEST).open("r+b") as file:
        file.truncate(MANIFEST_BYTES + 1)
    assert "larger than" in refused(bundle)


def test_other_schema_version_is_named(bundle: Path) -> None:
    edit(bundle, lambda m: m.update(schema_version=3, new_field=1))
    assert "has schema 3; this version reads 1 and 2; update misgnet-export" in refused(bundle)


def test_schema_1_is_read_and_means_a_quarter_of_a_tile(bundle: Path) -> None:
    def older(manifest: Values) -> None:
        manifest.update(schema_version=1, overlap=0)
        manifest.pop("min_f1_ratio", None)

    edit(bundle, older)
    manifest = decode_manifest(bundle / MANIFEST)
    assert (manifest.scene_overlap, manifest.max_f1_drop, manifest.min_f1_ratio) == (manifest.tile // 4, 0.5, None)


MEASURED = {"overlap": 0, "times_computed": 1.0, "f1": None, "seam_agreement": 0.99}

SIZE = {"tile": TILE, "overlap": 8, "f1": 0.9, "seam_agreement": 0.99, "megapixels_s": 1.5}


def test_measured_tiles_are_read(bundle: Path) -> None:
    edit(bundle, lambda m: m.update(tiles=[SIZE, {**SIZE, "tile": 2 * TILE}], tile_from="auto: why"))
    manifest = decode_manifest(bundle / MANIFEST)
    assert [one.tile for one in manifest.tiles] == [TILE, 2 * TILE] and manifest.tile_from == "auto: why"


def test_measured_overlaps_are_read(bundle: Path) -> None:
    measured = [MEASURED, {**MEASURED, "overlap": 8, "times_computed": 1.3, "f1": 0.9}]
    edit(bundle, lambda m: m.update(overlap=8, overlaps=measured, overlap_from="why"))
    manifest = decode_manifest(bundle / MANIFEST)
    assert [(one.overlap, one.f1) for one in manifest.overlaps] == [(0, None), (8, 0.9)]
    assert (manifest.scene_overlap, manifest.overlap_from) == (8, "why")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(overlap=16),
        lambda m: m.update(overlap=0, min_f1_ratio=0.999, max_f1_drop=None),
        lambda m: m.update(overlap=0, overlaps=[MEASURED]),
        lambda m: m.update(overlap=0, tiles=[SIZE]),
    ],
)
def test_schema_1_with_a_later_field_is_refused(bundle: Path, change: Callable[[Values], object]) -> None:
    edit(bundle, lambda m: (m.update(schema_version=1), change(m)))
    assert "schema 1 does not" in refused(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tile", 0), ("tile", -64), ("tile", 1 << 40), ("tile", 64.5), ("tile", None), ("tile", "64"),
        ("max_batch", 0), ("max_batch", -1), ("max_batch", 1 << 63), ("input", "int8"), ("output", "class"),
    ],
)  # fmt: skip
def test_invalid_interface_is_refused(bundle: Path, field: str, value: Any) -> None:
    edit(bundle, lambda m: m["interface"].update({field: value}))
    assert field in refused(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(threshold=0),
        lambda m: m.update(threshold=1),
        lambda m: m.update(threshold=-0.5),
        lambda m: m.update(threshold=float("nan")),
        lambda m: m.update(threshold=float("inf")),
        lambda m: m.update(threshold=True),
        lambda m: m.update(max_f1_drop=float("nan")),
        lambda m: m.update(tile=128),
        lambda m: m.update(overlap=m["tile"]),
        lambda m: m.update(overlap=-1),
        lambda m: m.update(overlap=8, overlaps=[MEASURED]),
        lambda m: m.update(tiles=[{**SIZE, "tile": 2 * TILE}]),
        lambda m: m.update(overlap=0, overlaps=[MEASURED, MEASURED]),
        lambda m: m.update(overlap=0, overlaps=[{**MEASURED, "f1": 1.1}]),
        lambda m: m.update(overlap=0, overlaps=[{**MEASURED, "seam_agreement": -0.1}]),
        lambda m: m.update(overlap=0, overlaps=[{**MEASURED, "times_computed": 0.5}]),
        lambda m: m.update(max_f1_drop=None),
        lambda m: m.update(float_graph=False),  # it has engines in float32
        lambda m: m.update(min_f1_ratio=0.999),
        lambda m: m.update(max_f1_drop=None, min_f1_ratio=1.5),
        lambda m: m.update(bundle_version=-1),
        lambda m: m.update(engines=[]),
        lambda m: m.update(unknown=1),
        lambda m: m.pop("licence"),
        lambda m: m["interface"].update(unknown=1),
        lambda m: m["inputs"].pop(),
        lambda m: m["inputs"][0].update(dtype="float32"),
        lambda m: m["outputs"][0].update(shape=[-1, 32, 32]),
        lambda m: m["preprocessing"].update(mean=[0.5, 0.5, 0.5]),
        lambda m: m["preprocessing"].update(bands=["blue", "green", "red"]),
        lambda m: m["preprocessing"].update(where="in the runtime"),
        lambda m: m["engines"].append(m["engines"][0]),
        lambda m: m["engines"][0].update(kind="pickle"),
        lambda m: m["engines"][0].update(batches=[0, 1, 2]),
        lambda m: m["engines"][0].update(compiled="to be compiled on the device"),
        lambda m: m["engines"][0].update(compiled="somewhere"),
        lambda m: m["files"].append(m["files"][0]),
        lambda m: m["files"][0].update(size=-1),
        lambda m: m["files"][0].update(sha256="0"),
        lambda m: m["files"][0].update(sha256=m["files"][0]["sha256"].upper()),
    ],
)
def test_invalid_or_contradictory_field_is_refused(bundle: Path, change: Callable[[Values], object]) -> None:
    assert MANIFEST in refused(edit(bundle, change))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_manifest_raises_only_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        make_bundle(root)
    text = bytearray((root / MANIFEST).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 1, 1, 1, 2, 5, 100]))
        text[start : start + length] = data.draw(
            st.sampled_from([b"", b"-", b"9" * 30, b"[", b'"', b"\\u0000"]) | st.binary(max_size=3)
        )
    path = root.parent / "damaged.json"
    path.write_bytes(text)
    with suppress(InputError):
        decode_manifest(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_values_in_a_manifest_raise_only_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "valued"
    kept = root.with_suffix(".json")
    if not root.exists():
        shutil.copy(make_bundle(root) / MANIFEST, kept)
    values = json.loads(kept.read_bytes())
    parent: Any = values
    while True:
        key = data.draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
        if not (isinstance(parent[key], (dict, list)) and parent[key] and data.draw(st.booleans())):
            break
        parent = parent[key]
    parent[key] = data.draw(JSON)
    (root / MANIFEST).write_text(json.dumps(values))
    with suppress(InputError):
        read_bundle(root)


# Golden tiles


def test_golden_tiles_are_unchanged_by_writing_and_reading(tmp_path: Path) -> None:
    before, after = images(2, 8, 8)
    write_golden(tmp_path / "g.npz", GoldenTiles(before, after, np.ones((2, 8, 8), np.float32)))
    found = read_golden(tmp_path / "g.npz")
    np.testing.assert_array_equal(found.before, before)
    np.testing.assert_array_equal(found.after, after)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 8, 9), "float32"), ((2, 8), "float32"), ((0, 8, 8), "float32"), ((2, 8, 8), "float64")]
)
def test_golden_tiles_of_wrong_shape_or_type_are_refused(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    before, after = images(2, 8, 8)
    np.savez(tmp_path / "g.npz", before=before, after=after, probability=np.ones(shape, dtype))
    with pytest.raises(InputError, match="do not hold"):
        read_golden(tmp_path / "g.npz")


@pytest.mark.parametrize("kind", ["npy", "pickle", "text", "missing", "objects"])
def test_other_files_instead_of_golden_tiles_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g.npz"
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04K\x01.")
    elif kind == "text":
        path.write_text("golden")
    elif kind == "objects":
        np.savez(path, before=np.array([None]), after=np.array([None]), probability=np.array([None]))
    with pytest.raises(InputError, match="cannot be read"):
        read_golden(path)


def test_golden_tiles_marked_as_encrypted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    write_golden(path, GoldenTiles(*images(1, 4, 4), np.ones((1, 4, 4), np.float32)))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the first flag of an entry in a ZIP file's directory
    path.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        read_golden(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_golden_tiles_raise_only_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    before, after = images(1, 4, 4)
    write_golden(path, GoldenTiles(before, after, np.ones((1, 4, 4), np.float32)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(InputError):
        read_golden(path)

"""Tests that only checked bytes are used, even if a bundle's folder is replaced or its files are overwritten."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misgnet_runtime.bundle import MANIFEST
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.self_test import verify_bundle
from misgnet_runtime.inference.throughput import measure
from misgnet_runtime.measure.bench.matrix import make_matrix, tasks_of
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.measure.bench.run import run_bench
from misgnet_runtime.storage.files import file_sha256
from support.bundles import DATA, FLOAT, INT8, TILE, edit, expected, images, make_bundle

REPLACED = "is missing, a link, or not a regular file"
QUICK = BenchOptions(engines=(FLOAT.name,), batches=(1,), streams=(1,), threads=1, seconds=0.02, rounds=1, warm_up=0.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "current")


def other(root: Path) -> Path:
    """Returns a valid bundle beside ``root`` whose float engine uses the INT8 graph, which has other outputs."""
    made = make_bundle(root.parent / "new")
    shutil.copy(DATA / "tiny_int8.onnx", made / FLOAT.file)
    digest, size = file_sha256(made / FLOAT.file), (made / FLOAT.file).stat().st_size
    return edit(made, lambda m: [f.update(sha256=digest, size=size) for f in m["files"] if f["path"] == FLOAT.file])


def deploy(root: Path) -> None:
    """Replaces the bundle like an update: another folder gets its name."""
    new = other(root)
    root.rename(root.parent / "old")
    new.rename(root)


def outputs_match_the_float_graph(bundle: Bundle) -> bool:
    before, after = images(1, TILE, TILE)
    with open_detector(bundle, FLOAT.name) as (detector, _, _):
        return bool(np.allclose(detector.probability(before, after), expected(before, after), atol=1e-6))


def test_engine_is_opened_from_the_checked_folder(root: Path) -> None:
    """The outputs of the two graphs differ, which shows which one was opened."""
    bundle = read_bundle(root)
    digest = file_sha256(root / MANIFEST)
    deploy(root)
    assert not outputs_match_the_float_graph(read_bundle(root)), "the new bundle has other outputs"
    assert outputs_match_the_float_graph(bundle)
    assert bundle.digest() == digest


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_engine_file_overwritten_after_the_check_is_refused(root: Path, kind: str) -> None:
    pytest.importorskip(kind)
    bundle = read_bundle(edit(root, lambda m: m["engines"][0].update(kind=kind)))
    (root / FLOAT.file).write_bytes((DATA / "tiny_int8.onnx").read_bytes())
    with pytest.raises(InputError, match=r"'graphs/float\.onnx' has changed"), open_detector(bundle, FLOAT.name):
        pass


def test_file_replaced_by_a_link_or_pipe_after_the_check_is_refused(root: Path) -> None:
    bundle = read_bundle(root)
    (root / FLOAT.file).rename(root.parent / "elsewhere.onnx")
    (root / FLOAT.file).symlink_to(root.parent / "elsewhere.onnx")
    with (
        pytest.raises(InputError, match="is missing, a link, or not a regular file"),
        open_detector(bundle, FLOAT.name),
    ):
        pass
    (root / FLOAT.file).unlink()
    os.mkfifo(root / FLOAT.file)
    with (
        pytest.raises(InputError, match="is missing, a link, or not a regular file"),
        open_detector(bundle, FLOAT.name),
    ):
        pass


def test_file_that_grew_after_the_check_is_refused(root: Path) -> None:
    bundle = read_bundle(root)
    os.truncate(root / FLOAT.file, 1 << 42)
    with pytest.raises(InputError, match="has changed"), open_detector(bundle, FLOAT.name):
        pass


def test_digest_belongs_to_the_decoded_manifest(root: Path) -> None:
    bundle = read_bundle(root)
    digest = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    edit(root, lambda m: m.update(threshold=0.9))
    assert bundle.digest() == digest and bundle.manifest.threshold == 0.5


def test_golden_tiles_changed_after_the_check_are_refused(root: Path) -> None:
    checks = verify_bundle(root)
    next(checks)
    make_bundle(root.parent / "flipped", flip=True)
    shutil.copy(root.parent / "flipped/golden/tiles.npz", root / "golden/tiles.npz")
    with pytest.raises(InputError, match=r"golden/tiles\.npz' has changed"):
        list(checks)


def test_measuring_processes_refuse_a_bundle_changed_after_the_check(root: Path) -> None:
    bundle = read_bundle(root)
    tasks = tasks_of(bundle, make_matrix(bundle, QUICK), QUICK, 1, 1)
    assert measure(tasks, 0.02, rounds=1)
    deploy(root)
    with pytest.raises(InputError, match="has changed since the bundle was checked"):
        measure(tasks, 0.02, rounds=1)


def test_bench_of_a_scene_refuses_a_bundle_changed_after_the_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from misgnet_runtime.measure.bench import run as run_module
    from support.scenes import scene, write_raster

    pair = [write_raster(root.parent / f"{i}.tif", pixels) for i, pixels in enumerate(scene(80, 100))]
    real = run_module.fastest

    def deploying(*words: Any) -> Any:
        deploy(root)
        return real(*words)

    monkeypatch.setattr(run_module, "fastest", deploying)
    options = replace(QUICK, scene=(pair[0], pair[1]))
    with pytest.raises(InputError, match="has changed since the bundle was checked"):
        run_bench(root, options)


@pytest.mark.parametrize(
    ("kind", "tag"),
    [("onnxruntime", "3a"), ("onnxruntime", "ba80808010"), ("onnxruntime", "ba80808000"), ("openvino", "3a")],
)
def test_weights_in_another_file_are_refused(
    root: Path, kind: str, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph in memory has no folder: its engine would read external weights from the working directory.

    ``tag`` is the protobuf tag of the graph in its model; protobuf's readers ignore bits beyond 32.
    """
    pytest.importorskip(kind)
    onnx = pytest.importorskip("onnx")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    model = onnx.load(root / FLOAT.file)
    weights = onnx.numpy_helper.from_array(np.arange(256, dtype=np.float32), "weights")
    (tmp_path / "cwd/weights.bin").write_bytes(weights.raw_data)
    onnx.external_data_helper.set_external_data(weights, "weights.bin")
    weights.ClearField("raw_data")
    model.graph.initializer.append(weights)
    graph = onnx.GraphProto.FromString(model.graph.SerializeToString())
    model.ClearField("graph")
    length = len(graph.SerializeToString())
    assert 1 << 7 <= length < 1 << 14
    head = bytes.fromhex(tag) + bytes((length & 127 | 128, length >> 7))
    (root / FLOAT.file).write_bytes(model.SerializeToString() + head + graph.SerializeToString())
    digest, size = file_sha256(root / FLOAT.file), (root / FLOAT.file).stat().st_size

    def change(m: dict[str, Any]) -> None:
        m["engines"][0].update(kind=kind)
        [f.update(sha256=digest, size=size) for f in m["files"] if f["path"] == FLOAT.file]

    with pytest.raises(InputError, match="keeps weights in another file"):
        open_detector(read_bundle(edit(root, change)), FLOAT.name).__enter__()


def test_engine_opens_after_the_folder_was_renamed(root: Path) -> None:
    bundle = read_bundle(root)
    root.rename(root.parent / "elsewhere")
    with open_detector(bundle, INT8.name) as (detector, _, _):
        assert detector.engine.device == "CPU"

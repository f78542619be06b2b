"""Tests that digests identify the bytes that were used: files replaced during a run, and images encoded again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

torch = pytest.importorskip("torch", reason="the build needs the [export] extra")

from misgnet import cli as misgnet_cli
from misgnet.checkpoint import load_network, save_checkpoint
from misgnet.synthetic import write_split
from misgnet_export.cli import main as cli
from misgnet_export.pipeline.loading import load_sets
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import BuildRequest, with_interface
from misgnet_export.pipeline.result import ChosenOverlap, Draft, Evidence, GraphFile, Sets
from misgnet_export.pipeline.write_bundle import write_bundle
from misgnet_export.sources import open_source
from misgnet_export.sources.float_model import Source
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.parity import evaluate_tiles, report
from misgnet_runtime.bundle.targets import Target
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet, read_tile
from misgnet_runtime.raster.leakage import check_disjoint
from support.commands import exit_code
from support.paths import DEMO_WEIGHTS as WEIGHTS

SETS = ("train", "val", "test")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def other_image(path: Path, seed: int = 9) -> None:
    """Replaces an image by another one with a rename, as a download does."""
    size = Image.open(path).size
    image = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(image).save(path.with_name("new.part"), "PNG")
    path.with_name("new.part").replace(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(SETS):
        write_split(tmp_path / name, 2, 40 + seed, 128)
    return tmp_path


def build(data: Path, weights: Path, *more: object) -> int:
    """Runs the shortest possible build: few tiles of 32 px, no search."""
    sets = ["--calib", data / "train", "--val", data / "val", "--eval", data / "test"]
    words = ["--tile", 32, "--max-batch", 2, "--calib-tiles", 16, "--observer", "max"]
    words += ["--repair", "never", "--control-minutes", 0, "--target", "cpu"]
    return exit_code(cli.main, "misgnet-export", "build", weights, *sets, "-o", data / "out", *words, *more)


def load(data: Path, weights: Path) -> tuple[BuildRequest, Source, Sets]:
    """Runs the first stages of a build."""
    request = BuildRequest(
        source=str(weights), calib=data / "train", val=data / "val", evaluation=data / "test", output=data / "out",
        requested=(Target("cpu"),), tile=32, max_batch=2, calib_tiles=16,
    )  # fmt: skip
    source = open_source(request.source, request.model)
    model = source.float_model(with_interface(request, source)[1])
    return request, source, load_sets(request, model, StageLog(Console(quiet=True)))


def finish(request: BuildRequest, source: Source, sets: Sets, folder: Path) -> None:
    """Runs the last stage of a build directly."""
    reference = evaluate_tiles(
        "float", lambda before, after: np.zeros(before.shape[:3], np.float32), sets.evaluation, 0.5
    )
    parity = report("float", reference, sets.evaluation, [], threshold=0.5, limit=F1Limit(max_f1_drop=1.0))
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "float.onnx").touch()
    graph = GraphFile(name="float", file="graphs/float.onnx", precision="float32", size=0)
    evidence, overlap = Evidence(parity, {}), ChosenOverlap(8, "an eighth of a tile: no --val was given")
    interface = with_interface(request, source)[1]
    draft = Draft(
        source=source, interface=interface, sets=sets, graphs=[graph], engines=[], evidence=evidence,
        overlap=overlap,
    )  # fmt: skip
    write_bundle(folder, request, draft, [])


def manifest(data: Path) -> dict[str, Any]:
    return dict(json.loads((data / "out" / "manifest.json").read_bytes()))


# --- weights


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_bundle_records_the_digest_of_the_loaded_weights(data: Path, form: str) -> None:
    weights, network = data / "weights", load_network(WEIGHTS)
    if form == "safetensors":
        shutil.copy(WEIGHTS, weights)
    else:
        torch.save(network.state_dict(), weights)
    loaded = sha256(weights)
    request, source, sets = load(data, weights)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    save_checkpoint(network, weights)
    assert sha256(weights) != loaded
    finish(request, source, sets, data / "out")
    assert manifest(data)["source_weights_sha256"] == loaded
    assert loaded[:16] in (data / "out" / "evidence" / "report.html").read_text(encoding="utf-8")


def test_weights_are_not_read_again(data: Path) -> None:
    weights = Path(shutil.copy(WEIGHTS, data / "weights.safetensors"))
    request, source, sets = load(data, weights)
    weights.unlink()
    finish(request, source, sets, data / "out")
    assert manifest(data)["source_weights_sha256"] == sha256(WEIGHTS)


def test_report_states_the_tile_that_the_network_determines(data: Path) -> None:
    request, source, sets = load(data, Path(WEIGHTS))
    finish(replace(request, tile=None), replace(source, fixed_tile=32), sets, data / "out")
    page = (data / "out" / "evidence" / "report.html").read_text(encoding="utf-8")
    assert "32 x 32 px, the only size that the network accepts, batch 1 to 2" in page
    assert manifest(data)["tile_from"] == "the only size that the network accepts"


# --- tiles


@pytest.mark.parametrize("part", ["A", "B", "label"])
def test_digest_of_tiles_covers_the_decoded_bytes(tmp_path: Path, part: str) -> None:
    write_split(tmp_path, 2, 1, 64)
    kept = TileSet.open(tmp_path, 64)
    read = [read_tile(ref) for ref in kept]
    expected = TileSet.open(tmp_path, 64).digest()
    path = next(iter((tmp_path / part).iterdir()))
    other = Image.fromarray(255 - np.asarray(Image.open(path)))
    other.save(path)
    assert kept.digest() == expected != TileSet.open(tmp_path, 64).digest()
    with pytest.raises(InputError, match="changed while"):
        for ref in kept:
            assert (read_tile(ref).before == read.pop(0).before).all()


def test_tiles_whose_size_changed_are_rejected(tmp_path: Path) -> None:
    write_split(tmp_path, 1, 1, 64)
    tiles = TileSet.open(tmp_path, 32)
    for part in ("A", "B", "label"):
        (path,) = (tmp_path / part).iterdir()
        Image.open(path).resize((96, 96), Image.Resampling.NEAREST).save(path)
    with pytest.raises(InputError, match="changed while"):
        read_tile(tiles[3])


@pytest.mark.parametrize("part", ["A", "B", "label"])
def test_tiles_that_change_before_evaluation_fail_the_build(data: Path, part: str) -> None:
    request, source, sets = load(data, WEIGHTS)
    for path in (data / "test" / part).iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match="changed while they were in use"):
        finish(request, source, sets, data / "out")


def test_digest_of_calibration_tiles_covers_the_selected_tiles(data: Path) -> None:
    request, source, sets = load(data, WEIGHTS)
    names = [ref.name for ref in sets.calib]
    same = TileSet.open(data / "train", 32)
    before = same.subset([i for i, ref in enumerate(same) if ref.name in names]).digest()
    for path in (data / "train" / "label").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    finish(request, source, sets, data / "out")
    assert manifest(data)["calibration"]["tiles_sha256"] == before


# --- sets that share images


def again(source: Path, target: Path, suffix: str = ".png", **options: object) -> None:
    """Writes the same pixels to another file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).save(target.with_suffix(suffix), **options)
    assert target.with_suffix(suffix).read_bytes() != source.read_bytes()


def pair_again(
    folder: Path, to: Path, name: str, suffix: str, options: dict[str, object], *, parts: str = "AB"
) -> None:
    """Encodes the first pair of ``folder`` again in ``to``: only ``parts`` of it; the others become other images."""
    for part in ("A", "B", "label"):
        source = min((folder / part).iterdir())
        again(source, to / part / f"{name}.png", suffix if part != "label" else ".png", compress_level=1, **options)
        if part != "label" and part not in parts:
            other_image(to / part / f"{name}.png")


ENCODINGS = pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", {"optimize": True}), (".tif", {}), (".tiff", {"compression": "tiff_lzw"})], ids=["png", "tiff", "lzw"],
)  # fmt: skip


@ENCODINGS
def test_images_with_equal_pixels_are_shared(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    write_split(tmp_path / "one", 2, 1, 64)
    write_split(tmp_path / "two", 2, 2, 64)
    check_disjoint(TileSet.open(tmp_path / "one"), TileSet.open(tmp_path / "two"), ("calibration", "evaluation"))
    pair_again(tmp_path / "one", tmp_path / "two", "again", suffix, options)
    with pytest.raises(InputError, match=r"again.* of the evaluation set is also in the calibration set") as caught:
        check_disjoint(TileSet.open(tmp_path / "one"), TileSet.open(tmp_path / "two"), ("calibration", "evaluation"))
    assert str(min((tmp_path / "one" / "A").iterdir())) in str(caught.value)


@pytest.mark.parametrize("part", ["A", "B"])
def test_one_date_with_equal_pixels_is_shared(tmp_path: Path, part: str) -> None:
    write_split(tmp_path / "one", 1, 1, 64)
    pair_again(tmp_path / "one", tmp_path / "two", "again", ".png", {}, parts=part)
    with pytest.raises(InputError, match=rf"two/{part}/again\.png of the test set"):
        check_disjoint(TileSet.open(tmp_path / "one"), TileSet.open(tmp_path / "two"), ("calibration", "test"))


def test_pair_with_swapped_dates_is_shared(tmp_path: Path) -> None:
    write_split(tmp_path / "one", 1, 1, 64)
    pair_again(tmp_path / "one", tmp_path / "two", "again", ".png", {})
    (tmp_path / "two" / "A").rename(tmp_path / "two" / "x")
    (tmp_path / "two" / "B").rename(tmp_path / "two" / "A")
    (tmp_path / "two" / "x").rename(tmp_path / "two" / "B")
    with pytest.raises(InputError, match="also in the calibration set"):
        check_disjoint(TileSet.open(tmp_path / "one"), TileSet.open(tmp_path / "two"), ("calibration", "test"))


def test_blank_date_is_not_shared(tmp_path: Path) -> None:
    """A black image, as in nodata areas, has no content that a second image could reveal."""
    for seed, name in enumerate(("one", "two")):
        write_split(tmp_path / name, 1, seed, 64)
        (path,) = (tmp_path / name / "A").iterdir()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    check_disjoint(TileSet.open(tmp_path / "one"), TileSet.open(tmp_path / "two"), ("calibration", "test"))


@pytest.mark.parametrize("shared", [("train", "test"), ("train", "val"), ("val", "test")])
def test_build_rejects_sets_that_share_an_image_encoded_again(
    data: Path, shared: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pair_again(data / shared[0], data / shared[1], "again", ".tif", {})
    assert build(data, WEIGHTS) == 4
    roles = {"train": "calibration", "val": "validation", "test": "evaluation"}
    message = " ".join(capsys.readouterr().err.split())
    assert f"of the {roles[shared[1]]} set is also in the {roles[shared[0]]} set" in message


# --- tiles of a data set


@pytest.fixture
def levir(tmp_path: Path) -> Path:
    for seed, split in enumerate(SETS):
        write_split(tmp_path / "levir" / split, 1, seed, 64)
    return tmp_path / "levir"


def prepare(source: Path, output: Path) -> int:
    return exit_code(misgnet_cli.main, "misgnet", "prepare", "levir", source, "-o", output, "--tile", 64)


@pytest.mark.parametrize("part", ["A", "B", "label"])
def test_source_that_changes_during_preparation_is_not_recorded(
    levir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    from misgnet.datasets.layouts import PairUnit

    (path,) = (levir / "train" / part).iterdir()
    read = PairUnit.read

    def exchange_and_read(unit: PairUnit) -> object:
        if path in unit.sources:
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        return read(unit)

    monkeypatch.setattr(PairUnit, "read", exchange_and_read)
    assert prepare(levir, tmp_path / "out") == 4
    assert "changed while it was read" in " ".join(capsys.readouterr().err.split())
    record = (tmp_path / "out" / "prepare.jsonl").read_text().splitlines()
    assert not any(json.loads(line).get("unit") == f"train/{path.stem}" for line in record)


# --- how changes are detected


def test_snapshot_detects_a_change_that_keeps_the_file_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes can fall within one tick of the file system's clock."""
    from misgnet_runtime.storage import snapshot

    path = tmp_path / "file"
    path.write_text("first")
    now = time.time_ns()
    monkeypatch.setattr(snapshot, "_state", lambda _: snapshot.FileStamp(0, 0, 5, now, now))
    found = snapshot.Snapshot([path])
    assert found.sha256(path) == sha256(path)
    found.check()
    path.write_text("other")
    with pytest.raises(InputError, match="changed while it was read"):
        found.check()

"""Tests of the benchmark of networks of other packages: its declarations, rows and tables, without its environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

pytest.importorskip("onnx", reason="the benchmarks need the [export] extra")
pytest.importorskip("rasterio", reason="tiles of 13 bands need the [geo] extra")

from benchmarks.contest.environments import REQUIREMENTS, pins
from benchmarks.contest.guest import ContenderFailed
from benchmarks.networks import rows, tiles
from benchmarks.networks import run as benchmark
from benchmarks.networks.networks import FACTORIES, NETWORKS, WAYS, Network
from benchmarks.networks.report import Comparison, Report, Row, doubts, table
from misgnet.synthetic import write_split
from misgnet_export.pipeline.request import BuildRequest
from misgnet_runtime.bundle import FileEntry, read_bundle
from misgnet_runtime.options import stated
from misgnet_runtime.pixels import PixelFormat
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.files import file_sha256
from support import bundles

FLOAT = Comparison("float32", 0.5, 0.1, 1.0, 1e-7, 1e-6)
INT8 = Comparison("int8", 0.499, 0.1, 0.998, 1e-3, 0.1)
ROW = Row(
    key="unet", title="U-Net", way="onnx", package="smp", version="0.6.0", licence="MIT", io="stacked",
    output="logits2", bands=3, exported="ONNX: dynamo, opset 20, any batch", parameters=4_800_000, f1=0.5, changed=0.1,
    nodes=123, macs=2_500_000_000, int8_share={"cpu": 0.951}, engines={"cpu-float32": FLOAT, "cpu": INT8},
    pairs_per_second={"cpu-float32": 10.0, "cpu": 20.0}, rtx="yes: int8", seconds=99.6,
)  # fmt: skip
MACHINE = {"processor": "a CPU", "cores": 2, "memory_gib": 8.0, "features": []}
SETTINGS = {"side": 128, "calibration": 32, "train": 256, "val": 48, "test": 96}


def report(*rows: Row) -> Report:
    return Report(MACHINE, SETTINGS, {"torch": "2.14.1"}, [*rows])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_row_of_the_table_has_a_cell_for_each_column() -> None:
    lines = table(report(ROW)).splitlines()
    assert len({len(cells(line)) for line in lines[:3]}) == 1
    assert cells(lines[2]) == [
        "U-Net", "smp 0.6.0, MIT", "ONNX: dynamo, opset 20, any batch", "stacked, 3 bands; logits2", "123", "4.8",
        "2.50", "95.1", "0.500", "1e-06", "0.9980", "99.80", "1.0e-03", "yes: int8", "100",
    ]  # fmt: skip
    assert cells(lines[6]) == ["U-Net", "ONNX: dynamo, opset 20, any batch", "10.0", "20.0", "", ""]


def test_row_that_failed_says_why_and_has_as_many_cells() -> None:
    failed = structs.replace(ROW, failed="exit code 4: no |\nsuch operator")
    lines = table(report(failed)).splitlines()
    assert cells(lines[2])[4] == "failed: exit code 4: no / such operator"
    assert len(cells(lines[2])) == len(cells(lines[0]))
    assert "10.0" not in table(report(failed)), "it has no speeds"


def test_random_weights_have_neither_f1_nor_a_ratio() -> None:
    (line,) = (line for line in table(report(structs.replace(ROW, trained=False))).splitlines() if "123" in line)
    assert cells(line)[8:12] == ["random weights", "1e-06", "n/a", "99.80"]


def test_notes_are_listed_once_with_their_network() -> None:
    noted = structs.replace(ROW, notes=["batch 1 only", "batch 1 only"])
    assert table(report(noted)).count("- U-Net, ONNX: dynamo, opset 20, any batch: batch 1 only") == 1


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"engines": {"cpu-float32": structs.replace(FLOAT, largest_difference=0.2)}}, "differs from PyTorch by up to"),
        ({"engines": {"cpu-float32": structs.replace(FLOAT, largest_difference=float("nan"))}}, "differs from PyTorch"),
        ({"engines": {"cpu": INT8}}, "no float32 engine"),
        ({"f1": 0.0}, "finds nothing"),
        ({"trained": False, "changed": 0.99}, "99.0 % of the mask changed"),
    ],
)
def test_figures_that_cannot_be_right_are_marked(changes: dict[str, Any], doubt: str) -> None:
    found = structs.replace(ROW, **changes)
    assert [one for one in doubts(found) if doubt in one]
    assert "**wrong: " in table(report(structs.replace(found, wrong=doubts(found))))
    assert doubts(ROW) == []


def test_row_is_read_from_manifest_and_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "costs_of", lambda _: {"conv": 2, "linear": 3})  # this graph's nodes have no names
    bundle = bundles.make_bundle(tmp_path / "bundle")
    timing = {"batch": 1, "streams": 1}
    timings = [
        {**timing, "engine": "cpu", "pairs_per_second": 30.0}, {**timing, "engine": "float", "pairs_per_second": 10.0},
        {**timing, "engine": "cpu", "pairs_per_second": 50.0, "batch": 4},
    ]  # fmt: skip
    left_out = {"engine": "openvino", "precision": "int8", "verdict": {"reason": "F1 ratio 0.9"}}
    for name, values in {"throughput": {"timings": timings}, "parity": {"left_out": [left_out]}}.items():
        path = bundle / "evidence" / f"{name}.json"
        path.write_text(json.dumps(values))
        entry = FileEntry(f"evidence/{name}.json", file_sha256(path), path.stat().st_size, "evidence")
        bundles.edit(bundle, lambda manifest, entry=entry: manifest["files"].append(structs.asdict(entry)))
    figures = {"f1": 0.5, "changed": 0.1, "agreement": 1.0, "mean_difference": 0.0, "largest_difference": 0.0}
    names = [engine.name for engine in (bundles.FLOAT, bundles.INT8)]
    compared = {"network": {"f1": 0.5, "changed": 0.1}, "engines": dict.fromkeys(names, figures)}
    row = rows.completed(structs.replace(ROW, engines={}), bundle, compared, "no such device")
    assert {name: one.precision for name, one in row.engines.items()} == {
        bundles.FLOAT.name: bundles.FLOAT.precision, bundles.INT8.name: bundles.INT8.precision,
    }  # fmt: skip
    assert row.pairs_per_second == {"cpu": 30.0, "float": 10.0}
    assert row.rtx == "no: no such device" and row.notes == ["openvino in int8 was left out: F1 ratio 0.9"]
    assert row.nodes > 0 and row.macs == 5 and row.f1 == 0.5 and row.wrong == []


def test_graph_that_accuracy_control_emptied_has_a_note(tmp_path: Path) -> None:
    bundle = bundles.make_bundle(tmp_path / "bundle")
    assert rows._emptied(read_bundle(bundle).manifest) == []
    bundles.edit(bundle, lambda manifest: manifest["quantization"][0].update(quantized_nodes=0))
    (note,) = rows._emptied(read_bundle(bundle).manifest)
    assert "nothing is left in INT8 in the graph for cpu" in note


def test_every_declaration_consists_of_options_of_the_build() -> None:
    flags = {one.flag for one in stated(BuildRequest).values()}
    for network in NETWORKS:
        for way in WAYS:
            words = network.declaration(way)
            assert {word for word in words if word.startswith("--")} <= flags, network.key


def test_every_factory_exists_and_every_package_is_pinned() -> None:
    code = FACTORIES.read_text(encoding="utf-8")
    for network in NETWORKS:
        assert all(f"def {network.factory_of(way)}()" in code for way in WAYS), network.key
        assert network.package in pins(REQUIREMENTS / "networks.txt")


def test_all_forms_are_covered() -> None:
    assert {network.io_of(way) for network in NETWORKS for way in WAYS} == {"pair", "stacked", "time"}
    kinds = {network.output for network in NETWORKS}
    assert kinds == {"logits2", "logit1", "probability1", "probability2", "classes:3"}
    assert any(network.bands == tiles.BANDS for network in NETWORKS)
    assert {network.onnx.exporter for network in NETWORKS} == {"dynamo", "torchscript"}


def test_tiles_of_both_kinds_have_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "COUNTS", {"train": 3})
    write_split(tmp_path / "data" / "train", 2, 0, 128)
    tiles.cut(tmp_path / "data", tmp_path / "tiles")
    rgb = TileSet.open(tmp_path / "tiles" / "rgb" / "train", 128)
    network = next(network for network in NETWORKS if network.bands == tiles.BANDS)
    bands = TileSet.open(tmp_path / "tiles" / "bands" / "train", 128, PixelFormat(network.bands, "uint16"))
    assert len(rgb) == len(bands) == 2
    for few, many in zip(rgb.tiles(), bands.tiles(), strict=True):
        assert np.array_equal(few.label, many.label)
        assert np.array_equal(tiles.bands_of(few.before), many.before)


def test_build_without_plans_follows_one_whose_plans_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS[0]
    place = benchmark.Place(
        options=benchmark.Options(data=tmp_path, cache=tmp_path), work=tmp_path, python=Path("python"), tiles="t",
        sources="s",
    )  # fmt: skip
    built: list[list[str]] = []

    def build(_: object, words: list[str], bundle: Path, log: Path) -> None:
        built.append(words)
        log.write_text("warning: a batch of 1\n")
        if benchmark.RTX in words:
            raise ContenderFailed("exit code 5: no kernel")
        bundles.make_bundle(bundle)

    def guest(_: object, __: Network, script: str, asked: dict[str, Any]) -> dict[str, Any]:
        assert script == "compare" and asked["engines"]
        return {"network": {"f1": 0.5, "changed": 0.1}, "engines": {}}

    monkeypatch.setattr(benchmark, "_build", build)
    monkeypatch.setattr(benchmark, "_guest", guest)
    monkeypatch.setattr(benchmark.rows, "completed", lambda row, *rest: structs.replace(row, rtx=rest[-1]))
    row = benchmark._built(place, network, structs.replace(ROW, engines={}), ["net.onnx"], None)
    assert [benchmark.RTX in words for words in built] == [True, False]
    assert row.rtx == "exit code 5: no kernel" and row.notes == ["a batch of 1"]


def test_row_of_an_earlier_run_is_used_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def new_row(place: benchmark.Place, network: Network, way: str) -> Row:
        made.append(place.sources)
        return ROW

    monkeypatch.setattr(benchmark, "_row", new_row)
    for sources in ("first", "first", "second"):
        place = benchmark.Place(
            options=benchmark.Options(data=tmp_path, cache=tmp_path), work=tmp_path, python=Path("python"), tiles="t",
            sources=sources,
        )  # fmt: skip
        assert benchmark._kept_row(place, NETWORKS[0], "onnx") == ROW
    assert made == ["first", "second"]

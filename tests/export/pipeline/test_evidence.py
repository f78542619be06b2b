"""Tests the evaluation of engines: engines that run, engines that need a proxy, and outputs that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("onnx", reason="the reports come with the [export] extra")
rasterio = pytest.importorskip("rasterio", reason="tiles of other bands need rasterio")
from rasterio.transform import from_origin

from misgnet_export.pipeline import evaluate as evidence
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import AccuracyPolicy
from misgnet_export.report import parity_table
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.parity import ParityReport
from misgnet_runtime.bundle.manifest import EngineEntry, Interface, Normalization
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.raster.dataset import TileSet

TILE = 32
INTERFACE = Interface(TILE, 4)
POLICY = AccuracyPolicy(threshold=0.5, limit=F1Limit(max_f1_drop=0.5))
CPU = EngineEntry("cpu", "onnxruntime", "int8.onnx", "int8.onnx", "int8", "1")
INT8_BF16 = EngineEntry("openvino-int8-bf16", "openvino", "int8.onnx", "int8.onnx", "int8+bf16", "1")
BF16 = EngineEntry("openvino-bf16", "openvino", "float.onnx", "float.onnx", "bf16", "1", needs=["avx512_bf16"])
CUDA = EngineEntry("cuda", "onnxruntime-cuda", "float.onnx", "float.onnx", "float32", "1")
PLAN = EngineEntry("rtx-sm86", "rtx", "sm86.plan", "int8.onnx", "int8+float16", "1", ["sm86"])


class Constant(Engine):
    """An engine that outputs ``value`` everywhere."""

    device = "CPU"
    max_batch = 4

    def __init__(self, value: float, interface: Interface = INTERFACE) -> None:
        super().__init__()
        self.value = value
        self.inputs = tuple(TensorSpec(one.name, one.dtype, tuple(one.shape)) for one in interface.inputs())
        self.outputs = (TensorSpec("probability", "float32", (-1, TILE, TILE)),)

    def _infer(self, context: Any, arrays: Arrays, batch: int) -> Arrays:
        return {"probability": np.full((batch, TILE, TILE), self.value, np.float32)}

    def _release(self) -> None: ...


@pytest.fixture
def tiles(tmp_path: Path) -> TileSet:
    for name, value, mode in (("A", 0, "RGB"), ("B", 200, "RGB"), ("label", 255, "L")):
        (tmp_path / name).mkdir()
        Image.new(mode, (TILE, TILE), (value,) * 3 if mode == "RGB" else value).save(tmp_path / name / "x.png")
    return TileSet.open(tmp_path, TILE)


def evaluate(monkeypatch: pytest.MonkeyPatch, tiles: TileSet, entry: EngineEntry, value: float) -> ParityReport:
    def open_it(requested: EngineEntry, root: Path, max_batch: int, execution: ExecutionOptions) -> Engine:
        if requested.kind != "onnxruntime":
            raise UnavailableError("no such device here")
        return Constant(value)

    monkeypatch.setattr(evidence, "open_engine_file", open_it)
    log = StageLog(Console(quiet=True))
    reference = evidence.evaluate_reference(
        "float", lambda before, after: np.ones(before.shape[:3], np.float32), tiles, POLICY, log
    )
    return evidence.evaluate_engines(
        [entry], tiles, reference, files=Path(), interface=INTERFACE, policy=POLICY, log=log
    )[0]


def test_engine_that_agrees_passes(monkeypatch: pytest.MonkeyPatch, tiles: TileSet) -> None:
    report = evaluate(monkeypatch, tiles, CPU, 1.0)
    assert report.passed and report.engines[0].status == "run"


def test_engine_that_finds_nothing_fails(monkeypatch: pytest.MonkeyPatch, tiles: TileSet) -> None:
    report = evaluate(monkeypatch, tiles, CPU, 0.0)
    assert not report.passed and report.engines[0].f1_drop_points == 100


@pytest.mark.parametrize("entry", [PLAN, CUDA, INT8_BF16], ids=lambda entry: entry.name)
def test_engine_without_its_device_is_evaluated_by_proxy(
    monkeypatch: pytest.MonkeyPatch, tiles: TileSet, entry: EngineEntry
) -> None:
    engine = evaluate(monkeypatch, tiles, entry, 1.0).engines[0]
    assert engine.status == "proxy" and engine.reason == "does not run here: no such device here"


def test_bf16_engine_has_no_proxy(monkeypatch: pytest.MonkeyPatch, tiles: TileSet) -> None:
    report = evaluate(monkeypatch, tiles, BF16, 1.0)
    engine = report.engines[0]
    assert (engine.status, engine.verdict, engine.reason) == ("not run", None, "no such device here")
    assert not report.passed, "nothing was evaluated"
    Console(quiet=True).print(parity_table(report))


def test_nan_fails_the_gate_and_is_shown_in_the_table(monkeypatch: pytest.MonkeyPatch, tiles: TileSet) -> None:
    report = evaluate(monkeypatch, tiles, CPU, float("nan"))
    verdict = report.engines[0].verdict
    assert not report.passed and verdict is not None and "x@0,0" in verdict.reason
    Console(quiet=True).print(parity_table(report))


def test_pictures_of_other_bands_and_samples_are_8_bit_rgb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = Normalization(1 / 65535, (0.5,) * 5, (0.5,) * 5)
    interface = Interface(TILE, 4, input="float32", bands=5, samples="uint16", normalization=numbers)
    for name in ("A", "B", "label"):
        (tmp_path / name).mkdir()
    for name in ("A", "B"):
        values = np.random.default_rng(0).integers(0, 4000, (5, TILE, TILE), np.uint16)
        profile = {"driver": "GTiff", "width": TILE, "height": TILE, "count": 5, "dtype": "uint16"}
        with rasterio.open(tmp_path / name / "x.tif", "w", **profile, transform=from_origin(10, 20, 1, 1)) as file:
            file.write(values)
    Image.new("L", (TILE, TILE), 255).save(tmp_path / "label" / "x.tif")
    tiles = TileSet.open(tmp_path, TILE, interface.pixels)
    monkeypatch.setattr(evidence, "open_engine_file", lambda *_: Constant(0.0, interface))
    log = StageLog(Console(quiet=True))
    reference = evidence.evaluate_reference(
        "float", lambda before, _: np.ones(before.shape[:3], np.float32), tiles, POLICY, log
    )
    _, pictures = evidence.evaluate_engines(
        [CPU], tiles, reference, files=Path(), interface=interface, policy=POLICY, log=log
    )
    (picture,) = pictures["cpu"]
    for image in (picture.before, picture.after):
        assert (image.dtype, image.shape) == (np.uint8, (TILE, TILE, 3))

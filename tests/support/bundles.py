"""Writes valid bundles in milliseconds: tiny graphs that output the mean absolute difference of the dates / 255."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from misgnet_runtime.bundle import MANIFEST
from misgnet_runtime.bundle.golden import GoldenTiles, write_golden
from misgnet_runtime.bundle.manifest import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SCHEMA_VERSION,
    EngineEntry,
    EngineKind,
    Interface,
    Manifest,
    Normalization,
    SplitEntry,
    TensorEntry,
)
from misgnet_runtime.bundle.quantization import Calibration, Quantization
from misgnet_runtime.bundle.reader import describe_files
from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.selection import DetectorOpener, Opened
from misgnet_runtime.pixels import LARGEST, PixelFormat, Samples
from misgnet_runtime.storage.schema import encode
from support.paths import DATA

TILE = 64
INTERFACE = Interface(TILE, 4)
FLOAT = EngineEntry("cpu-float32", "onnxruntime", "graphs/float.onnx", "graphs/float.onnx", "float32", "any")
INT8 = EngineEntry("cpu", "onnxruntime", "graphs/int8.onnx", "graphs/int8.onnx", "int8", "any")
RTX = EngineEntry(
    "rtx-sm86", "rtx", "engines/rtx.plan", "graphs/int8.onnx", "int8+float16", "0.0.1", ["sm86"], "linux-x86_64"
)
# The same engines in two parts; the encoder outputs one feature with red and green, and one with blue.
SPLIT_FLOAT, SPLIT_INT8 = (
    replace(engine, split=SplitEntry("graphs/encoder.onnx", head, "graphs/encoder.onnx", head))
    for engine, head in ((FLOAT, "graphs/float_head.onnx"), (INT8, "graphs/int8_head.onnx"))
)
FEATURES = [
    TensorEntry("feature1", "float32", [-1, 2, TILE, TILE], "NCHW"),
    TensorEntry("feature2", "float32", [-1, 1, TILE, TILE], "NCHW"),
]
Images = NDArray[np.unsignedinteger[Any]]
# Formats other than 8-bit RGB that data/ has graphs for.
_FORMATS: tuple[tuple[int, Samples], ...] = ((1, "uint8"), (4, "uint16"), (13, "uint16"))
FORMATS = tuple(PixelFormat(bands, kind, (round(0.4 * LARGEST[kind]),) * bands) for bands, kind in _FORMATS)


def images(*shape: int, seed: int = 0) -> tuple[Images, Images]:
    """Returns random images of two dates, each uint8 (..., 3)."""
    before, after = np.random.default_rng(seed).integers(0, 256, (2, *shape, 3), np.uint8)
    return before, after


def expected(before: Images, after: Images) -> NDArray[np.float32]:
    """Returns the output of the float graph, (...)."""
    return np.abs(before.astype(np.float32) - after).mean(-1) / np.float32(255)


def make_bundle(
    root: Path, *, interface: Interface = INTERFACE, engines: Sequence[EngineEntry] = (FLOAT, INT8), flip: bool = False
) -> Path:
    """Writes a bundle to ``root``; ``flip`` writes golden tiles that no engine reproduces."""
    for folder in ("graphs", "golden", "engines", "evidence"):
        (root / folder).mkdir(parents=True)
    shutil.copy(DATA / "tiny_float.onnx", root / "graphs/float.onnx")
    shutil.copy(DATA / "tiny_int8.onnx", root / "graphs/int8.onnx")
    if any(engine.split for engine in engines):
        for part in ("encoder", "float_head", "int8_head"):
            shutil.copy(DATA / f"tiny_{part}.onnx", root / f"graphs/{part}.onnx")
    (root / "engines/rtx.plan").write_bytes(b"no plan at all")
    (root / "evidence/report.html").write_text("<p>measured</p>")
    before, after = images(3, TILE, TILE)
    probability = expected(before, after)
    write_golden(root / "golden/tiles.npz", GoldenTiles(before, after, 1 - probability if flip else probability))
    (root / MANIFEST).write_bytes(encode(_manifest(root, interface, list(engines))))
    return root


def name_of(pixels: PixelFormat) -> str:
    """Returns the start of the names of a format's graphs in data/: ``bands4_uint16``."""
    return f"bands{pixels.bands}_{pixels.samples}"


def interface_of(pixels: PixelFormat) -> Interface:
    return Interface(
        TILE, 4, pixels.samples, bands=pixels.bands, samples=pixels.samples,
        normalization=Normalization(1 / pixels.largest, (0.4,) * pixels.bands, (0.2,) * pixels.bands),
    )  # fmt: skip


def images_of(pixels: PixelFormat, *shape: int, seed: int = 0) -> tuple[Images, Images]:
    """Returns random images of two dates, each (..., C); multiples of 256 if they have 16 bits."""
    step = (pixels.largest + 1) // 256
    before, after = np.random.default_rng(seed).integers(0, 256, (2, *shape, pixels.bands), pixels.samples) * step
    return before.astype(pixels.samples), after.astype(pixels.samples)


def expected_of(pixels: PixelFormat, before: Images, after: Images) -> NDArray[np.float32]:
    """Returns the output of a format's graph, (...)."""
    return np.abs(before.astype(np.float32) - after).mean(-1) / np.float32(pixels.largest + 1)


def bands_bundle(root: Path, pixels: PixelFormat, *, kind: EngineKind = "onnxruntime", **changes: Any) -> Path:
    """Writes a bundle of one split float engine that reads images of ``pixels``; ``changes`` of its manifest."""
    for folder in ("graphs", "golden"):
        (root / folder).mkdir(parents=True)
    parts = {"float": "graphs/float.onnx", "encoder": "graphs/encoder.onnx", "head": "graphs/float_head.onnx"}
    for part, path in parts.items():
        shutil.copy(DATA / f"{name_of(pixels)}_{part}.onnx", root / path)
    before, after = images_of(pixels, 3, TILE, TILE)
    write_golden(root / "golden/tiles.npz", GoldenTiles(before, after, expected_of(pixels, before, after)))
    split = SplitEntry(parts["encoder"], parts["head"], parts["encoder"], parts["head"])
    manifest = _manifest(root, interface_of(pixels), [replace(FLOAT, kind=kind, split=split)])
    feature = TensorEntry("feature", "float32", [-1, pixels.bands, TILE, TILE], "NCHW")
    (root / MANIFEST).write_bytes(
        encode(replace(manifest, features=[feature], threshold=0.33, quantization=[], **changes))
    )
    return root


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Changes the bundle's manifest as plain JSON values."""
    values = json.loads((root / MANIFEST).read_bytes())
    change(values)
    (root / MANIFEST).write_text(json.dumps(values))
    return root


def write_image(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


class FakeEngine(Engine):
    """Computes the tiny graph in NumPy, for any interface; ``batches`` collects the size of every call."""

    device = "a fake"

    def __init__(
        self, interface: Interface, *, nan: bool = False, streams: int = 1, batches: list[int] | None = None
    ) -> None:
        super().__init__((None,) * streams)
        self.interface = interface
        self.max_batch = interface.max_batch
        self.inputs = tuple(map(spec, interface.inputs()))
        self.outputs = tuple(map(spec, interface.outputs()))
        self.batches = [] if batches is None else batches
        self.nan = nan
        self.closed = False

    def _infer(self, context: Any, arrays: Arrays, batch: int) -> Arrays:
        self.batches.append(batch)
        before, after = (self._pixels(arrays[name]) for name in ("before", "after"))
        probability = np.abs(before - after).mean(-1) / np.float32(255)
        if self.nan:
            probability[0, 0, 0] = np.nan
        return {self.outputs[0].name: self._output(probability)}

    def _pixels(self, array: NDArray[Any]) -> NDArray[np.float32]:
        if self.interface.input == "uint8":
            return array.astype(np.float32)
        unit = array.transpose(0, 2, 3, 1) * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
        return np.rint(255 * unit).astype(np.float32)

    def _output(self, probability: NDArray[np.float32]) -> NDArray[Any]:
        if self.interface.output == "logits":
            odds = np.log(probability + 1e-9) - np.log(1 - probability + 1e-9)
            return np.stack([-odds / 2, odds / 2], 1).astype(np.float32)
        if self.interface.output == "mask":
            return (probability > 0.5).astype(np.uint8)
        return probability

    def _release(self) -> None:
        self.closed = True


def fake_detector(engine: Callable[[], FakeEngine]) -> DetectorOpener:
    """Returns an opener that ignores the bundle and uses the engine made by ``engine``."""

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[Opened]:
        found = engine()
        with ChangeDetector(found, found.interface) as detector:
            yield Opened(detector, FLOAT, "a fake")

    return opened


def spec(entry: TensorEntry) -> TensorSpec:
    return TensorSpec(entry.name, entry.dtype, tuple(entry.shape))


def _manifest(root: Path, interface: Interface, engines: list[EngineEntry]) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_version=1,
        created="2026-01-01T00:00:00+00:00",
        tile=interface.tile,
        overlap=interface.tile // 4,
        threshold=0.5,
        class_names=["unchanged", "changed"],
        interface=interface,
        inputs=interface.inputs(),
        outputs=interface.outputs(),
        preprocessing=interface.preprocessing(),
        source_weights_sha256="0" * 64,
        calibration=Calibration(8, "0" * 64, 0, "no tiles"),
        quantization=[Quantization("graphs/int8.onnx", "cpu", 1, 8, 1.0, "none")],
        engines=engines,
        files=describe_files(root, {path: role for path, role in _ROLES.items() if (root / path).exists()}),
        max_f1_drop=0.5,
        metrics={"engines": [{"engine": e.name, "scores": {"f1": 0.9}, "f1_drop_points": 0.1} for e in engines]},
        latency={},
        tool_versions={},
        machine={},
        licence="not stated",
        features=FEATURES if any(engine.split for engine in engines) else [],
    )


_ROLES: dict[str, tuple[str, str | None]] = {
    "graphs/float.onnx": ("float graph", "float32"),
    "graphs/int8.onnx": ("int8 graph for cpu", "int8"),
    "graphs/encoder.onnx": ("encoder graph for float", "float32"),
    "graphs/float_head.onnx": ("head graph for float", "float32"),
    "graphs/int8_head.onnx": ("head graph for cpu", "int8"),
    "engines/rtx.plan": ("engine", "int8+float16"),
    "evidence/report.html": ("evidence", None),
    "golden/tiles.npz": ("golden tiles", None),
}

"""``manifest.json``: what a bundle holds, how its numbers are made, and what was proven of it.

The structures are frozen, and unknown or missing fields are refused: a manifest that this version does not
understand is not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from misgnet_runtime.errors import InputError
from misgnet_runtime.normalisation import IMAGENET_MEAN, IMAGENET_STD

SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 16 << 20

InputForm = Literal["uint8", "float32"]
OutputForm = Literal["probability", "logits", "mask"]
EngineKind = Literal["onnxruntime", "rtx", "tensorrt"]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything that is kept as JSON."""


class TensorEntry(Struct):
    """A graph's input or output; -1 in ``shape`` is the batch."""

    name: str
    dtype: str
    shape: list[int]
    layout: str


class Interface(Struct):
    """How images become the graph's inputs, and its output becomes a probability of change.

    ``input`` "uint8": raw RGB (B, T, T, 3), normalised within the graph; "float32": normalised (B, 3, T, T).
    ``output`` "probability": float32 (B, T, T); "logits": float32 (B, 2, T, T); "mask": uint8 (B, T, T).
    """

    tile: int
    max_batch: int
    input: InputForm = "uint8"
    output: OutputForm = "probability"

    def inputs(self) -> list[TensorEntry]:
        if self.input == "uint8":
            return [TensorEntry(n, "uint8", [-1, self.tile, self.tile, 3], "NHWC") for n in ("before", "after")]
        return [TensorEntry(n, "float32", [-1, 3, self.tile, self.tile], "NCHW") for n in ("before", "after")]

    def outputs(self) -> list[TensorEntry]:
        if self.output == "logits":
            return [TensorEntry("logits", "float32", [-1, 2, self.tile, self.tile], "NCHW")]
        dtype = "uint8" if self.output == "mask" else "float32"
        return [TensorEntry(self.output, dtype, [-1, self.tile, self.tile], "NHW")]


class Preprocessing(Struct):
    """What a pixel goes through before the network sees it."""

    bands: list[str] = msgspec.field(default_factory=lambda: ["red", "green", "blue"])
    scale: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    nodata: str = "refused: transparent pixels are an error"
    where: Literal["in the graph", "in the runtime"] = "in the graph"


class FileEntry(Struct):
    path: str
    sha256: str
    size: int
    role: str
    precision: str | None = None


class EngineEntry(Struct):
    """One engine: the file it opens, the graph that it was made from, and where it can run."""

    name: str
    kind: EngineKind
    file: str
    graph: str
    precision: str
    vendor_version: str
    compute_capabilities: list[str] = []
    platform: str = "any"
    batches: tuple[int, int, int] = (1, 4, 16)


class Calibration(Struct):
    """How activations' ranges were found, and on which tiles."""

    tiles: int
    tiles_sha256: str
    seed: int
    observer: str
    percentile: float
    decided_on: str
    candidates: dict[str, float] = {}


class Quantization(Struct):
    """What became INT8 in one graph."""

    graph: str
    recipe: str
    quantized_nodes: int
    weight_bits: int
    int8_share_of_multiply_adds: float
    float32_nodes: list[str] = []


class Manifest(Struct):
    schema_version: int
    bundle_version: int
    created: str
    tile: int
    overlap: int
    threshold: float
    class_names: list[str]
    interface: Interface
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    preprocessing: Preprocessing
    source_weights_sha256: str
    calibration: Calibration
    quantization: list[Quantization]
    engines: list[EngineEntry]
    files: list[FileEntry]
    max_f1_drop: float
    metrics: dict[str, Any]
    latency: dict[str, Any]
    tool_versions: dict[str, str]
    machine: dict[str, Any]
    licence: str

    def file(self, role: str) -> FileEntry:
        """The one file with ``role``; InputError where the bundle has none."""
        for entry in self.files:
            if entry.role == role:
                return entry
        raise InputError(f"the bundle has no file with the role '{role}'; it has {sorted({f.role for f in self.files})}")


def encode(value: Any) -> bytes:
    """Readable JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode_manifest(path: Path) -> Manifest:
    """Read a manifest; InputError where it is missing, too large, of another schema or malformed."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise InputError(f"manifest {path} is larger than {MAX_MANIFEST_BYTES} bytes; that is no manifest")
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise InputError(f"manifest {path} has schema {version}, this version reads {SCHEMA_VERSION}; build the bundle again")
        return msgspec.json.decode(data, type=Manifest)
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is no bundle: it has no {path.name}") from error
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"manifest {path} cannot be read: {error}") from error


class _Version(msgspec.Struct):
    schema_version: int

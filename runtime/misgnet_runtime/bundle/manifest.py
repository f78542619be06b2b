"""``manifest.json``: what a bundle holds, how its numbers are made, and what was proven of it.

The structures are frozen, and unknown or missing fields are refused, as are numbers and combinations that make
no sense: a manifest that this version does not understand is not run. The limits hold when a manifest is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from misgnet_runtime.bundle.fields import EngineName, FilePath, Name, TensorName, Text
from misgnet_runtime.bundle.quantization import Calibration, Quantization
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import MANIFEST_BYTES, MANIFEST_VALUES
from misgnet_runtime.storage.files import is_not_regular_file
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Positive, Sha256, Struct

SCHEMA_VERSION = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

InputForm = Literal["uint8", "float32"]
OutputForm = Literal["probability", "logits", "mask"]
# What of the measured F1 drop must stay within the limit: the point estimate, or the upper end of its interval.
GateRule = Literal["point", "upper"]
EngineKind = Literal["onnxruntime", "onnxruntime-cuda", "openvino", "rtx", "tensorrt"]
_DATES = ("before", "after")


class TensorEntry(Struct, frozen=True):
    """A graph's input or output; -1 in ``shape`` is the batch."""

    name: TensorName
    dtype: Name
    shape: list[int]
    layout: Name


class Interface(Struct, frozen=True):
    """How images become the graph's inputs, and its output becomes a probability of change.

    ``tile``: T, in pixels; ``max_batch``: the largest B.
    ``input`` "uint8": raw RGB (B, T, T, 3), normalised within the graph; "float32": normalised (B, 3, T, T).
    ``output`` "probability": float32 (B, T, T); "logits": float32 (B, 2, T, T); "mask": uint8 (B, T, T).
    """

    tile: Annotated[int, Meta(ge=1, le=1 << 14)]
    max_batch: Annotated[int, Meta(ge=1, le=1 << 16)]
    input: InputForm = "uint8"
    output: OutputForm = "probability"

    def inputs(self) -> list[TensorEntry]:
        return [self._image(date) for date in _DATES]

    def encoder_inputs(self) -> list[TensorEntry]:
        """What the encoder of a split engine reads: the images of one date."""
        return [self._image("image")]

    def outputs(self) -> list[TensorEntry]:
        if self.output == "logits":
            return [TensorEntry("logits", "float32", [-1, 2, self.tile, self.tile], "NCHW")]
        dtype = "uint8" if self.output == "mask" else "float32"
        return [TensorEntry(self.output, dtype, [-1, self.tile, self.tile], "NHW")]

    def _image(self, name: str) -> TensorEntry:
        if self.input == "uint8":
            return TensorEntry(name, "uint8", [-1, self.tile, self.tile, 3], "NHWC")
        return TensorEntry(name, "float32", [-1, 3, self.tile, self.tile], "NCHW")


def head_inputs(features: list[TensorEntry]) -> list[TensorEntry]:
    """What the head of a split engine reads: the features of both dates, the first date's first."""
    return [TensorEntry(f"{date}_{f.name}", f.dtype, f.shape, f.layout) for date in _DATES for f in features]


class Preprocessing(Struct, frozen=True):
    """What a pixel goes through before the network sees it."""

    bands: list[Text] = msgspec.field(default_factory=lambda: ["red", "green", "blue"])
    scale: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    nodata: Text = "refused: transparent pixels are an error"
    where: Literal["in the graph", "in the runtime"] = "in the graph"


class FileEntry(Struct, frozen=True):
    path: FilePath
    sha256: Sha256
    size: Count
    role: Name
    precision: Name | None = None


class SplitEntry(Struct, frozen=True):
    """The engine in two parts: what each date goes through alone, and what compares two dates' features.

    ``encoder``, ``head``: the files that are opened; ``encoder_graph``, ``head_graph``: what they were made from.
    """

    encoder: FilePath
    head: FilePath
    encoder_graph: FilePath
    head_graph: FilePath


class EngineEntry(Struct, frozen=True):
    """One engine: the file it opens, the graph that it was made from, and where it can run.

    ``precision``: "float32", "bf16", "float16", "int8", "int8+bf16", or "int8+float16". ``needs``: the processor must
    have one of these, instruction sets by Linux's names or an architecture ("aarch64"); without any, every one will do.
    ``split``: the same engine in two parts, where the bundle was built with them. ``cuda_driver``: the CUDA version of
    the driver that a plan was built with. An engine ``compiled`` on the device opens no file of the bundle:
    ``misgnet-run compile`` makes its plan from the graph, where it runs, and ``vendor_version`` is empty.
    """

    name: EngineName
    kind: EngineKind
    file: FilePath
    graph: FilePath
    precision: Name
    vendor_version: Name
    compute_capabilities: list[Name] = msgspec.field(default_factory=list)
    platform: Name = "any"
    batches: tuple[Positive, Positive, Positive] = (1, 4, 16)
    needs: list[Name] = msgspec.field(default_factory=list)
    split: SplitEntry | None = None
    compiled: Literal["by the build", "to be compiled on the device"] = "by the build"
    cuda_driver: Name = ""

    @property
    def on_device(self) -> bool:
        return self.compiled == "to be compiled on the device"

    def all_files(self) -> list[str]:
        """The files that it opens and those that they were made from, by relative path."""
        return [self.file, self.graph, *(msgspec.structs.astuple(self.split) if self.split else ())]


class Release(Struct, frozen=True):
    """What was said when the bundle was prepared to be signed; times in ISO 8601, UTC.

    Devices remember the newest version of each ``product``; from ``expires`` on they refuse the bundle.
    """

    product: Annotated[str, Meta(max_length=200)]
    signed: Text
    expires: Text | None = None


class Manifest(Struct, frozen=True):
    """What a bundle holds. ``features``: what the encoders of its split engines answer for one date's images."""

    schema_version: int
    bundle_version: Count
    created: Text
    tile: int
    overlap: int
    threshold: Annotated[float, Meta(gt=0, lt=1)]
    class_names: Annotated[list[Text], Meta(max_length=256)]
    interface: Interface
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    preprocessing: Preprocessing
    source_weights_sha256: Text
    calibration: Calibration
    quantization: Annotated[list[Quantization], Meta(max_length=256)]
    engines: Annotated[list[EngineEntry], Meta(min_length=1, max_length=256)]
    files: Annotated[list[FileEntry], Meta(max_length=10_000)]
    max_f1_drop: float
    metrics: dict[Text, Any]
    latency: dict[Text, Any]
    tool_versions: dict[Text, Text]
    machine: dict[Text, Any]
    licence: Text
    gate: GateRule = "point"
    threshold_from: Text = "given"
    features: list[TensorEntry] = msgspec.field(default_factory=list)
    release: Release | None = None

    def file(self, role: str) -> FileEntry:
        """The one file with ``role``; InputError where the bundle has none."""
        for entry in self.files:
            if entry.role == role:
                return entry
        roles = sorted({f.role for f in self.files})
        raise InputError(f"the bundle has no file with the role '{role}'; it has {roles}")


def decode_manifest(path: Path, data: bytes | None = None) -> Manifest:
    """Read a manifest; InputError where it is missing, too large, of another schema, malformed or contradictory.

    ``data``: its bytes, where they were read and checked before; ``path`` is then for messages.
    """
    data = read_manifest_bytes(path) if data is None else data
    if data.count(b"{") + data.count(b"[") > MANIFEST_VALUES:
        raise InputError(f"manifest {path} has more than {MANIFEST_VALUES} lists and objects; that is no manifest")
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise InputError(
                f"manifest {path} has schema {version}, this version reads {SCHEMA_VERSION}; build the bundle again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except JSON_ERRORS as error:
        raise InputError(f"manifest {path} cannot be read: {_NOT_A_NAME.sub(_NAMES, str(error))}") from error
    if problem := _contradiction(manifest):
        raise InputError(f"manifest {path} {problem}; build the bundle again")
    return manifest


# Instead of a regular expression: what a name may be.
_NOT_A_NAME = re.compile(r"Expected `str` matching regex .*(?= - at )")
_NAMES = "not a name that a bundle may hold (plain letters, digits and _ . , + -; relative paths below the bundle)"


class _Version(msgspec.Struct):
    schema_version: int


def read_manifest_bytes(path: Path) -> bytes:
    """InputError where the manifest is missing, no file, or too large to be one."""
    try:
        if is_not_regular_file(path):
            raise InputError(f"manifest {path} is no file")
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is no bundle: it has no {path.name}") from error
    except OSError as error:
        raise InputError(f"manifest {path} cannot be read: {error}") from error
    if len(data) > MANIFEST_BYTES:
        raise InputError(f"manifest {path} is larger than {MANIFEST_BYTES} bytes; that is no manifest")
    return data


def _contradiction(m: Manifest) -> str | None:
    """What of a manifest contradicts itself, or is not what this version computes."""
    paths = {f.path for f in m.files}
    where: Literal["in the graph", "in the runtime"] = (
        "in the graph" if m.interface.input == "uint8" else "in the runtime"
    )
    unlisted = [name for engine in m.engines for name in engine.all_files() if name not in paths]
    split = any(engine.split for engine in m.engines)
    graphs = [engine.name for engine in m.engines if engine.on_device and engine.kind not in ("rtx", "tensorrt")]
    found = {
        f"has engines to be compiled on the device that are no plans: {', '.join(graphs)}": bool(graphs),
        "lists a file twice": len(paths) < len(m.files),
        "lists an engine twice": len({e.name for e in m.engines}) < len(m.engines),
        f"has engines whose files it does not list: {', '.join(unlisted)}": bool(unlisted),
        "has split engines, but states no features": split and not m.features,
        "states features, but no engine of it is split": bool(m.features) and not split,
        f"has tile {m.tile}, but {m.interface.tile} in its interface": m.tile != m.interface.tile,
        f"has overlap {m.overlap}; this version tiles without overlap": m.overlap != 0,
        "states inputs that are not its interface's": m.inputs != m.interface.inputs(),
        "states outputs that are not its interface's": m.outputs != m.interface.outputs(),
        "states a preprocessing that this version does not compute": m.preprocessing != Preprocessing(where=where),
    }
    return next((problem for problem, holds in found.items() if holds), None)

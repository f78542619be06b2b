"""Defines and reads ``manifest.json``: a bundle's files, engines, preprocessing, quantization and measurements.

The structures are frozen. Unknown or missing fields are refused, and so are invalid values and combinations: a manifest
that this version does not understand is not run. Limits are enforced when a manifest is read.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from misgnet_runtime.bundle.fields import MAX_CONFIG, EngineName, FilePath, Name, TensorName, Text
from misgnet_runtime.bundle.quantization import Calibration, Quantization
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import MANIFEST_BYTES, MANIFEST_VALUES
from misgnet_runtime.pixels import LARGEST, MOST_BANDS, PixelFormat, Samples
from misgnet_runtime.storage.files import is_file, is_not_regular_file
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Positive, Sha256, Struct

SCHEMA_VERSION = 2
# Schema 1 differs as follows: its overlap is always 0 and means a quarter of a tile, no overlap was measured, and its
# gate is ``max_f1_drop``.
READ_VERSIONS = (1, 2)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

InputForm = Literal["uint8", "uint16", "float32"]
OutputForm = Literal["probability", "logits", "mask"]
# The value that must stay within the limit: the measured F1 drop or ratio, or the worse end of its interval.
GateRule = Literal["point", "upper"]
Share = Annotated[float, Meta(ge=0, le=1)]
EngineKind = Literal["onnxruntime", "onnxruntime-cuda", "openvino", "rtx", "tensorrt"]
_DATES = ("before", "after")


class TensorEntry(Struct, frozen=True):
    """An input or output of a graph."""

    # Its name in the graph.
    name: TensorName
    # Its data type, for example "float32".
    dtype: Name
    # Size of each axis; -1 is the batch.
    shape: list[int]
    # One letter per axis, for example "NCHW".
    layout: Name


class Normalization(Struct, frozen=True):
    """The conversion of stored values to the network's input: (value * scale - mean) / std, per band."""

    # Factor that pixels are multiplied by first.
    scale: Annotated[float, Meta(gt=0)] = 1 / 255
    # Mean of each band after scaling; it is subtracted.
    mean: Annotated[tuple[float, ...], Meta(min_length=1, max_length=MOST_BANDS)] = IMAGENET_MEAN
    # Standard deviation of each band after scaling; the difference is divided by it.
    std: Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=1, max_length=MOST_BANDS)] = IMAGENET_STD


class Interface(Struct, frozen=True):
    """The format of the graph's inputs and output."""

    # Tile size T, in pixels.
    tile: Annotated[int, Meta(ge=1, le=1 << 14)]
    # The largest batch size B.
    max_batch: Annotated[int, Meta(ge=1, le=1 << 16)]
    # "uint8" or "uint16": raw images (B, T, T, C), normalised in the graph; "float32": normalised (B, C, T, T).
    input: InputForm = "uint8"
    # "probability": float32 (B, T, T); "logits": float32 (B, 2, T, T); "mask": uint8 (B, T, T).
    output: OutputForm = "probability"
    # Bands of each date, C.
    bands: Annotated[int, Meta(ge=1, le=MOST_BANDS)] = 3
    # Data type of raw images; also that of ``input`` unless it is "float32".
    samples: Samples = "uint8"
    # Conversion of raw images to the network's input.
    normalization: Normalization = msgspec.field(default_factory=Normalization)

    @property
    def raw(self) -> bool:
        """Whether the graph reads raw images and normalises them itself."""
        return self.input != "float32"

    @property
    def layout(self) -> Literal["NHWC", "NCHW"]:
        """Order of the axes of the graph's inputs."""
        return "NHWC" if self.raw else "NCHW"

    @property
    def pixels(self) -> PixelFormat:
        """The format of raw images. Their neutral value is the mean, which is normalised to about 0."""
        largest, scale = LARGEST[self.samples], self.normalization.scale
        neutral = tuple(min(largest, max(0, round(mean / scale))) for mean in self.normalization.mean)
        return PixelFormat(self.bands, self.samples, neutral)

    def preprocessing(self) -> Preprocessing:
        """Returns the manifest's statement about the conversion of pixels."""
        bands = ["red", "green", "blue"] if self.bands == 3 else [f"band {i}" for i in range(1, self.bands + 1)]
        how = self.normalization
        where: Literal["in the graph", "in the runtime"] = "in the graph" if self.raw else "in the runtime"
        return Preprocessing(bands=bands, scale=how.scale, mean=how.mean, std=how.std, where=where)

    def inputs(self) -> list[TensorEntry]:
        return [self._image(date) for date in _DATES]

    def encoder_inputs(self) -> list[TensorEntry]:
        """Returns the inputs of a split engine's encoder: the images of one date."""
        return [self._image("image")]

    def outputs(self) -> list[TensorEntry]:
        if self.output == "logits":
            return [TensorEntry("logits", "float32", [-1, 2, self.tile, self.tile], "NCHW")]
        dtype = "uint8" if self.output == "mask" else "float32"
        return [TensorEntry(self.output, dtype, [-1, self.tile, self.tile], "NHW")]

    def _image(self, name: str) -> TensorEntry:
        if self.raw:
            return TensorEntry(name, self.input, [-1, self.tile, self.tile, self.bands], self.layout)
        return TensorEntry(name, "float32", [-1, self.bands, self.tile, self.tile], self.layout)


def head_inputs(features: list[TensorEntry]) -> list[TensorEntry]:
    """Returns the inputs of a split engine's head: the features of both dates, BEFORE first."""
    return [TensorEntry(f"{date}_{f.name}", f.dtype, f.shape, f.layout) for date in _DATES for f in features]


class Preprocessing(Struct, frozen=True):
    """The conversion of pixels to the network's input."""

    # Names of the bands, in order.
    bands: list[Text] = msgspec.field(default_factory=lambda: ["red", "green", "blue"])
    # Factor that pixels are multiplied by first.
    scale: float = 1 / 255
    # Mean of each band after scaling; it is subtracted.
    mean: tuple[float, ...] = IMAGENET_MEAN
    # Standard deviation of each band after scaling; the difference is divided by it.
    std: tuple[float, ...] = IMAGENET_STD
    # How pixels without data are treated.
    nodata: Text = "refused: transparent pixels are an error"
    # Part of the program that preprocesses.
    where: Literal["in the graph", "in the runtime"] = "in the graph"


class FileEntry(Struct, frozen=True):
    """A file of the bundle."""

    # Path relative to the bundle, with forward slashes.
    path: FilePath
    # SHA-256 of its bytes, in hexadecimal.
    sha256: Sha256
    # Size in bytes.
    size: Count
    # Purpose of the file, for example "golden tiles".
    role: Name
    # Precision of a graph or an engine; null for other files.
    precision: Name | None = None


class SplitEntry(Struct, frozen=True):
    """An engine in two parts: an encoder of one date, and a head that compares the features of two dates."""

    # Path of the encoder that is opened.
    encoder: FilePath
    # Path of the head that is opened.
    head: FilePath
    # Path of the graph that the encoder was made from.
    encoder_graph: FilePath
    # Path of the graph that the head was made from.
    head_graph: FilePath


class PlanProfile(Struct, frozen=True):
    """An optimization profile of a TensorRT plan: the batches that it accepts, and what one inference costs."""

    # Smallest, typical and largest batch. Equal: the shapes are static, and smaller batches are padded.
    batches: tuple[Positive, Positive, Positive]
    # Device memory for the activations of one stream, in bytes; null: known once the plan was opened.
    context_bytes: Count | None = None
    # Kernels of one inference of the typical batch; null: the builder did not list them.
    kernels: Count | None = None
    # Bytes that these kernels read and write; null: the builder did not list them.
    bytes_moved: Count | None = None


class EngineEntry(Struct, frozen=True):
    """One engine: the file that it opens, the graph that it was made from, and the machines that it can run on."""

    # Its name in commands, for example "cpu".
    name: EngineName
    # The library that runs the engine.
    kind: EngineKind
    # Path of the file that is opened; not used if the engine is compiled on the device.
    file: FilePath
    # Path of the graph that the engine was made from.
    graph: FilePath
    # "float32", "bf16", "float16", "int8", "int8+bf16" or "int8+float16".
    precision: Name
    # Version of the library that compiled a plan, or that the build ran a graph with; empty if it is compiled on the
    # device.
    vendor_version: Name
    # Compute capabilities of the GPUs that it can run on, for example "sm86".
    compute_capabilities: list[Name] = msgspec.field(default_factory=list)
    # The operating system and processor that it can run on, for example "linux-x86_64".
    platform: Name = "any"
    # Smallest, typical and largest batch that a plan is compiled for.
    batches: tuple[Positive, Positive, Positive] = (1, 4, 16)
    # The optimization profiles of a plan, by ascending batch; empty: one profile with ``batches``.
    profiles: Annotated[list[PlanProfile], Meta(max_length=16)] = msgspec.field(default_factory=list)
    # The processor must have one of these: instruction sets under Linux's names, or an architecture ("aarch64"). Empty:
    # any processor.
    needs: list[Name] = msgspec.field(default_factory=list)
    # The same engine in two parts; null if the bundle was built without them.
    split: SplitEntry | None = None
    # Whether the build compiled the engine, or ``misgnet-run compile`` builds its plan from the graph on the device.
    compiled: Literal["by the build", "to be compiled on the device"] = "by the build"
    # CUDA version of the driver that a plan was built with.
    cuda_driver: Name = ""

    @property
    def on_device(self) -> bool:
        return self.compiled == "to be compiled on the device"

    @property
    def plan_profiles(self) -> list[PlanProfile]:
        """The optimization profiles of a plan, also of a bundle that does not list them."""
        return self.profiles or [PlanProfile(self.batches)]

    def all_files(self) -> list[str]:
        """Returns the relative paths of the files that it opens and of the graphs that they were made from."""
        return [self.file, self.graph, *(msgspec.structs.astuple(self.split) if self.split else ())]


class Release(Struct, frozen=True):
    """Statements of ``misgnet-export sign`` about the bundle; times are ISO 8601 in UTC."""

    # Name of the product; devices remember the newest version of each product that they accepted.
    product: Annotated[str, Meta(max_length=200)]
    # When the bundle was signed.
    signed: Text
    # Time from which devices refuse the bundle; null: never.
    expires: Text | None = None


class ModelEntry(Struct, frozen=True):
    """The network that the bundle was built from, as the build found it or as it was declared."""

    # "misgnet": a checkpoint of this project's network; "onnx": a file; "pytorch": a factory in the user's own code.
    source: Literal["misgnet", "onnx", "pytorch"]
    # Name of the file, or the factory: "net.onnx", "net.py:make".
    name: Text
    # How the network takes both dates: "pair": two inputs; "stacked": (B, 2C, H, W); "time": (B, 2, C, H, W).
    io: Literal["pair", "stacked", "time"] = "pair"
    # Order of the axes of its images.
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    # What it outputs: "logits2", "logit1", "probability1", "probability2" or "classes:N".
    output: Name = "logits2"
    # The classes that count as changed, for "classes:N".
    changed: Annotated[list[Count], Meta(max_length=1000)] = msgspec.field(default_factory=list)
    # Number of parameters; null: not known.
    parameters: Count | None = None
    # Metres per pixel of the training data; null: not declared.
    resolution: Annotated[float, Meta(gt=0)] | None = None


class MeasuredOverlap(Struct, frozen=True):
    """Maps of validation images with one overlap of tiles; each image is mapped twice, whole and cut.

    Cut: without its first 37 rows and 91 columns, so that tiles start elsewhere.
    """

    # Pixels that neighbouring tiles share.
    overlap: Count
    # How often each pixel of a large scene is computed: (tile / (tile - overlap))².
    times_computed: Annotated[float, Meta(ge=1)]
    # F1 of the changed class, from one confusion matrix of all maps, 0 to 1; null if the labels hold no change.
    f1: Share | None
    # Share of pixels that are equal in both maps of an image, 0 to 1.
    seam_agreement: Share


class MeasuredTile(Struct, frozen=True):
    """Maps of validation images by the float graph of one tile size, with the overlap chosen for that size."""

    # Tile size in pixels.
    tile: Positive
    # Pixels that neighbouring tiles share.
    overlap: Count
    # F1 of the changed class, from one confusion matrix of all maps, 0 to 1.
    f1: Share
    # Share of pixels that are equal in both maps of an image, 0 to 1; see ``overlaps``.
    seam_agreement: Share
    # Millions of a large scene's pixels mapped in a second by ONNX Runtime on the machine of the build.
    megapixels_s: Annotated[float, Meta(ge=0)]


class Manifest(Struct, frozen=True):
    """The contents of ``manifest.json``."""

    # Version of this format: 2; 1 is still read.
    schema_version: int
    # Version of the bundle; devices that require signatures refuse older ones.
    bundle_version: Count
    # When the bundle was built, ISO 8601 in UTC.
    created: Text
    # Tile size in pixels.
    tile: int
    # Overlap of neighbouring tiles of a scene in pixels, at most 3/4 of a tile; 0 in schema 1, which means a quarter.
    overlap: Count
    # Pixels with a higher probability of change count as changed.
    threshold: Annotated[float, Meta(gt=0, lt=1)]
    # Names of the classes, in order.
    class_names: Annotated[list[Text], Meta(max_length=256)]
    # Format of the inputs and output.
    interface: Interface
    # Inputs of every graph, as given by ``interface``.
    inputs: list[TensorEntry]
    # Outputs of every graph, as given by ``interface``.
    outputs: list[TensorEntry]
    # Conversion of pixels to the network's input.
    preprocessing: Preprocessing
    # Digest of the weights that the bundle was built from.
    source_weights_sha256: Text
    # The tiles used for calibration.
    calibration: Calibration
    # One entry per graph in INT8 or float16.
    quantization: Annotated[list[Quantization], Meta(max_length=256)]
    # The engines of the bundle.
    engines: Annotated[list[EngineEntry], Meta(min_length=1, max_length=256)]
    # All files of the bundle except the manifest and the signature.
    files: Annotated[list[FileEntry], Meta(max_length=10_000)]
    # The allowed F1 drop against the float model, in points; null if ``min_f1_ratio`` is given.
    max_f1_drop: float | None
    # Accuracy of each engine on the evaluation set.
    metrics: dict[Text, Any]
    # Latencies measured by the build.
    latency: dict[Text, Any]
    # Versions of the libraries that built the bundle.
    tool_versions: dict[Text, Text]
    # The machine that built the bundle.
    machine: dict[Text, Any]
    # Licence of the weights.
    licence: Text
    # The smallest allowed F1 as a share of the float model's, 0 to 1; null if ``max_f1_drop`` is given.
    min_f1_ratio: Annotated[float, Meta(gt=0, le=1)] | None = None
    # The value that must stay within the limit: "point" is the measured drop or ratio, "upper" the worse end of its
    # 95 % interval.
    gate: GateRule = "point"
    # How the threshold was determined: "given", or "tuned: " and the details.
    threshold_from: Text = "given"
    # How the tile size was chosen: "given", "the default", "the only size that the network accepts", or "auto: " and
    # the rule.
    tile_from: Text = "given"
    # The sizes that ``--tile auto`` chose from, ascending; empty if the size was given.
    tiles: Annotated[list[MeasuredTile], Meta(max_length=256)] = msgspec.field(default_factory=list)
    # The measurements that the overlap was chosen from, by ascending overlap; empty if nothing was measured.
    overlaps: Annotated[list[MeasuredOverlap], Meta(max_length=256)] = msgspec.field(default_factory=list)
    # How the overlap was chosen: the engine, the images and the rule.
    overlap_from: Text = "a quarter of a tile"
    # Outputs of the encoders of split engines for the images of one date.
    features: list[TensorEntry] = msgspec.field(default_factory=list)
    # The network; null: a MISGNet of a bundle that does not state it.
    model: ModelEntry | None = None
    # The resolved options of the build, as TOML for ``misgnet-export build --config``; empty if not kept.
    config: Annotated[str, Meta(max_length=MAX_CONFIG)] = ""
    # Whether the bundle has the float graph, which ``misgnet-export parity`` compares engines with.
    float_graph: bool = True
    # Product, time and expiry; null if ``misgnet-export sign`` did not prepare the bundle.
    release: Release | None = None

    def file(self, role: str) -> FileEntry:
        """Returns the first file with ``role``. Raises InputError if the bundle has none."""
        for entry in self.files:
            if entry.role == role:
                return entry
        roles = sorted({f.role for f in self.files})
        raise InputError(f"the bundle has no file with the role '{role}'; it has {roles}")

    @property
    def scene_overlap(self) -> int:
        """Overlap of neighbouring tiles of a scene, in pixels; schema 1 does not state it."""
        return self.tile // 4 if self.schema_version == 1 else self.overlap

    @property
    def resolution(self) -> float | None:
        """Metres per pixel of the training data; None: not declared."""
        return self.model.resolution if self.model else None


def decode_manifest(path: Path, data: bytes | None = None) -> Manifest:
    """Reads a manifest.

    Args:
        path: The file.
        data: Its bytes, if they were already read and checked; ``path`` is then used only in messages.

    Raises:
        InputError: The manifest is missing, too large, malformed, contradictory, or has another schema version.
    """
    data = read_manifest_bytes(path) if data is None else data
    if data.count(b"{") + data.count(b"[") > MANIFEST_VALUES:
        raise InputError(f"manifest {path} has more than {MANIFEST_VALUES} lists and objects, which is the limit")
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version not in READ_VERSIONS:
            read = " and ".join(map(str, READ_VERSIONS))
            advice = "update misgnet-export" if version > SCHEMA_VERSION else "build the bundle again"
            raise InputError(f"manifest {path} has schema {version}; this version reads {read}; {advice}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except JSON_ERRORS as error:
        raise InputError(f"manifest {path} cannot be read: {_NOT_A_NAME.sub(_NAMES, str(error))}") from error
    if problem := _contradiction(manifest):
        raise InputError(f"manifest {path} {problem}; build the bundle again")
    return manifest


# Replaces the regular expression in msgspec's message.
_NOT_A_NAME = re.compile(r"Expected `str` matching regex .*(?= - at )")
_NAMES = "not an accepted name (ASCII letters, digits and _ . , + -; relative paths below the bundle)"


class _Version(msgspec.Struct):
    schema_version: int


def read_manifest_bytes(path: Path) -> bytes:
    """Returns the bytes of a manifest. Raises InputError if it is missing, not a regular file, or too large."""
    try:
        if is_not_regular_file(path):
            raise InputError(f"manifest {path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path.parent} is not a bundle: {_lacking(path)}") from error
    except OSError as error:
        raise InputError(f"manifest {path} cannot be read: {error}") from error
    if len(data) > MANIFEST_BYTES:
        raise InputError(f"manifest {path} is larger than {MANIFEST_BYTES} bytes, which is the limit")
    return data


def _lacking(path: Path) -> str:
    """Returns why there is no manifest ``path``."""
    if is_file(path.parent):
        return "it is a file; give the folder that `misgnet-export build` made"
    return f"it has no {path.name}" if path.parent.is_dir() else "there is no such folder"


def _contradiction(m: Manifest) -> str | None:
    """Returns how a manifest contradicts itself or what this version computes; None if it does not."""
    paths = {f.path for f in m.files}
    unlisted = [name for engine in m.engines for name in engine.all_files() if name not in paths]
    split = any(engine.split for engine in m.engines)
    graphs = [engine.name for engine in m.engines if engine.on_device and engine.kind not in ("rtx", "tensorrt")]
    overlaps = [measured.overlap for measured in m.overlaps]
    found = {
        f"has engines to be compiled on the device that are not TensorRT plans: {', '.join(graphs)}": bool(graphs),
        "lists a file twice": len(paths) < len(m.files),
        "lists an engine twice": len({e.name for e in m.engines}) < len(m.engines),
        f"has engines whose files it does not list: {', '.join(unlisted)}": bool(unlisted),
        "has split engines, but no features": split and not m.features,
        "has features, but no split engine": bool(m.features) and not split,
        "states that it has no float graph, but has an engine in float32": not m.float_graph
        and any(engine.precision == "float32" for engine in m.engines),
        f"has tile {m.tile}, but {m.interface.tile} in its interface": m.tile != m.interface.tile,
        f"has overlap {m.overlap}, which schema 1 does not support": m.schema_version == 1 and m.overlap != 0,
        f"has overlap {m.overlap}, more than 3/4 of its tile": m.overlap > 3 * m.tile // 4,
        "states measured tiles or overlaps, which schema 1 does not have": m.schema_version == 1
        and bool(m.tiles or m.overlaps),
        f"has tile {m.tile}, which is not among its measured tiles": bool(m.tiles)
        and m.tile not in [measured.tile for measured in m.tiles],
        "states measured overlaps that are not ascending": any(a >= b for a, b in pairwise(overlaps)),
        f"has overlap {m.overlap}, which is not among its measured overlaps": bool(overlaps)
        and m.overlap not in overlaps,
        "must state either max_f1_drop or min_f1_ratio": (m.max_f1_drop is None) == (m.min_f1_ratio is None),
        "states min_f1_ratio, which schema 1 does not have": m.schema_version == 1 and m.min_f1_ratio is not None,
        "has inputs that contradict its interface": m.inputs != m.interface.inputs(),
        "has outputs that contradict its interface": m.outputs != m.interface.outputs(),
        "has a TensorRT engine, which cannot read uint16 input": m.interface.input == "uint16"
        and any(engine.kind in ("rtx", "tensorrt") for engine in m.engines),
        f"has {m.interface.input} input, but {m.interface.samples} samples": m.interface.raw
        and m.interface.input != m.interface.samples,
        f"has {m.interface.bands} bands, but a mean or standard deviation of another number": {m.interface.bands}
        != {len(m.interface.normalization.mean), len(m.interface.normalization.std)},
        "has a preprocessing that contradicts its interface": m.preprocessing != m.interface.preprocessing(),
    }
    return next((problem for problem, holds in found.items() if holds), None)

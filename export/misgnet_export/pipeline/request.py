"""Defines the options of a build and checks them before any work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from misgnet_calibration.statistics.calibrators import AUTO, PER_TENSOR, named
from misgnet_export.integrations.torch_tensorrt import check_torch_tensorrt
from misgnet_export.pipeline.auto_target import AUTO as AUTO_TARGET
from misgnet_export.pipeline.auto_target import Choice, RequestedTarget, choose_here, expand, parse_requested
from misgnet_export.pipeline.config import write_config
from misgnet_export.pipeline.targets import product_of
from misgnet_export.sources.options import PANEL, ModelOptions, kind_of
from misgnet_runtime.accuracy.limit import DEFAULT_MIN_F1_RATIO, F1Limit, requested_limit
from misgnet_runtime.bundle import MAX_CONFIG, MAX_TEXT, GateRule, InputForm, Interface, OutputForm
from misgnet_runtime.bundle.targets import ACCEPTED, Target
from misgnet_runtime.engines.openvino import load_openvino
from misgnet_runtime.engines.tensorrt import PlanOptions, check_options, dynamic_profile
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.machine import check_processor
from misgnet_runtime.options import check, group, option

if TYPE_CHECKING:
    from misgnet_export.sources.float_model import FloatModel, Source

_TILE = 256  # default, in pixels
_SMALLEST_TILE = 32
# How calibration tiles are selected: representative of the set, drawn at random, or the first ones.
SelectionRule = Literal["represent", "random", "first"]
# The operators that become INT8: those of the recipe's rules, or all that read float activations.
PlacementChoice = Literal["rules", "all"]
# When the INT8 graph is repaired: if it loses too much on the validation tiles, always, or never.
RepairChoice = Literal["auto", "always", "never"]
# A probability, or "tuned": the one with the best F1 on the validation tiles.
Threshold = float | Literal["tuned"]
# Pixels, or "auto": the size that suits the validation images best.
TileSize = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class AccuracyPolicy:
    """The accuracy that engines must reach."""

    threshold: float  # probability of change above which a pixel counts as changed, 0 to 1
    limit: F1Limit
    gate: GateRule = "point"  # what must stay within the limit: the drop or ratio, or the worse end of its interval


def _tile(text: str) -> TileSize:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError("it must be a number of pixels, or: auto") from None


def _threshold(text: str) -> Threshold:
    if text == "tuned":
        return "tuned"
    try:
        return float(text)
    except ValueError:
        raise ValueError("it must be a number between 0 and 1, or: tuned") from None


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or found[0] < 1 or list(found) != sorted(set(found)):
        raise ValueError("expected ascending numbers from 1, such as 1,4,16")
    return found


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """Options of ``misgnet-export build``."""

    source: str = option(
        help="The network: a MISGNet checkpoint (safetensors or any published file), an ONNX file (its name ends in "
        ".onnx), or a PyTorch factory, FILE.py:factory or package.module:factory, whose code is run.",
        positional=True,
    )
    calib: Path = option(help="Folder with A/, B/ and label/ whose tiles calibrate INT8.", metavar="FOLDER")
    evaluation: Path = option(
        help="Folder with A/, B/ and label/ that the engines are evaluated on.", name="eval", metavar="FOLDER"
    )
    output: Path = option(help="Folder to write the bundle to.", short="-o", metavar="FOLDER")
    val: Path | None = option(
        None, help="Folder with A/, B/ and label/ for choosing settings (default: none, settings keep their defaults).",
        metavar="FOLDER",
    )  # fmt: skip
    requested: tuple[RequestedTarget, ...] = option(
        (AUTO_TARGET,),
        help="Target to build for: auto (cpu, and on x86_64 with OpenVINO the engine of OpenVINO that suits this "
        f"processor), {ACCEPTED}. May be repeated.",
        name="target", repeated=True, parse=parse_requested,
    )  # fmt: skip
    force: bool = option(False, help="Replace an existing bundle.")
    tile: TileSize | None = option(
        None,
        help="Tile size in pixels, for MISGNet a multiple of 32; auto: 256, 384 or 512, by F1 of --val images as "
        "scenes, then by speed (takes minutes).",
        parse=_tile, show_default="256, or the only size that the network supports",
    )  # fmt: skip
    max_batch: int = option(16, help="Largest batch size of the engines.")
    plan_batches: tuple[int, ...] | None = option(
        None, help="Batches that TensorRT plans are compiled for, each with static shapes; other batches are padded to "
        "these, or split into them.", parse=_batches, metavar="N[,N...]", show_default="1,4 within --max-batch",
    )  # fmt: skip
    calib_tiles: int = option(128, help="Number of calibration tiles.")
    selection: SelectionRule = option(
        "represent",
        help="How calibration tiles are selected: represent (representative of the set), random, or first.",
        metavar="RULE",
    )
    observer: str = option(
        AUTO,
        help="How INT8 ranges are chosen: auto (best on --val), per-tensor, max, mse, entropy or 'percentile P'.",
    )
    observations: Path | None = option(
        None, help="File that activation statistics are saved to and reused from, for the same tiles and weights "
        "(default: none).",
    )  # fmt: skip
    placement: PlacementChoice = option(
        "rules",
        help="Operators that become INT8: those that the engine's rules select, or all that read float activations.",
    )
    repair: RepairChoice = option(
        "auto",
        help="When to apply smoothing, rounding and bias correction: auto (if INT8 loses too much on --val), always, "
        "never.",
    )
    control_minutes: float = option(
        10.0, help="Time limit of the search for operators to revert to float if INT8 loses too much; 0: no search.",
        minimum=0,
    )  # fmt: skip
    seed: int = option(0, help="Random seed for selecting calibration tiles.")
    min_f1_ratio: float | None = option(
        None, help="Smallest F1 of an engine as a share of the float model's.", show_default=f"{DEFAULT_MIN_F1_RATIO:g}"
    )
    max_f1_drop: float | None = option(
        None, help="Allowed F1 drop in points, instead of --min-f1-ratio; may be negative (default: none).",
    )  # fmt: skip
    gate: GateRule = option(
        "point",
        help="Value that must stay within the limit: the measured ratio or drop (point), or the worse end of its 95 % "
        "interval (upper).",
    )
    threshold: Threshold = option(
        0.5, help="Probability above which a pixel counts as changed; tuned: the value with the best F1 on --val.",
        parse=_threshold,
    )  # fmt: skip
    input_form: InputForm = option(
        "uint8", help="Input of the engines: raw NHWC images of the type of --samples, or normalised float32 NCHW.",
        name="input",
    )  # fmt: skip
    output_form: OutputForm = option(
        "probability", help="Output of the engines: probability, logits or mask.", metavar="FORM"
    )
    bundle_version: int = option(1, help="Version of the bundle; increase it with every release.", minimum=0)
    licence: str = option("not stated", help="Licence of the weights, recorded in the manifest.")
    on_device: bool = option(
        False,
        help="Leave compiling plans of tensorrt and rtx targets to `misgnet-run compile` on the device, as for Jetson.",
    )
    ship_eval: int = option(
        0, help="Number of evaluation tiles in the bundle, for the gate on the device; they reveal their pixels.",
        minimum=0,
    )  # fmt: skip
    timing_cache: Path | None = option(None, help="File of TensorRT's timing cache, read and updated (default: none).")
    split: bool = option(
        False, help="Also build encoder and head of each engine except BF16 ones, to encode each date of a series once."
    )
    float_graph: bool = option(
        True,
        help="Leave the float graph out of the bundle once it has been evaluated: a smaller bundle, which `parity` "
        "cannot evaluate again.",
    )
    model: ModelOptions = group(ModelOptions, panel=PANEL)

    @cached_property
    def auto(self) -> Choice | None:
        """What "auto" stands for on this machine; None if it was not requested."""
        return choose_here() if AUTO_TARGET in self.requested else None

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets to build, each once."""
        return expand(self.requested, self.auto.targets if self.auto else ())

    @property
    def only_by_auto(self) -> frozenset[Target]:
        """The targets that "auto" stands for and no other ``--target`` names."""
        return frozenset(self.auto.targets if self.auto else ()) - frozenset(self.requested)

    @property
    def pairs(self) -> list[tuple[Target, ...]]:
        """The targets in INT8 and FP16 that one ``--target`` asked for, of which one may miss the gate."""
        pairs = (one.variants for one in self.requested if one != AUTO_TARGET)
        alone = {one for one in self.requested if one != AUTO_TARGET and one.variants == (one,)}
        return [pair for pair in pairs if len(pair) > 1 and not alone & set(pair)]

    @property
    def files(self) -> list[Path]:
        """The files and folders that the build reads, as far as their names tell."""
        code = self.source.rpartition(":")[0] if kind_of(self.source) == "pytorch" else self.source
        found = [Path(code), self.model.weights, self.calib, self.val, self.evaluation]
        return [path for path in found if path is not None]

    @property
    def policy(self) -> AccuracyPolicy:
        """The accuracy policy; a threshold that is yet to be tuned is 0.5."""
        threshold = 0.5 if self.threshold == "tuned" else self.threshold
        limit = requested_limit(self.max_f1_drop, self.min_f1_ratio) or F1Limit(min_f1_ratio=DEFAULT_MIN_F1_RATIO)
        return AccuracyPolicy(threshold=threshold, limit=limit, gate=self.gate)

    def compiles_on_device(self, target: Target) -> bool:
        """Returns whether the plan of ``target`` is compiled by ``misgnet-run compile``."""
        product = product_of(target)
        return product.board is not None or (self.on_device and product.has_plan and not product.from_program)

    def plan_options(self, target: Target) -> PlanOptions:
        """Returns compile options with a static profile for each of ``plan_batches``.

        Torch-TensorRT makes one profile, so its shapes are dynamic, up to the bundle's largest batch.
        """
        product, largest = product_of(target), self.max_batch
        static = tuple((batch, batch, batch) for batch in self.plan_batches or sorted({1, min(4, largest)}))
        return PlanOptions(
            vendor=product.engine, compute_capabilities=target.compute_capabilities,
            profiles=(dynamic_profile(largest),) if product.from_program else static,
        )  # fmt: skip


def check_request(request: BuildRequest) -> None:
    """Checks the options and the availability of all targets before minutes are spent on a build.

    Raises:
        UsageError: A value is out of range.
        UnavailableError: A target's library or device is missing.
    """
    check(request)
    tile, batch = request.tile, request.max_batch
    if tile == "auto" and request.val is None:
        raise UsageError("--tile auto requires --val")
    if not 2 <= batch <= 256:
        raise UsageError(f"--max-batch is {batch}; it must be 2 to 256 (with 1, the exported batch is not dynamic)")
    if request.plan_batches and request.plan_batches[-1] > batch:
        largest = request.plan_batches[-1]
        raise UsageError(
            f"--plan-batches has {largest}, but --max-batch is {batch}; leave it out, or raise --max-batch"
        )
    _check_threshold(request)
    requested_limit(request.max_f1_drop, request.min_f1_ratio)
    if request.observer not in (AUTO, PER_TENSOR) and named(request.observer) is None:
        given = f"--observer is '{request.observer}'"
        raise UsageError(f"{given}; it must be auto, per-tensor, max, mse, entropy or 'percentile P' with 0 < P <= 100")
    if len(request.licence) > MAX_TEXT:
        raise UsageError(
            f"--licence has {len(request.licence)} characters (at most {MAX_TEXT}); give its name or its address"
        )
    if request.on_device and not any(map(request.compiles_on_device, request.targets)):
        raise UsageError(
            "--on-device was given, but no target compiles its plan on the device; add --target tensorrt or rtx-smNN"
        )
    if (length := len(write_config(request, comments=False))) > MAX_CONFIG:
        raise UsageError(f"the options take {length} characters in the manifest (at most {MAX_CONFIG}); give fewer")
    for target in request.targets:
        _check_target(request, target)


def with_interface(request: BuildRequest, source: Source) -> tuple[BuildRequest, Interface]:
    """Returns the request with the tile size and the largest batch that ``source`` supports, and the interface.

    A tile size of "auto" must have been chosen before.

    Raises:
        UsageError: The source does not support the requested tile size, or its images are not those of --input.
    """
    what, tile = source.declaration, request.tile
    assert tile != "auto", "no tile is chosen yet"
    if tile is None:
        tile = source.fixed_tile or math.ceil(_TILE / what.multiple) * what.multiple
    if source.fixed_tile is not None and tile != source.fixed_tile:
        raise UsageError(f"--tile is {tile}, but the network accepts only {source.fixed_tile} px; leave --tile out")
    if tile < max(_SMALLEST_TILE, what.multiple) or tile % what.multiple:
        least = math.ceil(_SMALLEST_TILE / what.multiple) * what.multiple
        raise UsageError(f"--tile is {tile}; it must be a multiple of {what.multiple}, at least {least}")
    batch = min(request.max_batch, source.largest_batch or request.max_batch)
    if request.plan_batches and request.plan_batches[-1] > batch:
        largest = request.plan_batches[-1]
        raise UsageError(f"--plan-batches has {largest}, but the network accepts only batches up to {batch}")
    if request.input_form == "uint16" != what.samples:
        raise UsageError(f"--input is uint16, but --samples is {what.samples}; leave one out, or make them equal")
    form: InputForm = "float32" if request.input_form == "float32" else what.samples
    interface = Interface(
        tile, batch, form, request.output_form, bands=what.bands, samples=what.samples, normalization=what.normalization
    )
    return replace(request, tile=tile, max_batch=batch), interface


def check_model(request: BuildRequest, model: FloatModel) -> None:
    """Raises UsageError if the request asks for something that its network does not offer."""
    if request.split and not model.splits:
        raise UsageError(
            "--split: the network does not encode the dates separately, as far as is known; leave --split out, or give "
            "a PyTorch factory whose network has encode(image) and compare(features_a, features_b)"
        )
    plans = [target for target in request.targets if product_of(target).has_plan]
    if model.network is None and (programs := [one.name for one in plans if product_of(one).from_program]):
        raise UsageError(f"--target {programs[0]} is for a MISGNet checkpoint; use --target tensorrt or rtx-smNN")
    if plans and model.interface.input == "uint16":
        raise UsageError(f"--target {plans[0].name}: TensorRT reads no uint16 images; add --input float32")


def _check_threshold(request: BuildRequest) -> None:
    if request.threshold == "tuned":
        if request.val is None or request.output_form == "mask":
            raise UsageError("--threshold tuned requires --val, and --output-form probability or logits")
        return
    if not 0 < request.threshold < 1:
        raise UsageError(f"--threshold is {request.threshold}; it must be between 0 and 1")
    if request.output_form == "mask" and request.threshold != 0.5:
        raise UsageError("--output-form mask has the threshold 0.5 built in; use --output-form probability")


def _check_target(request: BuildRequest, target: Target) -> None:
    product = product_of(target)
    if request.compiles_on_device(target):
        request.plan_options(target)
    elif product.from_program:
        check_torch_tensorrt(request.plan_options(target))
    elif product.has_plan:
        _check_compiler(request, target)
    elif product.engine == "openvino":
        load_openvino()
    if product.recipe is not None:
        return
    if not request.float_graph:
        raise UsageError(f"--target {target.name} opens the float graph; leave out --no-float-graph or this target")
    try:
        check_processor(product.needs)
    except UnavailableError as error:  # a float graph in ONNX Runtime cannot be its proxy
        raise UnavailableError(f"--target {target.name} can be evaluated only where it runs: {error}") from error


def _check_compiler(request: BuildRequest, target: Target) -> None:
    try:
        check_options(request.plan_options(target))
    except UnavailableError as error:
        raise UnavailableError(f"{error}; or add --on-device and run `misgnet-run compile` on the device") from error

"""What a build is asked for, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from misgnet_calibration.statistics.calibrators import AUTO, PER_TENSOR, named
from misgnet_export.integrations.torch_tensorrt import check_torch_tensorrt
from misgnet_export.pipeline.targets import product_of
from misgnet_runtime.bundle import MAX_TEXT, GateRule, InputForm, Interface, OutputForm
from misgnet_runtime.bundle.targets import ACCEPTED, Target, parse_target
from misgnet_runtime.engines.openvino import load_openvino
from misgnet_runtime.engines.tensorrt import PlanOptions, check_options
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.machine import check_processor
from misgnet_runtime.options import check, option

# Which calibration tiles: those that represent the set, drawn at random, or the first ones.
SelectionRule = Literal["represent", "random", "first"]
# Which operators become INT8: those of the recipe's rules, or all that read float activations.
PlacementChoice = Literal["rules", "all"]
# Repairs of the INT8 graph: where it loses too much on the validation tiles, in any case, or not at all.
RepairChoice = Literal["auto", "always", "never"]
# A probability, or "tuned": the one with the best F1 on the validation tiles.
Threshold = float | Literal["tuned"]


@dataclass(frozen=True)
class AccuracyPolicy:
    """What an engine is held to."""

    threshold: float  # probability of change above which a pixel is changed, 0 to 1
    max_f1_drop: float  # points of F1 that an engine may lose; may be negative
    gate: GateRule  # what must stay within them: the drop, or the upper end of its interval


def _threshold(text: str) -> Threshold:
    if text == "tuned":
        return "tuned"
    try:
        return float(text)
    except ValueError:
        raise ValueError("it is a number between 0 and 1, or: tuned") from None


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One build: the options of ``misgnet-export build``."""

    weights: Path = option(help="checkpoint: safetensors or any published MISGNet file", positional=True)
    calib: Path = option(help="folder of A/ B/ label/ whose tiles calibrate INT8")
    evaluation: Path = option(help="folder of A/ B/ label/ that judges", name="eval")
    output: Path = option(help="the bundle's folder", short="-o")
    val: Path | None = option(None, help="folder of A/ B/ label/ for decisions; without it, defaults")
    targets: tuple[Target, ...] = option(
        (Target("cpu"),), help=f"{ACCEPTED}; may be repeated", name="target", repeated=True, parse=parse_target,
        show_default="cpu",
    )  # fmt: skip
    force: bool = option(False, help="replace an existing bundle")
    tile: int = option(256, help="tile size in pixels, a multiple of 32")
    max_batch: int = option(16, help="largest batch of the engines")
    calib_tiles: int = option(128, help="how many calibration tiles")
    selection: SelectionRule = option(
        "represent", help="calibration tiles that represent the set, drawn at random, or the first ones"
    )
    observer: str = option(AUTO, help="ranges: auto (decided on --val), per-tensor, max, mse, entropy, 'percentile P'")
    observations: Path | None = option(
        None, help="file of what calibration saw; used again for the same tiles and weights"
    )
    placement: PlacementChoice = option(
        "rules", help="INT8 by the engine's rules, or for all that reads float activations, weights or not"
    )
    repair: RepairChoice = option(
        "auto", help="smoothing, rounding and bias correction: where INT8 loses too much on --val, or always"
    )
    control_minutes: float = option(
        10.0, help="time to find what must go back to float where INT8 loses too much; 0: do not", minimum=0
    )
    seed: int = option(0, help="seed of the draw")
    max_f1_drop: float = option(0.5, help="allowed F1 drop in points; may be negative")
    gate: GateRule = option(
        "point",
        help="what must stay within --max-f1-drop: the drop (point), or the upper end of its 95 % interval (upper)",
    )
    threshold: Threshold = option(
        0.5, help="probability above which a pixel is changed; tuned: the best on --val", parse=_threshold
    )
    input_form: InputForm = option("uint8", help="uint8 (raw NHWC images) or float32 (normalised NCHW)", name="input")
    output_form: OutputForm = option("probability", help="probability, logits or mask")
    bundle_version: int = option(1, help="a number that only grows", minimum=0)
    licence: str = option("not stated", help="licence of the weights, for the manifest")
    on_device: bool = option(
        False, help="plans of tensorrt and rtx are left to misgnet-run compile where they run; Jetson's always"
    )
    ship_eval: int = option(
        0, help="evaluation tiles in the bundle, for the gate on the device; they show their pixels", minimum=0
    )
    timing_cache: Path | None = option(None, help="TensorRT's timing cache, read and written")
    split: bool = option(False, help="also encoder and head of each engine but BF16, for series of dates encoded once")

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(dict.fromkeys(self.targets)))  # each once

    @property
    def interface(self) -> Interface:
        return Interface(self.tile, self.max_batch, self.input_form, self.output_form)

    @property
    def policy(self) -> AccuracyPolicy:
        """With 0.5 for a threshold that is yet to be tuned."""
        threshold = 0.5 if self.threshold == "tuned" else self.threshold
        return AccuracyPolicy(threshold, self.max_f1_drop, self.gate)

    def compiles_on_device(self, target: Target) -> bool:
        """Whether the plan of ``target`` is left to ``misgnet-run compile``."""
        product = product_of(target)
        return product.board is not None or (self.on_device and product.has_plan and not product.from_program)

    def plan_options(self, target: Target) -> PlanOptions:
        """Profile 1 / 4 / 16, within the bundle's largest batch."""
        largest = self.interface.max_batch
        return PlanOptions(
            vendor=product_of(target).engine, compute_capabilities=target.compute_capabilities,
            min_batch=1, opt_batch=min(4, largest), max_batch=largest,
        )  # fmt: skip


def check_request(request: BuildRequest) -> None:
    """Refuse what cannot work before minutes are spent on it.

    Raises UsageError for numbers out of range, UnavailableError where a target's library or device is missing.
    """
    check(request)
    tile, batch = request.tile, request.max_batch
    if tile < 32 or tile % 32:
        raise UsageError(f"--tile is {tile}; the network takes multiples of 32 from 32 on")
    if not 2 <= batch <= 256:
        raise UsageError(f"--max-batch is {batch}; it must be 2 to 256, or the exported batch is not dynamic")
    _check_threshold(request)
    if request.observer not in (AUTO, PER_TENSOR) and named(request.observer) is None:
        asked = f"--observer is '{request.observer}'"
        raise UsageError(f"{asked}; it is auto, per-tensor, max, mse, entropy or 'percentile P', 0 < P <= 100")
    if len(request.licence) > MAX_TEXT:
        raise UsageError(f"--licence has {len(request.licence)} characters; name it, or give its address ({MAX_TEXT})")
    if request.on_device and not any(map(request.compiles_on_device, request.targets)):
        raise UsageError(
            "--on-device was given, but no target leaves its plan to it; add --target tensorrt or rtx-smNN"
        )
    for target in request.targets:
        _check_target(request, target)


def _check_threshold(request: BuildRequest) -> None:
    if request.threshold == "tuned":
        if request.val is None or request.output_form == "mask":
            raise UsageError("--threshold tuned needs --val, and a graph that answers with a probability or logits")
        return
    if not 0 < request.threshold < 1:
        raise UsageError(f"--threshold is {request.threshold}; it must lie between 0 and 1")
    if request.output_form == "mask" and request.threshold != 0.5:
        raise UsageError("a graph that answers with a mask has the threshold 0.5 built in; use --output probability")


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
    try:
        check_processor(product.needs)
    except UnavailableError as error:  # the float graph in ONNX Runtime would be no proxy of it
        raise UnavailableError(f"--target {target.name} can be judged only where it runs: {error}") from error


def _check_compiler(request: BuildRequest, target: Target) -> None:
    try:
        check_options(request.plan_options(target))
    except UnavailableError as error:
        raise UnavailableError(f"{error}; or add --on-device, and run misgnet-run compile where it runs") from error

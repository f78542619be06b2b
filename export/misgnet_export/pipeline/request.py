"""What a build is asked for, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from misgnet_calibration.statistics.calibrators import AUTO, PER_TENSOR, named
from misgnet_export.integrations.torch_tensorrt import check_torch_tensorrt
from misgnet_export.pipeline.targets import product_of
from misgnet_runtime.bundle import MAX_WORDS, GateRule, Interface
from misgnet_runtime.bundle.targets import Target
from misgnet_runtime.engines.openvino import load_openvino
from misgnet_runtime.engines.tensorrt import PlanOptions, check_options
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.machine import check_processor

# Which calibration tiles: those that represent the set, drawn at random, or the first ones.
SelectionRule = Literal["represent", "random", "first"]
# Which operators become INT8: those of the recipe's rules, or all that read float activations.
PlacementChoice = Literal["rules", "all"]
# Repairs of the INT8 graph: where it loses too much on the validation tiles, in any case, or not at all.
RepairChoice = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class BuildRequest:
    """One build. ``threshold`` is on the probability of change, and may be tuned; ``max_f1_drop`` is in points.

    ``on_device``: plans are compiled where they run; ``ship_eval``: so many evaluation tiles travel with them.
    """

    weights: Path
    calib: Path
    evaluation: Path
    val: Path | None
    targets: tuple[Target, ...]
    output: Path
    interface: Interface
    force: bool = False
    calib_tiles: int = 128
    selection: SelectionRule = "represent"
    observer: str = AUTO
    observations: Path | None = None
    placement: PlacementChoice = "rules"
    repair: RepairChoice = "auto"
    control_minutes: float = 10.0
    seed: int = 0
    max_f1_drop: float = 0.5
    gate: GateRule = "point"
    threshold: float = 0.5
    bundle_version: int = 1
    licence: str = "not stated"
    timing_cache: Path | None = None
    split: bool = False
    tune_threshold: bool = False
    on_device: bool = False
    ship_eval: int = 0

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
    tile, batch = request.interface.tile, request.interface.max_batch
    if tile < 32 or tile % 32:
        raise UsageError(f"--tile is {tile}; the network takes multiples of 32 from 32 on")
    if not 2 <= batch <= 256:
        raise UsageError(f"--max-batch is {batch}; it must be 2 to 256, or the exported batch is not dynamic")
    if not 0 < request.threshold < 1:
        raise UsageError(f"--threshold is {request.threshold}; it must lie between 0 and 1")
    if request.interface.output == "mask" and request.threshold != 0.5:
        raise UsageError("a graph that answers with a mask has the threshold 0.5 built in; use --output probability")
    if request.tune_threshold and (request.val is None or request.interface.output == "mask"):
        raise UsageError("--threshold tuned needs --val, and a graph that answers with a probability or logits")
    if request.observer not in (AUTO, PER_TENSOR) and named(request.observer) is None:
        asked = f"--observer is '{request.observer}'"
        raise UsageError(f"{asked}; it is auto, per-tensor, max, mse, entropy or 'percentile P', 0 < P <= 100")
    if not request.control_minutes >= 0:
        raise UsageError(f"--control-minutes is {request.control_minutes}; it must be 0 (none) or more")
    if len(request.licence) > MAX_WORDS:
        raise UsageError(f"--licence has {len(request.licence)} characters; name it, or give its address ({MAX_WORDS})")
    if request.ship_eval < 0:
        raise UsageError(f"--ship-eval is {request.ship_eval}; it is a number of tiles, or 0 for none")
    if request.on_device and not any(map(request.compiles_on_device, request.targets)):
        raise UsageError(
            "--on-device was given, but no target leaves its plan to it; add --target tensorrt or rtx-smNN"
        )
    for target in request.targets:
        _check_target(request, target)


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

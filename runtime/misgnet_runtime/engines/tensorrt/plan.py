"""Defines the options that a plan is compiled with, and the compiled plan."""

from __future__ import annotations

from dataclasses import dataclass, field

from misgnet_runtime.bundle.manifest import PlanProfile
from misgnet_runtime.engines.tensorrt.bindings import rules
from misgnet_runtime.engines.tensorrt.compatibility import PlanCompatibility
from misgnet_runtime.engines.tensorrt.layers import PlanLayers
from misgnet_runtime.errors import UsageError


def dynamic_profile(largest: int) -> tuple[int, int, int]:
    """Returns the optimization profile of a plan for all batches from 1 to ``largest``."""
    return 1, min(4, largest), largest


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of the compiler.

    Raises UsageError unless each profile is 1 <= smallest <= typical <= largest, and profiles ascend by the largest.
    """

    vendor: str  # "rtx" or "tensorrt"
    compute_capabilities: tuple[str, ...] = ()  # such as "sm86", RTX only; default: this machine's GPU
    # Smallest, typical and largest batch of each optimization profile; equal ones make its shapes static.
    profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 16),)
    workspace_bytes: int | None = None  # limit per operator; default: the device's memory
    builder_bytes: int | None = None  # limit of the builder while it measures, rounded down to a power of 2
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        rules(self.vendor)
        for smallest, typical, largest in self.profiles:
            if not 1 <= smallest <= typical <= largest:
                raise UsageError(f"min, opt and max batch must ascend from 1, got {(smallest, typical, largest)}")
        limits = [largest for _, _, largest in self.profiles]
        if not limits or limits != sorted(set(limits)):
            raise UsageError(f"the largest batches of a plan's profiles must ascend, got {limits}")
        if self.compute_capabilities and self.vendor != "rtx":
            raise UsageError(
                f"compute capabilities {', '.join(self.compute_capabilities)} were given, but TensorRT "
                "compiles only for the GPU of this machine; leave them out, or use vendor 'rtx'"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A serialised engine."""

    data: bytes = field(repr=False)
    compatibility: PlanCompatibility
    seconds: float  # duration of the build
    network_layers: int  # of the parsed network, before TensorRT fuses layers; like the next two
    quantize_layers: int
    dequantize_layers: int
    layers: PlanLayers  # the kernels that TensorRT made of them
    profiles: tuple[PlanProfile, ...]  # as requested, with what one inference of each costs
    warnings: tuple[str, ...] = ()  # of TensorRT; repeated ones carry a count
    notes: tuple[str, ...] = ()  # of this package, such as an unused timing cache

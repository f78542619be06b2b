"""What a plan is compiled with, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field

from misgnet_runtime.engines.tensorrt.bindings import rules
from misgnet_runtime.engines.tensorrt.compatibility import PlanCompatibility
from misgnet_runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How to compile; ``vendor`` is "rtx" or "tensorrt".

    ``compute_capabilities`` ("sm86", ...) are for RTX only; none means this machine's GPU. ``workspace_bytes``: of one
    operator; ``builder_bytes``: of all that the builder takes while it measures, of which the next lower power of 2
    counts. Without them TensorRT takes what the device has. Raises UsageError unless 1 <= min_batch <= opt_batch <=
    max_batch.
    """

    vendor: str
    compute_capabilities: tuple[str, ...] = ()
    min_batch: int = 1
    opt_batch: int = 4
    max_batch: int = 16
    workspace_bytes: int | None = None
    builder_bytes: int | None = None
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        rules(self.vendor)
        batches = (self.min_batch, self.opt_batch, self.max_batch)
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(f"min, opt and max batch must ascend from 1, got {batches}")
        if self.compute_capabilities and self.vendor != "rtx":
            raise UsageError(
                f"compute capabilities {', '.join(self.compute_capabilities)} were given, but TensorRT "
                "compiles only for the GPU of this machine; leave them out, or use vendor 'rtx'"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A serialised engine and what is known of it.

    ``layers`` and the two counts are those of the parsed network, before the vendor fuses it.
    ``warnings`` are the vendor's, repeats counted; ``notes`` are ours (an unused timing cache).
    """

    data: bytes = field(repr=False)
    compatibility: PlanCompatibility
    seconds: float
    layers: int
    quantize_layers: int
    dequantize_layers: int
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

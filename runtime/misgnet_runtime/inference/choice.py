"""The engine that ``misgnet-run compile`` chose on this device, with what it found out about each variant.

The record is kept beside the plans. It applies to one bundle on one device, as long as the chosen plans stay active.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

import msgspec

from misgnet_runtime.bundle.fields import EngineName, FilePath
from misgnet_runtime.bundle.manifest import EngineEntry, PlanProfile
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines.cuda import Device, first_device, open_driver
from misgnet_runtime.engines.tensorrt.bindings import load_vendor, vendor_version
from misgnet_runtime.engines.tensorrt.compatibility import device_name, this_platform
from misgnet_runtime.engines.tensorrt.open import slot_of
from misgnet_runtime.engines.tensorrt.plan_cache import Activation, PlanStore
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.tuned import Measurement, OptimiseFor
from misgnet_runtime.log import current
from misgnet_runtime.storage.private import NoFolderError
from misgnet_runtime.storage.schema import Sha256, Struct

PLANS = ("rtx", "tensorrt")  # kinds of engines that run a plan


class ChoiceScope(Struct, frozen=True):
    """The bundle and the device that a choice applies to."""

    # Digest of the manifest.
    bundle_sha256: Sha256
    # Name of the GPU and, on a board, the board's model.
    device: str
    # Such as "sm87".
    compute_capability: str
    # System and processor, such as "linux-aarch64".
    platform: str

    @classmethod
    def of(cls, bundle: Bundle, device: Device) -> ChoiceScope:
        return cls(bundle.digest(), device_name(device), device.compute_capability, this_platform())


class Variant(Struct, frozen=True):
    """What a compilation found out about one engine on the device."""

    # Name of the engine.
    engine: EngineName
    # INT8, FP16 or FP32: the lowest precision in it.
    precision: str
    # Why it is not used; empty: it passed the golden tiles and the gate.
    refused: str = ""
    # TensorRT and its version; empty: not used.
    library: str = ""
    # Digests of its plans, by the graph's file.
    plans: dict[FilePath, Sha256] = msgspec.field(default_factory=dict)
    # The optimization profiles of its plan, with what one inference of each costs.
    profiles: list[PlanProfile] = msgspec.field(default_factory=list)
    # Result of the golden tiles.
    golden: str = ""
    # Result of the F1 gate.
    gate: str = ""
    # Latency of one pair, with one stream and batch 1; null: not measured.
    ms_per_pair: float | None = None
    # Throughput with the streams and the batch for scenes; null: not measured.
    pairs_per_second: float | None = None
    # The measurements behind these figures.
    measurements: list[Measurement] = msgspec.field(default_factory=list)

    def describe(self) -> str:
        """Returns the results as one line."""
        if self.refused:
            return f"{self.engine} ({self.precision}) is not used: {self.refused}"
        parts = [self.golden, self.gate, self.library, *_kernels(self.profiles[:1])]
        if self.ms_per_pair is not None:
            parts.append(f"{self.ms_per_pair:.2f} ms for one pair")
        if self.pairs_per_second is not None:
            parts.append(f"{self.pairs_per_second:.1f} pairs/s for many pairs")
        return "; ".join(parts)


def _kernels(profiles: Iterable[PlanProfile]) -> Iterator[str]:
    for one in profiles:
        if one.kernels is not None:
            moved = "" if one.bytes_moved is None else f", {one.bytes_moved / 1e6:.1f} MB moved"
            yield f"{plural(one.kernels, 'kernel')}{moved} for a batch of {one.batches[1]}"


class Chosen(Struct, frozen=True):
    """The engine that was chosen for a workload."""

    engine: EngineName
    # Why it was chosen.
    why: str


class Choice(Struct, frozen=True):
    """The engines that a compilation chose on a device, and the results of all variants."""

    # Version of this format.
    format: int
    # ISO 8601, UTC.
    created: str
    # Bundle and device that the choice applies to.
    scope: ChoiceScope
    # For one pair at a time: by the latency with one stream and batch 1.
    latency: Chosen
    # For many pairs, such as scenes: by the throughput with the streams and the batch for scenes.
    throughput: Chosen
    # All variants, those that are not used included.
    variants: list[Variant]

    def chosen(self, optimise_for: OptimiseFor | None) -> Chosen:
        """Returns the engine for a workload; None: as for many pairs."""
        return self.latency if optimise_for == "latency" else self.throughput

    def lines(self) -> Iterator[str]:
        """Yields what was chosen, and why."""
        if self.latency == self.throughput:
            yield f"chosen: {self.latency.engine}: {self.latency.why}"
            return
        yield f"chosen for one pair: {self.latency.engine}: {self.latency.why}"
        yield f"chosen for many pairs: {self.throughput.engine}: {self.throughput.why}"


def precision_of(entry: EngineEntry) -> str:
    """Returns the lowest precision of an engine: "INT8", "FP16" or "FP32"."""
    return "INT8" if "int8" in entry.precision else "FP16" if "float16" in entry.precision else "FP32"


def kept_choice(bundle: Bundle) -> Choice | None:
    """Reads the choice for this bundle on this device; None if there is none. An unusable one is logged and ignored."""
    if not any(entry.kind in PLANS for entry in bundle.manifest.engines):
        return None
    try:
        store = PlanStore()
        if not store.has_choices():
            return None
        device = first_device(open_driver())
        scope = ChoiceScope.of(bundle, device)
        found = store.choice(scope, Choice)
        return None if found is None or found.scope != scope else _checked(found, bundle, store, device)
    except (NoFolderError, UnavailableError):
        return None
    except InputError as error:
        command = f"misgnet-run compile {shlex.quote(str(bundle.name))}"
        current().warning(f"the choice of an engine of bundle {bundle.name} is not used: {error}; run: {command}")
        return None


def _checked(choice: Choice, bundle: Bundle, store: PlanStore, device: Device) -> Choice:
    """Returns ``choice``; raises InputError if a chosen plan is no longer the one that was measured."""
    entries = {entry.name: entry for entry in bundle.manifest.engines}
    variants = {variant.engine: variant for variant in choice.variants}
    for name in {choice.latency.engine, choice.throughput.engine}:
        if name not in entries or name not in variants:
            raise InputError(f"it names {name}, which the bundle or the record does not have")
        active = store.active(slot_of(choice.scope.bundle_sha256, entries[name], device))
        if active is None or plans_of(active) != variants[name].plans:
            raise InputError(f"the plan of {name} is no longer the one that was measured")
        if (now := library_of(entries[name])) != variants[name].library:
            raise InputError(f"it was measured with {variants[name].library}, this machine has {now}")
    return choice


def plans_of(activation: Activation) -> dict[str, str]:
    """Returns the digests of the active plans, by the graph's file."""
    return {graph: record.sha256 for graph, record in activation.plans.items()}


def library_of(entry: EngineEntry) -> str:
    """Returns the installed library that runs a plan, and its version; raises UnavailableError if it is missing."""
    return f"{entry.kind} {vendor_version(load_vendor(entry.kind))}"

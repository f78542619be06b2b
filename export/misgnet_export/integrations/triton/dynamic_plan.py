"""Compiles a TensorRT plan for Triton on the server's GPU: its batcher sends any batch, so the plan has one profile."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import structs

from misgnet_runtime.bundle import Bundle, EngineEntry
from misgnet_runtime.bundle.golden import golden_of
from misgnet_runtime.engines.cuda import open_driver
from misgnet_runtime.engines.tensorrt import PlanOptions, check_options, compile_plan, dynamic_profile, open_plan
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.jobs.compile.progress import BuildProgress
from misgnet_runtime.jobs.compile.proof import prove_whole
from misgnet_runtime.log import current


@dataclass(frozen=True)
class ServedFile:
    """A file that Triton serves, and its engine's entry, for a plan with the batches of that plan."""

    data: bytes
    entry: EngineEntry


def is_dynamic(entry: EngineEntry) -> bool:
    """Returns whether the bundle's own plan accepts every batch up to its largest."""
    return not entry.on_device and any(low == 1 < high for low, _, high in (p.batches for p in entry.plan_profiles))


def why_not_here(entry: EngineEntry, largest: int) -> str | None:
    """Returns why this machine cannot compile the plan of ``entry`` for batches up to ``largest``; None if it can."""
    try:
        (capability,) = check_options(_options(largest))
    except UnavailableError as error:
        return f"a plan for all batches must be compiled where Triton runs it, and {error}"
    if entry.on_device and entry.compute_capabilities and capability not in entry.compute_capabilities:
        return f"it is for {', '.join(entry.compute_capabilities)}, but this GPU is {capability}"
    return None


def compile_dynamic(bundle: Bundle, entry: EngineEntry) -> ServedFile:
    """Compiles the graph of ``entry`` with one dynamic profile, and compares the plan with the golden tiles.

    Raises:
        GateFailed: The plan fails the golden tiles, or the F1 gate if the bundle has evaluation tiles.
        UnavailableError: TensorRT or a GPU is missing, or the plan cannot be opened.
        MisgnetError: TensorRT fails to build the plan.
    """
    interface = bundle.manifest.interface
    options, driver = _options(interface.max_batch), open_driver()
    with current().progress(f"per mille of {entry.name}") as bar:
        share = BuildProgress(entry.name, bar, current())
        plan = compile_plan(bundle.read(entry.graph), options, driver=driver, share=share)
    engine = open_plan(plan.data, "tensorrt", driver, compatibility=plan.compatibility)
    with ChangeDetector(engine, interface) as detector:
        line, _, _ = prove_whole(bundle, entry, detector, golden_of(bundle))
    current().info(f"{entry.name}: compiled for batches 1 to {interface.max_batch} on {engine.device}; {line}")
    (batches,) = options.profiles
    return ServedFile(plan.data, structs.replace(entry, batches=batches, profiles=[]))


def _options(largest: int) -> PlanOptions:
    return PlanOptions(vendor="tensorrt", profiles=(dynamic_profile(largest),))

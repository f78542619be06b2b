"""Finds out which engines of a bundle run on this machine, and which one "auto" selects."""

from __future__ import annotations

from dataclasses import dataclass, replace

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.bundle.results import EngineResult, engine_results
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.inference.choice import Choice
from misgnet_runtime.inference.selection import automatic, open_detector, ranked_here
from misgnet_runtime.inference.tuned import OptimiseFor, Setting, Tuned, Tuning


@dataclass(frozen=True, kw_only=True)
class EngineHere:
    """One engine of a bundle: what the bundle states about it, and whether it runs on this machine."""

    # Name of the engine.
    name: str
    # Such as int8 or float32.
    precision: str
    # Whether encoder and head can be run separately.
    split: bool
    # The GPUs and the platform, or the CPU features, that it was made for, as text.
    made_for: str
    # F1 of the changed class, 0 to 1; null: not measured, as for the next two.
    f1: float | None
    # F1 as a share of the float model's.
    f1_ratio: float | None
    # Points of F1 that it is below the float model.
    f1_drop_points: float | None
    # Whether it opens here.
    runs: bool = False
    # The device that runs it; null: it does not run here.
    device: str | None = None
    # Features that it lacks here.
    notes: tuple[str, ...] = ()
    # Settings that misgnet-run tune saved for many pairs; null: none.
    tuned: Setting | None = None
    # Why it does not run here, in a few words; null: it runs.
    reason: str | None = None
    # The same with what was found and what to do.
    detail: str | None = None


@dataclass(frozen=True)
class Selected:
    """The engine that auto selects."""

    # Name of the engine.
    engine: str
    # Why it is selected.
    reason: str


def engines_here(bundle: Bundle, tuning: Tuning | None) -> list[EngineHere]:
    """Opens each engine of ``bundle`` in turn, fastest first, and returns what was found."""
    results = engine_results(bundle)
    return [
        _engine_here(bundle, entry, results.get(entry.name, EngineResult(entry.name)), tuning)
        for entry in ranked_here(bundle)
    ]


def _engine_here(bundle: Bundle, entry: EngineEntry, result: EngineResult, tuning: Tuning | None) -> EngineHere:
    stated = EngineHere(
        name=entry.name, precision=entry.precision, split=entry.split is not None, made_for=_made_for(entry),
        f1=result.f1, f1_ratio=result.f1_ratio, f1_drop_points=result.f1_drop_points,
    )  # fmt: skip
    try:
        with open_detector(bundle, entry.name, ExecutionOptions(streams=1)) as (detector, _, _):
            device, notes = detector.engine.device, tuple(detector.engine.notes)
    except UnavailableError as error:
        return replace(stated, reason=error.short, detail=str(error))
    setting = tuning.setting(entry.name, "throughput") if tuning else None
    return replace(stated, runs=True, device=device, notes=notes, tuned=setting)


def _made_for(entry: EngineEntry) -> str:
    """Returns the GPUs and the platform of a plan, or the CPU features that the engine needs."""
    if entry.kind == "onnxruntime-cuda":
        return "any GPU that CUDA and onnxruntime-gpu support"
    gpus = ", ".join(entry.compute_capabilities)
    if entry.on_device:
        return f"{gpus or 'any GPU that TensorRT supports'}{'' if entry.platform == 'any' else f' on {entry.platform}'}"
    return f"{gpus} on {entry.platform}" if gpus else " or ".join(entry.needs) or "any processor"


def selected_here(
    bundle: Bundle, engines: list[EngineHere], tuning: Tuning | None, choice: Choice | None
) -> dict[OptimiseFor, Selected]:
    """Returns the engine that auto selects by workload: latency and throughput; empty if no engine runs here."""
    runs = {engine.name for engine in engines if engine.runs}
    found: dict[OptimiseFor, Selected] = {}
    workloads: tuple[OptimiseFor, ...] = ("latency", "throughput")
    for workload in workloads:
        for entry, reason in automatic(bundle, Tuned(workload, tuning), choice):
            if entry.name in runs:
                found[workload] = Selected(entry.name, reason)
                break
    return found

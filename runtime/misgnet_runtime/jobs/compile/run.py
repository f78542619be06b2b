"""Compiles a bundle's plans on the device, verifies them, and activates those that pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import msgspec

from misgnet_runtime.accuracy.evaluation_tiles import evaluation_files
from misgnet_runtime.accuracy.limit import F1Limit, requested_limit
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.engines.cuda import CudaDriver, Device, first_device, open_driver
from misgnet_runtime.engines.onnx_file import read_graph
from misgnet_runtime.engines.tensorrt.bindings import load_vendor, vendor_version
from misgnet_runtime.engines.tensorrt.compatibility import free_bytes, mebibytes, this_platform
from misgnet_runtime.engines.tensorrt.open import slot_of
from misgnet_runtime.engines.tensorrt.plan_cache import FORMAT, Activation, PlanKey, PlanStore, Slot
from misgnet_runtime.errors import GateFailed, UnavailableError, UsageError
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.jobs.compile.candidate import Candidate, find_or_compile
from misgnet_runtime.jobs.compile.memory import BuilderMemory, builder_memory
from misgnet_runtime.jobs.compile.options import CompileOptions
from misgnet_runtime.jobs.compile.progress import BuildProgress, duration
from misgnet_runtime.jobs.compile.proof import Candidates, Proof, prove
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.options import check

_BUILD_HINT = "; build a bundle for this device with: misgnet-export build ... --target tensorrt --on-device"


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """A compilation run: the bundle, the options and the device."""

    bundle: Bundle
    options: CompileOptions
    driver: CudaDriver
    device: Device
    store: PlanStore
    log: EventLog
    limit: F1Limit | None  # of the gate; None: as recorded in the bundle


def compile_bundle(
    path: Path, options: CompileOptions, driver: CudaDriver | None = None, log: EventLog | None = None
) -> list[Activation]:
    """Compiles the plans of the bundle's engines, verifies each on this device, and activates those that pass.

    A failed engine does not stop the others. Its previously active plan stays active, unless that plan is the one that
    failed.

    Args:
        path: Bundle folder.
        options: The engines to compile, and how.
        driver: CUDA driver (default: opened here).
        log: Receives progress and warnings (default: the current log).

    Returns:
        The activated plans, one entry per engine.

    Raises:
        GateFailed: An engine fails the golden tiles or the gate.
        UnavailableError: This machine cannot compile or run an engine.
        InputError: The bundle does not match its manifest, or other users may have changed the plan cache.
        StorageError: A plan cannot be stored.
        UsageError: An engine has no plan to compile, or a limit was given and the bundle has no evaluation tiles.
    """
    check(options)
    limit = requested_limit(options.max_f1_drop, options.min_f1_ratio)
    log = log or current()
    bundle = read_bundle(path)
    if limit is not None and not evaluation_files(bundle):
        raise UsageError(
            f"bundle {bundle.name} has no evaluation tiles, so no gate runs here; build it with --ship-eval, or omit "
            "--min-f1-ratio and --max-f1-drop"
        )
    entries = _select_engines(bundle, options.engines)
    entries = _drop_unsupported(entries, _library_missing, options, log)
    driver = driver or open_driver()
    run = Compilation(
        bundle=bundle, options=options, driver=driver, device=first_device(driver), store=PlanStore(), log=log,
        limit=limit,
    )  # fmt: skip
    entries = _drop_unsupported(entries, partial(_device_mismatch, device=run.device), options, log, _BUILD_HINT)
    run.store.prepare()
    done: list[Activation] = []
    failed: list[GateFailed] = []
    with run.store.compiling():
        run.store.sweep()
        for entry in entries:
            try:
                done.append(_compile_engine(run, entry))
            except GateFailed as error:
                failed.append(error)
                log.warning(str(error), engine=entry.name)
    if failed:
        raise GateFailed("; ".join(map(str, failed)) + "; no plan that failed is used")
    return done


def _select_engines(bundle: Bundle, engines: tuple[str, ...]) -> list[EngineEntry]:
    plans = [entry for entry in bundle.manifest.engines if entry.kind in ("rtx", "tensorrt")]
    entries = [bundle.engine_entry(name) for name in engines] or [entry for entry in plans if entry.on_device]
    for entry in entries:
        if entry not in plans:
            raise UsageError(f"engine {entry.name} runs its graph directly; there is nothing to compile")
    if not entries:
        names = ", ".join(entry.name for entry in plans)
        hint = (
            f"select one with --engine to recompile it: {names}"
            if plans
            else "it has no TensorRT engines; build one with --target jetson-orin, for example"
        )
        raise UsageError(f"bundle {bundle.name} has no engine marked for compilation on the device; {hint}")
    return entries


def _drop_unsupported(
    entries: list[EngineEntry], problem: Callable[[EngineEntry], str | None], options: CompileOptions, log: EventLog,
    advice: str = "",
) -> list[EngineEntry]:  # fmt: skip
    """Returns the entries without a ``problem`` and logs the others.

    Raises:
        UnavailableError: An engine that was requested by name has a problem, or all engines have one.
    """
    problems = {entry.name: found for entry in entries if (found := problem(entry))}
    fitting = [entry for entry in entries if entry.name not in problems]
    if problems and (options.engines or not fitting):
        raise UnavailableError("; ".join(dict.fromkeys(problems.values())) + advice)
    for name, found in problems.items():
        log.info(f"engine {name} is skipped: {found}", engine=name)
    return fitting


def _library_missing(entry: EngineEntry) -> str | None:
    try:
        load_vendor(entry.kind)
    except UnavailableError as error:
        return str(error)
    return None


def _device_mismatch(entry: EngineEntry, device: Device) -> str | None:
    """Returns why this device cannot compile ``entry``; None if it can.

    Only engines marked for compilation on the device are restricted; a bundle's own plan can be recompiled anywhere.
    """
    supported, here = entry.compute_capabilities, this_platform()
    if entry.on_device and entry.platform not in ("any", here):
        return f"engine {entry.name} is for {entry.platform}, but this machine is {here}"
    if entry.on_device and supported and device.compute_capability not in supported:
        found = f"{device.compute_capability} ({device.name})"
        return f"engine {entry.name} is for {', '.join(supported)}, but this GPU is {found}"
    return None


def _compile_engine(run: Compilation, entry: EngineEntry) -> Activation:
    slot = slot_of(run.bundle.digest(), entry, run.device)
    candidates = {graph: _candidate(run, entry, graph) for graph in _graphs(entry)}
    run.log.info(f"{entry.name}: running the golden tiles and the gate on {run.device.name}", engine=entry.name)
    try:
        proof = prove(run.bundle, entry, candidates, run.driver, run.limit)
    except GateFailed:
        for candidate in candidates.values():
            run.store.discard(slot, candidate.key, candidate.sha256)
        raise
    return _use(run, slot, candidates, proof)


def _use(run: Compilation, slot: Slot, candidates: Candidates, proof: Proof) -> Activation:
    """Stores the new plans that passed verification, and makes them active."""
    created = timestamp()
    records = {graph: candidate.record(created) for graph, candidate in proof.candidates.items()}
    for graph, record in records.items():
        if not candidates[graph].cached:
            run.store.keep(record, candidates[graph].data)
    parity = proof.parity and msgspec.structs.replace(proof.parity, tiles=[])
    activation = Activation(
        format=FORMAT,
        created=created,
        slot=slot,
        device=proof.device,
        plans=records,
        golden=proof.golden,
        parity=parity,
    )
    run.store.activate(activation)
    return activation


def _graphs(entry: EngineEntry) -> list[str]:
    return [entry.graph, *([entry.split.encoder_graph, entry.split.head_graph] if entry.split else [])]


def _candidate(run: Compilation, entry: EngineEntry, graph: str) -> Candidate:
    name = entry.name if graph == entry.graph else f"{entry.name}, {PurePosixPath(graph).stem.rpartition('_')[2]}"
    data = read_graph(run.bundle.files, graph)
    key = _key(run, entry, hashlib.sha256(data).hexdigest())
    with current().progress(f"per mille of {name}") as bar:
        found = find_or_compile(
            run.store, key, data, run.driver, memory=partial(_memory, run),
            share=BuildProgress(name, bar, run.log), again=run.options.again,
        )  # fmt: skip
    for note in found.notes:
        run.log.info(f"{name}: {note}", engine=entry.name)
    limits = f"workspace {mebibytes(found.memory.workspace_bytes)}, total {mebibytes(found.memory.builder_bytes)}"
    made = "compiled earlier" if found.cached else f"compiled in {duration(found.seconds)}, {limits}"
    run.log.info(f"{name}: {made}; {len(found.data) / 1e6:.1f} MB", engine=entry.name, seconds=found.seconds)
    return found


def _memory(run: Compilation) -> BuilderMemory:
    with run.driver.current():  # CUDA has allocated its own memory by then
        return builder_memory(free_bytes(run.driver, run.device), run.options.workspace_bytes)


def _key(run: Compilation, entry: EngineEntry, graph_sha256: str) -> PlanKey:
    return PlanKey(
        vendor=entry.kind, vendor_version=vendor_version(load_vendor(entry.kind)),
        compute_capability=run.device.compute_capability, platform=this_platform(), graph_sha256=graph_sha256,
        profiles=tuple(profile.batches for profile in entry.plan_profiles), workspace_bytes=run.options.workspace_bytes,
        optimization_level=run.options.optimization_level,
    )  # fmt: skip

"""Compiles a bundle's plans on the device, activates those that pass their checks, and chooses among them."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from misgnet_runtime.accuracy.evaluation_tiles import evaluation_files
from misgnet_runtime.accuracy.limit import F1Limit, requested_limit
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.engines.cuda import CudaDriver, Device, first_device, open_driver
from misgnet_runtime.engines.onnx_file import read_graph
from misgnet_runtime.engines.tensorrt.bindings import load_vendor, vendor_version
from misgnet_runtime.engines.tensorrt.compatibility import device_name, free_bytes, mebibytes, this_platform
from misgnet_runtime.engines.tensorrt.open import slot_of
from misgnet_runtime.engines.tensorrt.plan_cache import FORMAT, Activation, PlanKey, PlanStore, Slot
from misgnet_runtime.errors import GateFailed, InputError, MisgnetError, UnavailableError, UsageError
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.inference.choice import Choice, ChoiceScope
from misgnet_runtime.inference.comparison import check_minutes
from misgnet_runtime.inference.tuned import kept
from misgnet_runtime.jobs.compile.candidate import Candidate, find_or_compile
from misgnet_runtime.jobs.compile.choose import Variants, choose_engines
from misgnet_runtime.jobs.compile.memory import BuilderMemory, builder_memory
from misgnet_runtime.jobs.compile.options import CompileOptions
from misgnet_runtime.jobs.compile.progress import BuildProgress, duration
from misgnet_runtime.jobs.compile.proof import Candidates, Proof, prove
from misgnet_runtime.jobs.compile.select import (
    BUILD_HINT,
    device_mismatch,
    drop_unsupported,
    library_missing,
    of_precision,
    plans_in,
    select_engines,
)
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.options import check


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


class Compiled(NamedTuple):
    """Result of a compilation run."""

    # The activated plans, one entry per engine.
    activations: list[Activation]
    # The engines that "auto" takes on this device.
    choice: Choice


def compile_bundle(
    path: Path, options: CompileOptions, driver: CudaDriver | None = None, log: EventLog | None = None
) -> Compiled:
    """Compiles the plans of the bundle's engines, activates those that pass on this device, and chooses the fastest.

    An engine that fails does not stop the others, and is an error only if it was requested by name or none passes. Its
    previously active plan stays active, unless that plan is the one that failed. Plans that an earlier run activated
    take part in the choice.

    Args:
        path: Bundle folder.
        options: The engines to compile, and how.
        driver: CUDA driver (default: opened here).
        log: Receives progress and warnings (default: the current log).

    Raises:
        GateFailed: A requested engine fails the golden tiles or the gate, or all do.
        UnavailableError: This machine cannot compile or run a requested engine, or any.
        InputError: The bundle does not match its manifest, or other users may have changed the plan cache.
        StorageError: A plan cannot be stored.
        UsageError: An engine has no plan to compile, or not in the requested precision; or a limit was given and the
            bundle has no evaluation tiles.
    """
    check(options)
    check_minutes(options.minutes)
    limit = requested_limit(options.max_f1_drop, options.min_f1_ratio)
    log = log or current()
    bundle = read_bundle(path)
    if limit is not None and not evaluation_files(bundle):
        raise UsageError(
            f"bundle {bundle.name} has no evaluation tiles, so no gate runs here; build it with --ship-eval, or omit "
            "--min-f1-ratio and --max-f1-drop"
        )
    entries = select_engines(bundle, options)
    entries = drop_unsupported(entries, library_missing, options, log)
    driver = driver or open_driver()
    run = Compilation(
        bundle=bundle, options=options, driver=driver, device=first_device(driver), store=PlanStore(), log=log,
        limit=limit,
    )  # fmt: skip
    entries = drop_unsupported(entries, partial(device_mismatch, device=run.device), options, log, BUILD_HINT)
    run.store.prepare()
    with run.store.compiling():
        run.store.sweep()
        passed, failed = _compile_engines(run, entries)
        choice = _choose(run, passed, failed) if passed else None
    if failed and (options.engines or choice is None):
        raise _failure(failed.values())
    assert choice  # engines that neither passed nor failed do not exist
    return Compiled(list(passed.values()), choice)


def _compile_engines(
    run: Compilation, entries: list[EngineEntry]
) -> tuple[dict[str, Activation], dict[str, MisgnetError]]:
    """Returns the activations of the engines that passed, and the errors of the others, by engine."""
    passed: dict[str, Activation] = {}
    failed: dict[str, MisgnetError] = {}
    for entry in entries:
        try:
            passed[entry.name] = _compile_engine(run, entry)
        except (InputError, UsageError):  # a damaged bundle, a full disk: not the engine's fault
            raise
        except MisgnetError as error:
            failed[entry.name] = error
            run.log.warning(f"{entry.name} is not used: {error}", engine=entry.name)
    return passed, failed


def _failure(errors: Iterable[MisgnetError]) -> MisgnetError:
    """Returns one error for all engines that failed: a failed gate if there is one, else that of the first engine."""
    errors = list(errors)
    gate = next((error for error in errors if isinstance(error, GateFailed)), None)
    text = "; ".join(map(str, errors))
    return type(gate or errors[0])(f"{text}; no plan that failed is used" if gate else text)


def _choose(run: Compilation, passed: dict[str, Activation], failed: dict[str, MisgnetError]) -> Choice:
    """Chooses among the plans that passed now and those that an earlier run activated, and keeps the choice."""
    entries = {entry.name: entry for entry in run.bundle.manifest.engines}
    earlier = {
        entry.name: found
        for entry in of_precision(plans_in(run.bundle), run.options)
        if entry.name not in passed.keys() | failed.keys() and (found := _activated_earlier(run, entry))
    }
    variants = Variants(
        bundle=run.bundle, passed=[(entries[name], found) for name, found in (passed | earlier).items()],
        refused=[(entries[name], str(error)) for name, error in failed.items()],
        option="" if run.options.choose == "fastest" else f"--choose {run.options.choose}",
    )  # fmt: skip
    choice = choose_engines(variants, ChoiceScope.of(run.bundle, run.device), 60 * run.options.minutes, run.log)
    run.store.keep_choice(choice.scope, choice)
    _warn_if_tuned(run, choice)
    return choice


def _warn_if_tuned(run: Compilation, choice: Choice) -> None:
    """Logs a warning if a saved tuning names other engines: it takes precedence over the choice."""
    tuning = kept(run.bundle)
    if tuning and (tuning.latency, tuning.throughput) != (choice.latency.engine, choice.throughput.engine):
        names = " and ".join(dict.fromkeys((tuning.latency, tuning.throughput)))
        run.log.warning(
            f"--engine auto still takes {names}, measured fastest by misgnet-run tune on {tuning.created}; to measure "
            f"all engines again, run: misgnet-run tune {shlex.quote(str(run.bundle.name))}"
        )


def _activated_earlier(run: Compilation, entry: EngineEntry) -> Activation | None:
    """Returns the active plans of an engine if the installed TensorRT can run them."""
    try:
        active = run.store.active(slot_of(run.bundle.digest(), entry, run.device))
        version = vendor_version(load_vendor(entry.kind))
    except (InputError, UnavailableError):
        return None
    return active if active and all(one.key.vendor_version == version for one in active.plans.values()) else None


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
        device=device_name(run.device), compute_capability=run.device.compute_capability, platform=this_platform(),
        graph_sha256=graph_sha256,
        profiles=tuple(profile.batches for profile in entry.plan_profiles), workspace_bytes=run.options.workspace_bytes,
        optimization_level=run.options.optimization_level,
    )  # fmt: skip

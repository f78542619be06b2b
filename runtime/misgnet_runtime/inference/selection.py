"""Which engine of a bundle runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import msgspec

from misgnet_runtime.bundle.fields import EngineName
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import DEFAULT_EXECUTION, Engine, ExecutionOptions, open_engine_file
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.tuned import Goal, ResolvedOptions, Tuned
from misgnet_runtime.machine import describe_machine

# Kinds of engine, each with INT8 or without, the fastest first: plans for a GPU, graphs on a GPU (without kernels
# for INT8), INT8 on the CPU, float on the CPU.
_GPU = ("tensorrt", "rtx", "onnxruntime-cuda")
_FASTEST_FIRST = (
    ("tensorrt", True), ("tensorrt", False), ("rtx", True), ("rtx", False),
    ("onnxruntime-cuda", False), ("onnxruntime-cuda", True),
    ("openvino", True), ("onnxruntime", True), ("openvino", False), ("onnxruntime", False),
)  # fmt: skip

Runnable = TypeVar("Runnable")


class Opened(NamedTuple):
    """An open engine of a bundle as jobs work on it: its detector, which engine that is, and why it was taken."""

    detector: ChangeDetector
    entry: EngineEntry
    reason: str


@contextmanager
def open_detector(
    bundle: Bundle,
    engine: str = "auto",
    execution: ExecutionOptions = DEFAULT_EXECUTION,
    *,
    goal: Goal | None = None,
) -> Iterator[Opened]:
    """Open an engine of ``bundle``.

    Args:
        bundle: A bundle that was read.
        engine: The engine's name. "auto": the one that ``misgnet-run tune`` measured fastest here for ``goal``, else
            the first of :func:`ranked` that opens.
        execution: By default what was tuned for ``goal``, else all usable cores, as many streams as keep the device
            busy, and the caller's batch.
        goal: None: what was tuned is ignored.

    Raises:
        UnavailableError: No engine opens; with the reason of each.
        UsageError: The bundle has no engine of that name.
    """
    interface = bundle.manifest.interface

    def open_one(entry: EngineEntry, resolved: ExecutionOptions) -> Engine:
        return open_engine_file(entry, bundle.files, interface.max_batch, resolved)

    opened, resolved, entry, reason = open_chosen(bundle, open_one, engine, execution, goal=goal)
    with ChangeDetector(opened, interface, resolved.batch) as detector:
        yield Opened(detector, entry, reason)


def open_chosen(
    bundle: Bundle,
    open_one: Callable[[EngineEntry, ExecutionOptions], Runnable],
    engine: str,
    execution: ExecutionOptions,
    *,
    goal: Goal | None,
    usable: Callable[[EngineEntry], bool] = lambda _: True,
) -> tuple[Runnable, ExecutionOptions, EngineEntry, str]:
    """What ``open_one`` makes of an engine, how it is run, its entry, and why it was taken; see :func:`open_detector`.

    ``usable``: which engines "auto" may take.
    """
    tuned = Tuned.of(bundle, goal)

    def open_resolved(entry: EngineEntry) -> tuple[Runnable, ResolvedOptions]:
        resolved = tuned.resolve(entry, execution)
        return open_one(entry, resolved.execution), resolved

    ranked = [bundle.engine_entry(engine)] if engine != "auto" else filter(usable, tuned.order(ranked_here(bundle)))
    (opened, resolved), entry, reason = first_that_opens(list(ranked), open_resolved, engine, tuned.engine)
    return opened, resolved.execution, entry, f"{reason}{resolved.note}"


class Speed(msgspec.Struct, frozen=True):
    """Of what the build measured of one engine: image pairs a second, ``batch`` of them at once."""

    engine: EngineName
    batch: int
    pairs_per_second: float


def ranked_here(bundle: Bundle) -> list[EngineEntry]:
    """The bundle's engines, the fastest first. Raises InputError where the manifest's timings cannot be read."""
    return ranked(bundle.manifest.engines, measured_here(bundle))


def ranked(entries: list[EngineEntry], speeds: Mapping[str, float]) -> list[EngineEntry]:
    """Those on a GPU first, then by ``speeds``, pairs/s by engine, of those that have any; then by kind.

    Of one kind what was made for certain processors comes before what any will run.
    """

    def place(entry: EngineEntry) -> tuple[bool, float, int, bool]:
        kind = _FASTEST_FIRST.index((entry.kind, "int8" in entry.precision))
        return entry.kind not in _GPU, -speeds.get(entry.name, 0.0), kind, not entry.needs

    return sorted(entries, key=place)


def measured_here(bundle: Bundle) -> dict[str, float]:
    """Pairs/s by engine at batch 1 as the build measured them, if that was on a processor like this one."""
    there, here = bundle.manifest.machine, describe_machine()
    if any(there.get(key) != here.get(key) for key in ("processor", "model")):  # arm64 names the model only
        return {}
    return {speed.engine: speed.pairs_per_second for speed in measured_by_build(bundle) if speed.batch == 1}


def measured_by_build(bundle: Bundle) -> list[Speed]:
    """What the manifest says of its engines' speeds. Raises InputError where that cannot be read."""
    try:
        return msgspec.convert(bundle.manifest.latency.get("timings", []), list[Speed])
    except msgspec.ValidationError as error:
        raise InputError(f"bundle {bundle.name}: the manifest's timings cannot be read: {error}") from error


def first_that_opens(
    entries: list[EngineEntry], open_one: Callable[[EngineEntry], Runnable], asked: str, fastest: str | None = None
) -> tuple[Runnable, EngineEntry, str]:
    """What ``open_one`` makes of the first entry that runs here, the entry, and why it was taken.

    ``asked``: an engine's name, or "auto"; ``fastest``: the one that was measured fastest here, if any was.

    Raises:
        UnavailableError: None runs; with the reason of each.
    """
    refused: list[tuple[str, UnavailableError]] = []
    for entry in entries:
        try:
            opened = open_one(entry)
        except UnavailableError as error:
            refused.append((entry.name, error))
            continue
        if asked != "auto":
            return opened, entry, "as asked"
        if entry.name == fastest:
            return opened, entry, "measured fastest here"
        reasons = "".join(f"; {name} does not run: {error}" for name, error in refused)
        return opened, entry, f"fastest that runs here{reasons}"
    if len(refused) == 1:
        raise refused[0][1]
    raise UnavailableError("no engine runs here: " + "; ".join(f"{name}: {error}" for name, error in refused))

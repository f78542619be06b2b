"""Selects the engine of a bundle that runs on this machine, and opens it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from misgnet_runtime.bundle.fields import EngineName
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import DEFAULT_EXECUTION, Engine, ExecutionOptions, open_engine_file
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.tuned import OptimiseFor, ResolvedOptions, Tuned
from misgnet_runtime.machine import describe_machine

# (kind, is INT8), the fastest first: plans for a GPU, graphs on a GPU (ONNX Runtime has no INT8 kernels there), INT8 on
# the CPU, float on the CPU.
_GPU = ("tensorrt", "rtx", "onnxruntime-cuda")
_FASTEST_FIRST = (
    ("tensorrt", True), ("tensorrt", False), ("rtx", True), ("rtx", False),
    ("onnxruntime-cuda", False), ("onnxruntime-cuda", True),
    ("openvino", True), ("onnxruntime", True), ("openvino", False), ("onnxruntime", False),
)  # fmt: skip

Runnable = TypeVar("Runnable")
Yielded_co = TypeVar("Yielded_co", covariant=True)


class Opened(NamedTuple):
    """An open engine of a bundle."""

    detector: ChangeDetector
    entry: EngineEntry
    reason: str  # why this engine was selected


class EngineOpener(Protocol[Yielded_co]):
    """Opens an engine of a bundle for the length of a block; arguments as for :func:`open_detector`."""

    def __call__(
        self, bundle: Bundle, engine: str, execution: ExecutionOptions, /, *, optimise_for: OptimiseFor | None
    ) -> AbstractContextManager[Yielded_co]: ...


DetectorOpener = EngineOpener[Opened]


@contextmanager
def open_detector(
    bundle: Bundle,
    engine: str = "auto",
    execution: ExecutionOptions = DEFAULT_EXECUTION,
    *,
    optimise_for: OptimiseFor | None = None,
) -> Iterator[Opened]:
    """Opens an engine of ``bundle``.

    Args:
        bundle: An opened bundle.
        engine: The engine's name, or "auto": the first that opens of those that :func:`automatic` returns.
        execution: Requested options (default: those tuned for ``optimise_for``, else all usable cores, enough streams
            to keep the device busy, and the caller's batch).
        optimise_for: Latency or throughput; None ignores saved tunings.

    Raises:
        UnavailableError: No engine opens; the message has the reason for each.
        UsageError: The bundle has no engine of that name.
    """
    interface = bundle.manifest.interface

    def open_one(entry: EngineEntry, resolved: ExecutionOptions) -> Engine:
        return open_engine_file(entry, bundle.files, interface.max_batch, resolved)

    opened, resolved, entry, reason = open_chosen(bundle, open_one, engine, execution, optimise_for=optimise_for)
    with ChangeDetector(opened, interface, resolved.batch) as detector:
        yield Opened(detector, entry, reason)


def open_chosen(
    bundle: Bundle,
    open_one: Callable[[EngineEntry, ExecutionOptions], Runnable],
    engine: str,
    execution: ExecutionOptions,
    *,
    optimise_for: OptimiseFor | None,
    usable: Callable[[EngineEntry], bool] = lambda _: True,
) -> tuple[Runnable, ExecutionOptions, EngineEntry, str]:
    """Selects an engine and opens it with ``open_one``; arguments as for :func:`open_detector`.

    ``usable`` filters the engines that "auto" may select. Returns what ``open_one`` returned, the resolved options, the
    engine's entry, and why it was selected.
    """
    tuned = Tuned.of(bundle, optimise_for)

    def open_resolved(entry: EngineEntry) -> tuple[Runnable, ResolvedOptions]:
        resolved = tuned.resolve(entry, execution)
        return open_one(entry, resolved.execution), resolved

    if engine == "auto":
        candidates = [one for one in automatic(bundle, tuned) if usable(one.entry)]
    else:
        candidates = [Ranked(bundle.engine_entry(engine), "as requested")]
    (opened, resolved), entry, reason = first_that_opens(candidates, open_resolved)
    return opened, resolved.execution, entry, f"{reason}{resolved.note}"


class Ranked(NamedTuple):
    """An engine that may be selected."""

    entry: EngineEntry
    reason: str  # why it would be selected


def automatic(bundle: Bundle, tuned: Tuned) -> list[Ranked]:
    """Returns the engines that "auto" tries, in this order.

    First the engine that ``misgnet-run tune`` measured fastest on this machine, then those of :func:`ranked`: by the
    speeds that the build measured if its machine is like this one, else by kind.
    """
    speeds = measured_here(bundle)
    entries = tuned.order(ranked(bundle.manifest.engines, speeds))
    return [Ranked(entry, reason_for(entry, tuned.engine, speeds)) for entry in entries]


def reason_for(entry: EngineEntry, fastest: str | None, speeds: Mapping[str, float]) -> str:
    """Returns why "auto" selects an engine; ``fastest``: the engine that was measured fastest here, if any."""
    if entry.name == fastest:
        return "measured fastest here"
    measured = entry.kind not in _GPU and entry.name in speeds
    return "fastest that runs here" + ", as measured by the build on a processor like this one" * measured


class Speed(msgspec.Struct, frozen=True):
    """The throughput of one engine as the build measured it; other fields of the manifest's timings are ignored."""

    engine: EngineName
    batch: int  # image pairs per call
    pairs_per_second: float


def ranked_here(bundle: Bundle) -> list[EngineEntry]:
    """Returns the bundle's engines, fastest first; raises InputError if the manifest's timings cannot be read."""
    return ranked(bundle.manifest.engines, measured_here(bundle))


def ranked(entries: list[EngineEntry], speeds: Mapping[str, float]) -> list[EngineEntry]:
    """Returns ``entries``, fastest first: GPU engines first, then by ``speeds`` (pairs/s by engine), then by kind.

    Within a kind, engines for specific processors come before engines for any processor.
    """

    def rank(entry: EngineEntry) -> tuple[bool, float, int, bool]:
        kind = _FASTEST_FIRST.index((entry.kind, "int8" in entry.precision))
        return entry.kind not in _GPU, -speeds.get(entry.name, 0.0), kind, not entry.needs

    return sorted(entries, key=rank)


def measured_here(bundle: Bundle) -> dict[str, float]:
    """Returns the build's pairs/s by engine at batch 1, or {} if the build's machine is not :func:`alike`."""
    if not alike(bundle.manifest.machine, describe_machine()):
        return {}
    speeds: dict[str, float] = {}
    for speed in measured_by_build(bundle):
        if speed.batch == 1:
            speeds[speed.engine] = max(speed.pairs_per_second, speeds.get(speed.engine, 0.0))
    return speeds


def alike(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Returns whether engines rank equally by speed on two machines described by :func:`describe_machine`.

    They do if the processors have the same instruction sets for INT8 and BF16: these decide between engines, and a
    processor's name does not state them on a virtual machine. An arm64 board must also be of the same model.
    """
    return bool(here.get("features")) and all(
        there.get(key) == here.get(key) for key in ("architecture", "features", "model")
    )


def measured_by_build(bundle: Bundle) -> list[Speed]:
    """Reads the engines' throughput from the manifest; raises InputError if it cannot be read."""
    try:
        return msgspec.convert(bundle.manifest.latency.get("timings", []), list[Speed])
    except msgspec.ValidationError as error:
        raise InputError(f"bundle {bundle.name}: the manifest's timings cannot be read: {error}") from error


def first_that_opens(
    candidates: list[Ranked], open_one: Callable[[EngineEntry], Runnable]
) -> tuple[Runnable, EngineEntry, str]:
    """Opens the first of ``candidates`` that runs here; returns what ``open_one`` returned, the entry and the reason.

    Args:
        candidates: In order of preference.
        open_one: Opens an engine; UnavailableError moves on to the next one.

    Raises:
        UnavailableError: No engine runs; the message has the reason for each.
    """
    refused: list[tuple[str, UnavailableError]] = []
    for entry, reason in candidates:
        try:
            opened = open_one(entry)
        except UnavailableError as error:
            refused.append((entry.name, error))
            continue
        return opened, entry, reason + "".join(f"; {name} does not run: {error}" for name, error in refused)
    if len(refused) == 1:
        raise refused[0][1]
    raise UnavailableError("no engine runs here: " + "; ".join(f"{name}: {error}" for name, error in refused))

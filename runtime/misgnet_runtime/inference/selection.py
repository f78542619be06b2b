"""Selects the engine of a bundle that runs on this machine, and opens it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from misgnet_runtime.bundle.fields import EngineName
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import DEFAULT_EXECUTION, Engine, ExecutionOptions, open_engine_file
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.formatting import each_reason, not_here
from misgnet_runtime.inference.choice import PLANS, Choice, kept_choice
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.tuned import OptimiseFor, ResolvedOptions, Tuned
from misgnet_runtime.log import current
from misgnet_runtime.machine import describe_machine

# (kind, is INT8), the fastest first: plans for a GPU (their order by precision: _int8_first), graphs on a GPU (ONNX
# Runtime has no INT8 kernels there), INT8 on the CPU, float on the CPU.
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
        candidates = [one for one in automatic(bundle, tuned, kept_choice(bundle)) if usable(one.entry)]
    else:
        candidates = [Ranked(bundle.engine_entry(engine), "as requested")]
    started = time.monotonic()
    (opened, resolved), entry, reason = first_that_opens(candidates, open_resolved)
    seconds = time.monotonic() - started
    current().debug(f"opened engine {entry.name} in {seconds:.2f} s: {reason}", engine=entry.name, seconds=seconds)
    return opened, resolved.execution, entry, f"{reason}{resolved.note}"


class Ranked(NamedTuple):
    """An engine that may be selected."""

    entry: EngineEntry
    reason: str  # why it would be selected


def automatic(bundle: Bundle, tuned: Tuned, choice: Choice | None = None) -> list[Ranked]:
    """Returns the engines that "auto" tries, in this order.

    First the engine that ``misgnet-run tune`` measured fastest on this machine, then the one that ``misgnet-run
    compile`` chose on it (``choice``), then those of :func:`ranked`: by the speeds that the build measured if its
    machine is like this one, else by kind.
    """
    speeds = measured_here(bundle)
    chosen = choice.chosen(tuned.optimise_for).engine if choice else None
    entries = sorted(ranked(bundle.manifest.engines, speeds), key=lambda entry: entry.name != chosen)
    return [Ranked(entry, _reason(entry, tuned, chosen, speeds)) for entry in tuned.order(entries)]


def _reason(entry: EngineEntry, tuned: Tuned, chosen: str | None, speeds: Mapping[str, float]) -> str:
    if entry.name == chosen != tuned.engine:
        return "chosen by misgnet-run compile"
    return reason_for(entry, tuned.engine, speeds)


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

    Within a kind, engines for specific processors come before engines for any processor, and of two plans the one that
    moves fewer bytes.
    """

    def rank(entry: EngineEntry) -> tuple[bool, float, int, bool]:
        int8 = "int8" in entry.precision
        if entry.kind in PLANS and not _int8_first(entry, entries):
            int8 = not int8
        kind = _FASTEST_FIRST.index((entry.kind, int8))
        return entry.kind not in _GPU, -speeds.get(entry.name, 0.0), kind, not entry.needs

    return sorted(entries, key=rank)


def _int8_first(plan: EngineEntry, entries: list[EngineEntry]) -> bool:
    """Returns whether INT8 is expected to be faster than FP16 among the plans of the same kind and GPUs as ``plan``.

    A plan at batch 1 waits for memory, so the bytes that its kernels move decide, as listed by the builder. Where it
    listed none: TensorRT for RTX has few INT8 kernels, and none of its INT8 plans that were listed moved fewer bytes
    than FP16. TensorRT itself has more of them and lists kernels only on the device, where ``misgnet-run compile``
    measures; its INT8 plans come first until then.
    """
    moved: dict[bool, int | None] = {True: None, False: None}
    for entry in entries:
        if (entry.kind, entry.compute_capabilities, entry.platform) == (
            plan.kind, plan.compute_capabilities, plan.platform
        ):  # fmt: skip
            moved["int8" in entry.precision] = entry.plan_profiles[0].bytes_moved
    int8, float16 = moved[True], moved[False]
    return plan.kind == "tensorrt" if int8 is None or float16 is None else int8 < float16


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

    Logs those before it, with a short reason each, as one note.

    Args:
        candidates: In order of preference.
        open_one: Opens an engine; UnavailableError moves on to the next one.

    Raises:
        UnavailableError: No engine runs; the message has the reason for each.
    """
    refused: dict[str, UnavailableError] = {}
    for entry, reason in candidates:
        try:
            opened = open_one(entry)
        except UnavailableError as error:
            refused[entry.name] = error
            current().debug(f"{entry.name} does not run: {error}", engine=entry.name)
            continue
        if refused:
            current().info(not_here((name, error.short) for name, error in refused.items()))
        return opened, entry, reason
    if len(refused) == 1:
        raise next(iter(refused.values()))
    reasons = each_reason((name, str(error)) for name, error in refused.items())
    raise UnavailableError(f"no engine runs here: {reasons}")

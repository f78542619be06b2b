"""Selects the engines of a bundle to compile on this device."""

from __future__ import annotations

from collections.abc import Callable

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines.cuda import Device
from misgnet_runtime.engines.tensorrt.bindings import load_vendor
from misgnet_runtime.engines.tensorrt.compatibility import this_platform
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.inference.choice import PLANS, precision_of
from misgnet_runtime.jobs.compile.options import CompileOptions
from misgnet_runtime.log import EventLog

BUILD_HINT = "; build a bundle for this device with: misgnet-export build ... --target tensorrt --on-device"


def select_engines(bundle: Bundle, options: CompileOptions) -> list[EngineEntry]:
    """Returns the requested engines (default: those marked for compilation on the device), in the requested precision.

    Raises:
        UsageError: There is none, or a requested engine has no plan or another precision.
    """
    plans = plans_in(bundle)
    entries = [bundle.engine_entry(name) for name in options.engines] or [entry for entry in plans if entry.on_device]
    for entry in entries:
        if entry not in plans:
            raise UsageError(f"engine {entry.name} runs its graph directly; there is nothing to compile")
    if not entries:
        names = ", ".join(entry.name for entry in plans)
        hint = (
            f"misgnet-run tune finds the fastest of its plans; to recompile one, select it with --engine: {names}"
            if plans
            else "it has no TensorRT engines; build one with --target jetson-orin, for example"
        )
        raise UsageError(f"bundle {bundle.name} has no engine marked for compilation on the device; {hint}")
    fitting = of_precision(entries, options)
    if not fitting or (options.engines and fitting != entries):
        found = ", ".join(f"{entry.name} ({precision_of(entry)})" for entry in entries)
        what = "--engine requests" if options.engines else "the bundle has nothing to compile here but"
        raise UsageError(f"--choose is {options.choose}, but {what} {found}; choose another precision, or fastest")
    return fitting


def plans_in(bundle: Bundle) -> list[EngineEntry]:
    """Returns the engines that run a plan."""
    return [entry for entry in bundle.manifest.engines if entry.kind in PLANS]


def of_precision(entries: list[EngineEntry], options: CompileOptions) -> list[EngineEntry]:
    """Returns the entries in the precision that ``--choose`` names."""
    return [entry for entry in entries if options.choose in ("fastest", precision_of(entry).lower())]


def drop_unsupported(
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


def library_missing(entry: EngineEntry) -> str | None:
    try:
        load_vendor(entry.kind)
    except UnavailableError as error:
        return str(error)
    return None


def device_mismatch(entry: EngineEntry, device: Device) -> str | None:
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

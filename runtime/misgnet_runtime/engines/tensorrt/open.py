"""Opens the plan of an engine: the plan that was compiled and verified here, else the bundle's own plan."""

from __future__ import annotations

import shlex
from pathlib import Path

from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.engines.base import Engine
from misgnet_runtime.engines.cuda import CudaDriver, Device, first_device, open_driver
from misgnet_runtime.engines.tensorrt.bindings import load_vendor
from misgnet_runtime.engines.tensorrt.compatibility import PlanCompatibility, device_name, this_platform
from misgnet_runtime.engines.tensorrt.engine import open_plan
from misgnet_runtime.engines.tensorrt.plan_cache import PlanRecord, PlanStore, Slot
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.log import current
from misgnet_runtime.storage.private import NoFolderError

_NOT_COMPILED = "not compiled here yet"


def open_plan_of(
    entry: EngineEntry, files: CheckedFiles, streams: int, driver: CudaDriver | None = None,
    *, max_batch: int | None = None,
) -> Engine:  # fmt: skip
    """Opens the plan of ``entry``, or of the part (encoder or head) whose file the entry names.

    ``max_batch``: the largest batch that the engine accepts (default: the plan's largest).

    Raises:
        UnavailableError: The plan cannot run on this machine or was not compiled here; names the command that does.
        InputError: The plan is damaged, or is in a directory that other users can write to.
    """
    load_vendor(entry.kind)
    driver = driver or open_driver()
    command, device = compile_command(files.name, entry.name), first_device(driver)
    if found := _compiled_here(entry, files, device, command):
        compatibility, data = found[0].compatibility, found[1]
    elif entry.on_device:
        if elsewhere := _compiled_elsewhere(entry, files, device):
            raise UnavailableError(f"{elsewhere}; run: {command}", short=_NOT_COMPILED)
        raise UnavailableError(f"its plan must be compiled on the device; run there: {command}", short=_NOT_COMPILED)
    else:
        compatibility, data = _of_the_bundle(entry, files)
    return open_plan(
        data, entry.kind, driver, compatibility=compatibility, streams=streams, rebuild=command, max_batch=max_batch,
        keep_kernels=files.manifest_sha256 is not None,  # a build discards most plans that it opens
    )  # fmt: skip


def compile_command(bundle: Path, engine: str) -> str:
    return f"misgnet-run compile {shlex.quote(str(bundle))} --engine {shlex.quote(engine)}"


def slot_of(bundle_sha256: str, entry: EngineEntry, device: Device) -> Slot:
    return Slot(bundle_sha256, entry.name, device_name(device), device.compute_capability, this_platform())


def graph_of(entry: EngineEntry) -> str:
    """Returns the graph that the plan file of ``entry`` (the engine's, or that of a part) is compiled from."""
    graphs = {entry.file: entry.graph}
    if entry.split is not None:
        graphs |= {entry.split.encoder: entry.split.encoder_graph, entry.split.head: entry.split.head_graph}
    return graphs[entry.file]


def _compiled_here(
    entry: EngineEntry, files: CheckedFiles, device: Device, command: str
) -> tuple[PlanRecord, bytes] | None:
    """Returns the record and bytes of the plan compiled here, or None if the bundle's own plan is to be used."""
    if files.manifest_sha256 is None:  # a bundle that is still being built
        return None
    slot = slot_of(files.manifest_sha256, entry, device)
    try:
        store = PlanStore()
        active = store.active(slot)
        record = active.plans.get(graph_of(entry)) if active else None
        return None if record is None else (record, store.plan(record))
    except NoFolderError:
        return None
    except InputError as error:
        advice = f"run: {command}"
        if entry.on_device:
            raise InputError(
                f"the plan compiled here for engine {entry.name} is not used: {error}; {advice}"
            ) from error
        current().warning(f"engine {entry.name} uses the bundle's own plan: {error}; {advice}")
        return None


def _compiled_elsewhere(entry: EngineEntry, files: CheckedFiles, device: Device) -> str:
    """Returns that the plan was compiled on another device, as on a disk that was moved; empty if it was not."""
    if files.manifest_sha256 is None:
        return ""
    try:
        others = PlanStore().elsewhere(slot_of(files.manifest_sha256, entry, device))
    except InputError:
        return ""
    here = f"{device_name(device)} ({device.compute_capability})"
    return f"its plan was compiled on {' and on '.join(others)}, and this device is {here}" if others else ""


def _of_the_bundle(entry: EngineEntry, files: CheckedFiles) -> tuple[PlanCompatibility, bytes]:
    data = files.read(entry.file)
    compatibility = PlanCompatibility(
        vendor=entry.kind, vendor_version=entry.vendor_version, compute_capabilities=tuple(entry.compute_capabilities),
        platform=entry.platform, cuda_driver=entry.cuda_driver, plan_bytes=len(data),
    )  # fmt: skip
    return compatibility, data

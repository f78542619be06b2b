"""What a plan was built for, what a machine has, and whether the two fit.

No vendor API says beforehand whether a plan fits, and deserialising one runs native code: the manifest, or the record
of a plan that was compiled here, keeps this compatibility information, which is compared first.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from misgnet_runtime.engines.cuda.driver import CudaDriver, Device
from misgnet_runtime.engines.tensorrt.bindings import parse_version, same_version, vendor_version
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import architecture, available_memory


@dataclass(frozen=True, kw_only=True)
class PlanCompatibility:
    """What a plan is bound to: ``vendor`` is "rtx" or "tensorrt", capabilities are "sm86", ...

    ``cuda_driver``: the CUDA version of the driver that it was built with, empty where there was none;
    ``plan_bytes``: its size, which its weights take on the device; ``stream_bytes``: what each stream takes there
    besides, 0 where that is not known.
    """

    vendor: str
    vendor_version: str
    compute_capabilities: tuple[str, ...]
    platform: str
    cuda_driver: str = ""
    plan_bytes: int = 0
    stream_bytes: int = 0

    def memory_bytes(self, streams: int) -> int:
        """What it takes of the device at least."""
        return self.plan_bytes + streams * self.stream_bytes


@dataclass(frozen=True, kw_only=True)
class MachineCompatibility:
    """The vendor module, the GPU, its driver and the system that a plan would run on; memory in bytes."""

    vendor: str
    vendor_version: str
    compute_capability: str
    platform: str
    cuda_driver: str = ""
    free_bytes: int | None = None


def this_platform() -> str:
    """The system and processor, such as ``linux-x86_64`` or ``linux-aarch64``."""
    return f"{platform.system().lower()}-{architecture()}"


def this_machine(vendor: str, module: Any, driver: CudaDriver, device: Device) -> MachineCompatibility:
    """What is here. ``module``: the vendor's."""
    return MachineCompatibility(
        vendor=vendor, vendor_version=vendor_version(module), compute_capability=device.compute_capability,
        platform=this_platform(), cuda_driver=driver.version(), free_bytes=free_bytes(driver, device),
    )  # fmt: skip


def free_bytes(driver: CudaDriver, device: Device) -> int:
    """What may be taken of the device's memory; an integrated GPU has the processor's, as the system counts it."""
    system = available_memory() if device.integrated else None
    return driver.free_memory() if system is None else system


def check_plan_fits(
    plan: PlanCompatibility, machine: MachineCompatibility, streams: int = 1, rebuild: str | None = None
) -> None:
    """Raise UnavailableError, naming both sides and how to ``rebuild``, where the plan cannot run on the machine."""
    if misfit := _misfit(plan, machine):
        # A plan for RTX is rebuilt for the capability at hand; TensorRT always builds for its own GPU.
        target = f"rtx-{machine.compute_capability}" if plan.vendor == "rtx" else "tensorrt"
        command = rebuild or f"misgnet-export build ... --target {target}"
        raise UnavailableError(f"the plan does not fit this machine: {misfit}; rebuild with: {command}")
    needed, free = plan.memory_bytes(streams), machine.free_bytes
    if free is not None and needed > free:
        raise UnavailableError(
            f"the plan does not fit this machine now: with {streams} at once it takes at least {mebibytes(needed)} of "
            f"the GPU's memory, and {mebibytes(free)} are free; end what else uses it, or choose fewer --streams"
        )


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _misfit(plan: PlanCompatibility, machine: MachineCompatibility) -> str | None:
    if plan.vendor != machine.vendor:
        return f"it was built by {plan.vendor}, opened with {machine.vendor}"
    if plan.platform != machine.platform:
        return f"it was built on {plan.platform}, this is {machine.platform}"
    if not same_version(plan.vendor_version, machine.vendor_version):
        return f"it was built by {plan.vendor} {plan.vendor_version}, installed is {machine.vendor_version}"
    if machine.compute_capability not in plan.compute_capabilities:
        built_for = ", ".join(plan.compute_capabilities)
        return f"it was built for {built_for}, this GPU is {machine.compute_capability}"
    if plan.cuda_driver and parse_version(machine.cuda_driver) < parse_version(plan.cuda_driver):
        return f"it was built with a driver for CUDA {plan.cuda_driver}, this one is for CUDA {machine.cuda_driver}"
    return None

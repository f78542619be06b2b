"""What a plan was built for, what a machine has, and whether the two fit.

No vendor API says beforehand whether a plan fits, and deserialising one runs native code: the manifest
keeps these facts, and they are compared first.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import architecture
from misgnet_runtime.plans.vendor import same_version


@dataclass(frozen=True)
class PlanFacts:
    """What a plan is bound to: ``vendor`` is "rtx" or "tensorrt", capabilities are "sm86", ..."""

    vendor: str
    vendor_version: str
    compute_capabilities: tuple[str, ...]
    platform: str


@dataclass(frozen=True)
class MachineFacts:
    """The vendor module, the GPU and the system that a plan would run on."""

    vendor: str
    vendor_version: str
    compute_capability: str
    platform: str


def this_platform() -> str:
    """The system and processor, such as ``linux-x86_64`` or ``linux-aarch64``."""
    return f"{platform.system().lower()}-{architecture()}"


def check_plan_fits(plan: PlanFacts, machine: MachineFacts) -> None:
    """Raise UnavailableError, naming both sides and the rebuild, where the plan cannot run on the machine."""
    misfit = _misfit(plan, machine)
    if misfit:
        # A plan for RTX is rebuilt for the capability at hand; TensorRT always builds for its own GPU.
        target = f"rtx-{machine.compute_capability}" if plan.vendor == "rtx" else "tensorrt"
        raise UnavailableError(
            f"the plan does not fit this machine: {misfit}; rebuild with: misgnet-export build ... --target {target}"
        )


def _misfit(plan: PlanFacts, machine: MachineFacts) -> str | None:
    if plan.vendor != machine.vendor:
        return f"it was built by {plan.vendor}, opened with {machine.vendor}"
    if plan.platform != machine.platform:
        return f"it was built on {plan.platform}, this is {machine.platform}"
    if not same_version(plan.vendor_version, machine.vendor_version):
        return f"it was built by {plan.vendor} {plan.vendor_version}, installed is {machine.vendor_version}"
    if machine.compute_capability not in plan.compute_capabilities:
        built_for = ", ".join(plan.compute_capabilities)
        return f"it was built for {built_for}, this GPU is {machine.compute_capability}"
    return None

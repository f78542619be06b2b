"""What ``misgnet-run compile`` says of a plan that is used from now on."""

from __future__ import annotations

from typing import Any

from misgnet_runtime.engines.tensorrt.plan_cache import Activation


def line(activation: Activation) -> str:
    key = next(iter(activation.plans.values())).key
    gate = activation.parity.verdict.reason if activation.parity and activation.parity.verdict else "no gate was run"
    advice = "" if activation.parity else ": the bundle has no evaluation tiles (misgnet-export build --ship-eval)"
    return f"{activation.golden}; {gate}{advice}; in use with {key.vendor} {key.vendor_version} on {activation.device}"


def figures(activation: Activation) -> dict[str, Any]:
    """For a program."""
    return {
        "engine": activation.slot.engine,
        "device": activation.device,
        "plans": activation.plans,
        "golden": activation.golden,
        "parity": activation.parity,
    }

"""Implements ``misgnet-run compile``: TensorRT plans built on the machine that runs them. Cheap to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from misgnet_runtime.cli.options import BundlePath, takes_options
from misgnet_runtime.jobs.compile.options import CompileOptions
from misgnet_runtime.log import current

if TYPE_CHECKING:
    from misgnet_runtime.engines.tensorrt.plan_cache import Activation


@takes_options
def compile_plans(bundle: BundlePath, *, options: CompileOptions) -> None:
    """Compile TensorRT plans from the bundle's graphs on this machine, and use those that pass their checks.

    A plan is used once it reproduces the golden tiles and, if the bundle has evaluation tiles, passes the F1 gate
    here; otherwise the exit code is 3. Plans are stored outside the bundle, in $MISGNET_CACHE (default: misgnet in
    the user's cache), in a folder that only this user can write.
    """
    from misgnet_runtime.jobs.compile.run import compile_bundle

    for activation in compile_bundle(bundle, options):
        current().result([_line(activation)], **_figures(activation))


def _line(activation: Activation) -> str:
    """Returns the line that reports a plan now in use."""
    key = next(iter(activation.plans.values())).key
    gate = activation.parity.verdict.reason if activation.parity and activation.parity.verdict else "no gate was run"
    advice = "" if activation.parity else ": the bundle has no evaluation tiles (misgnet-export build --ship-eval)"
    return f"{activation.golden}; {gate}{advice}; in use with {key.vendor} {key.vendor_version} on {activation.device}"


def _figures(activation: Activation) -> dict[str, Any]:
    """Returns the fields of the result event."""
    return {
        "engine": activation.slot.engine,
        "device": activation.device,
        "plans": activation.plans,
        "golden": activation.golden,
        "parity": activation.parity,
    }

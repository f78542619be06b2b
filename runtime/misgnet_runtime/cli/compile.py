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
    """Compile the TensorRT plans of a bundle on this machine, and choose the fastest of those that pass their checks.

    A plan is used once it reproduces the golden tiles and, if the bundle has evaluation tiles, passes the F1 gate
    here. The plans that pass are timed in alternating rounds, for one pair and for many pairs, and --engine auto takes
    the fastest; where none is faster beyond the spread of the rounds, it takes FP16. The exit code is 3 if no plan
    passes, or one that --engine requests fails. Plans and figures are stored outside the bundle, in $MISGNET_CACHE
    (default: misgnet in the user's cache), in a folder that only this user can write; info shows them.
    """
    from misgnet_runtime.jobs.compile.run import compile_bundle
    from misgnet_runtime.measure.sensors.clocks import warn_if_clocks_float

    warn_if_clocks_float(current())
    activations, choice = compile_bundle(bundle, options)
    for activation in activations:
        current().result([_line(activation)], **_figures(activation))
    current().result(list(choice.lines()), choice=choice)


def _line(activation: Activation) -> str:
    """Returns the line that reports a plan that passed."""
    key = next(iter(activation.plans.values())).key
    gate = activation.parity.verdict.reason if activation.parity and activation.parity.verdict else "no gate was run"
    advice = "" if activation.parity else ": the bundle has no evaluation tiles (misgnet-export build --ship-eval)"
    return f"{activation.golden}; {gate}{advice}; ready with {key.vendor} {key.vendor_version} on {activation.device}"


def _figures(activation: Activation) -> dict[str, Any]:
    """Returns the fields of the result event."""
    return {
        "engine": activation.slot.engine,
        "device": activation.device,
        "plans": activation.plans,
        "golden": activation.golden,
        "parity": activation.parity,
    }

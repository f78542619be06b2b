"""``misgnet-run compile``. Cheap to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from misgnet_runtime.log import current

if TYPE_CHECKING:
    from misgnet_runtime.engines.tensorrt.plan_cache import Activation

_Names = Optional[list[str]]  # noqa: UP045 - typer on 3.10
_Number = Optional[int]  # noqa: UP045


def compile_plans(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    *,
    engine: Annotated[
        _Names,
        typer.Option("--engine", help="an engine, repeated for more", show_default="all to be compiled on the device"),
    ] = None,
    workspace: Annotated[
        _Number, typer.Option(min=1, help="MiB that one operator may take", show_default="a quarter of what is free")
    ] = None,
    optimization_level: Annotated[
        _Number, typer.Option(min=0, max=5, help="TensorRT's: how long it looks for faster kernels")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="also what was compiled with these options before")] = False,
) -> None:
    """Compile TensorRT plans from the bundle's graphs on the machine that runs them, and use those that pass.

    A plan is used once it answers the golden tiles and, if the bundle has evaluation tiles, passes the F1 gate here;
    else exit code 3. Plans lie outside the bundle ($MISGNET_CACHE, else misgnet in the user's cache), in a folder that
    only this user can write.
    """
    from misgnet_runtime.jobs.compile.run import CompileOptions, compile_bundle

    workspace_bytes = None if workspace is None else workspace << 20
    options = CompileOptions(tuple(engine or ()), workspace_bytes, optimization_level, again)
    for activation in compile_bundle(bundle, options):
        current().result([_line(activation)], **_figures(activation))


def _line(activation: Activation) -> str:
    """What is said of a plan that is used from now on."""
    key = next(iter(activation.plans.values())).key
    gate = activation.parity.verdict.reason if activation.parity and activation.parity.verdict else "no gate was run"
    advice = "" if activation.parity else ": the bundle has no evaluation tiles (misgnet-export build --ship-eval)"
    return f"{activation.golden}; {gate}{advice}; in use with {key.vendor} {key.vendor_version} on {activation.device}"


def _figures(activation: Activation) -> dict[str, Any]:
    """For a program."""
    return {
        "engine": activation.slot.engine,
        "device": activation.device,
        "plans": activation.plans,
        "golden": activation.golden,
        "parity": activation.parity,
    }

"""``misgnet-export build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_export.pipeline.request import PlacementChoice, RepairChoice, SelectionRule, Threshold
from misgnet_runtime.bundle.manifest import GateRule, InputForm, OutputForm
from misgnet_runtime.bundle.targets import ACCEPTED, parse_target
from misgnet_runtime.cli.app import out_console
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.log import current

_GATE_HELP = "what must stay within --max-f1-drop: the drop (point), or the upper end of its 95 % interval (upper)"
Gate = Annotated[GateRule, typer.Option(help=_GATE_HELP)]


def build(
    weights: Annotated[Path, typer.Argument(help="checkpoint: safetensors or any published MISGNet file")],
    calib: Annotated[Path, typer.Option(help="folder of A/ B/ label/ whose tiles calibrate INT8")],
    evaluation: Annotated[Path, typer.Option("--eval", help="folder of A/ B/ label/ that judges")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the bundle's folder")],
    val: Annotated[Path | None, typer.Option(help="folder of A/ B/ label/ for decisions; without it, defaults")] = None,
    target: Annotated[list[str] | None, typer.Option(help=f"{ACCEPTED}; may be repeated; without it cpu")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing bundle")] = False,
    tile: Annotated[int, typer.Option(help="tile size in pixels, a multiple of 32")] = 256,
    max_batch: Annotated[int, typer.Option(help="largest batch of the engines")] = 16,
    calib_tiles: Annotated[int, typer.Option(help="how many calibration tiles")] = 128,
    selection: Annotated[
        SelectionRule,
        typer.Option(help="calibration tiles that represent the set, drawn at random, or the first ones"),
    ] = "represent",
    observer: Annotated[
        str,
        typer.Option(help="ranges: auto (decided on --val), per-tensor, max, mse, entropy, 'percentile P'"),
    ] = "auto",
    observations: Annotated[
        Path | None, typer.Option(help="file of what calibration saw; used again for the same tiles and weights")
    ] = None,
    placement: Annotated[
        PlacementChoice,
        typer.Option(help="INT8 by the engine's rules, or for all that reads float activations, weights or not"),
    ] = "rules",
    repair: Annotated[
        RepairChoice,
        typer.Option(help="smoothing, rounding and bias correction: where INT8 loses too much on --val, or always"),
    ] = "auto",
    control_minutes: Annotated[
        float, typer.Option(help="time to find what must go back to float where INT8 loses too much; 0: do not")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="seed of the draw")] = 0,
    max_f1_drop: Annotated[float, typer.Option(help="allowed F1 drop in points; may be negative")] = 0.5,
    gate: Gate = "point",
    threshold: Annotated[
        str, typer.Option(help="probability above which a pixel is changed; tuned: the best on --val")
    ] = "0.5",
    input_form: Annotated[
        InputForm, typer.Option("--input", help="uint8 (raw NHWC images) or float32 (normalised NCHW)")
    ] = "uint8",
    output_form: Annotated[
        OutputForm, typer.Option("--output-form", help="probability, logits or mask")
    ] = "probability",
    bundle_version: Annotated[int, typer.Option(help="a number that only grows")] = 1,
    licence: Annotated[str, typer.Option(help="licence of the weights, for the manifest")] = "not stated",
    on_device: Annotated[
        bool,
        typer.Option(
            "--on-device",
            help="plans of tensorrt and rtx are left to misgnet-run compile where they run; Jetson's always",
        ),
    ] = False,
    ship_eval: Annotated[
        int, typer.Option(help="evaluation tiles in the bundle, for the gate on the device; they show their pixels")
    ] = 0,
    timing_cache: Annotated[Path | None, typer.Option(help="TensorRT's timing cache, read and written")] = None,
    split: Annotated[
        bool,
        typer.Option("--split", help="also encoder and head of each engine but BF16, for series of dates encoded once"),
    ] = False,
) -> None:
    """A checkpoint in; engines, manifest and evidence out, if INT8 keeps F1."""
    _need_compiler()
    from misgnet_export.pipeline.build import build as run
    from misgnet_export.pipeline.request import BuildRequest
    from misgnet_export.report import parity_table, stage_table, throughput_table

    request = BuildRequest(
        weights=weights, calib=calib, evaluation=evaluation, val=val, output=output, force=force,
        targets=tuple(dict.fromkeys(parse_target(t) for t in target or ["cpu"])),
        tile=tile, max_batch=max_batch, input_form=input_form, output_form=output_form,
        calib_tiles=calib_tiles, selection=selection, observer=observer, observations=observations,
        placement=placement, repair=repair, control_minutes=control_minutes, seed=seed, max_f1_drop=max_f1_drop,
        gate=gate, threshold=_threshold(threshold), bundle_version=bundle_version, licence=licence,
        timing_cache=timing_cache, split=split, on_device=on_device, ship_eval=ship_eval,
    )  # fmt: skip
    built = run(request, out_console)
    out_console.print(stage_table(built.stages))
    out_console.print(parity_table(built.draft.evidence.parity))
    out_console.print(throughput_table(built.draft.evidence.timings))
    current().result([f"bundle: {built.bundle}", f"report: {built.report}"])


def _threshold(text: str) -> Threshold:
    """UsageError for other words."""
    if text == "tuned":
        return "tuned"
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--threshold is '{text}'; it is a number between 0 and 1, or: tuned") from None


def _need_compiler() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import onnxsim  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"build needs {error.name}; install it with: pip install 'misgnet-export[export]'"
        ) from error

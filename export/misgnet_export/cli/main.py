"""``misgnet-export``: compile a trained MISGNet into a verified bundle, and prove a bundle again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_export.cli.sign import sign
from misgnet_export.integrations.wheelhouse import PlatformName
from misgnet_export.pipeline.request import PlacementChoice, RepairChoice, SelectionRule
from misgnet_runtime.bundle import GateRule, InputForm, Interface, OutputForm
from misgnet_runtime.bundle.targets import ACCEPTED, parse_target
from misgnet_runtime.cli import options as arguments
from misgnet_runtime.cli.app import err_console, make_app, out_console, run_app
from misgnet_runtime.errors import GateFailed, InputError, UnavailableError, UsageError
from misgnet_runtime.log import current
from misgnet_runtime.storage.atomic import refuse_existing
from misgnet_runtime.storage.lock import DEFAULT_TIMEOUT

app = make_app(
    "misgnet-export",
    "Compile a trained MISGNet into engines, proven against the float model. "
    "Exit codes: 2 usage, 3 a failed gate, 4 bad input, 5 a missing device or library.",
)

_GATE_HELP = "what must stay within --max-f1-drop: the drop (point), or the upper end of its 95 % interval (upper)"
_PROXY_HELP = "in the JUnit report an engine that passes only by proxy counts as passed [default: as skipped]"
Gate = Annotated[GateRule, typer.Option(help=_GATE_HELP)]


@app.callback()
def every_command(
    *,
    require_signature: arguments.RequireSignature = None,
    allow_older: arguments.AllowOlder = False,
    lock_timeout: arguments.LockTimeout = DEFAULT_TIMEOUT,
) -> None:
    """What all commands take, before the command or behind it."""


@app.command()
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

    interface = Interface(tile, max_batch, input_form, output_form)
    number, tuned = _threshold(threshold)
    targets = tuple(dict.fromkeys(parse_target(t) for t in target or ["cpu"]))
    request = BuildRequest(
        weights, calib, evaluation, val, targets, output, interface, force, calib_tiles, selection, observer,
        observations, placement, repair, control_minutes, seed, max_f1_drop, gate, number, bundle_version,
        licence, timing_cache, split, tuned, on_device, ship_eval,
    )  # fmt: skip
    built = run(request, out_console)
    out_console.print(stage_table(built.stages))
    out_console.print(parity_table(built.draft.evidence.parity))
    out_console.print(throughput_table(built.draft.evidence.timings))
    current().result([f"bundle: {built.bundle}", f"report: {built.report}"])


def _threshold(text: str) -> tuple[float, bool]:
    """The number, and whether it is to be tuned; UsageError for other words."""
    if text == "tuned":
        return 0.5, True
    try:
        return float(text), False
    except ValueError:
        raise UsageError(f"--threshold is '{text}'; it is a number between 0 and 1, or: tuned") from None


@app.command()
def parity(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by build")],
    evaluation: Annotated[Path, typer.Option("--eval", help="folder of A/ B/ label/ that judges")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the evidence as JSON")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="write a JUnit report for CI")] = None,
    max_f1_drop: Annotated[float | None, typer.Option(help="allowed F1 drop in points [default: the bundle's]")] = None,
    gate: Annotated[
        Optional[GateRule],  # noqa: UP045
        typer.Option(help="point or upper, as for build [default: the bundle's]"),
    ] = None,
    accept_proxy: Annotated[bool, typer.Option("--accept-proxy", help=_PROXY_HELP)] = False,
    force: Annotated[bool, typer.Option("--force", help="replace existing output files")] = False,
) -> None:
    """Prove an existing bundle again, against its own float graph; needs no torch."""
    from misgnet_export.pipeline.reparity import reparity, write_results
    from misgnet_export.report import parity_table

    outputs = [path for path in (json_file, junit_file) if path is not None]
    for path in outputs:
        refuse_existing(path, force)
    result = reparity(bundle, evaluation, max_f1_drop, gate, err_console)
    write_results(result, json_file, junit_file, accept_proxy=accept_proxy, force=force)
    out_console.print(parity_table(result))
    if not result.passed:
        raise GateFailed(result.failures)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by build")],
    picture: Annotated[
        Path | None, typer.Option("-o", "--output", help="draw the graphs' precision, .png or .svg")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="also the rules that decided, with their sources")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace an existing picture")] = False,
) -> None:
    """What is computed in INT8, FP16 and FP32 in each graph, and why: shares of the multiply-adds, block by block."""
    from misgnet_export.report.precision import block_table, draw_precision, rule_table, share_table
    from misgnet_runtime.bundle import read_bundle

    if picture is not None:
        _check_picture(picture, force)
    quantizations = [q for q in read_bundle(bundle).manifest.quantization if q.placement]
    if not quantizations:
        raise InputError(f"bundle {bundle} says nothing of its operators' precision; build it again")
    for quantization in quantizations:
        tables = [share_table(quantization), block_table(quantization), *([rule_table(quantization)] if why else [])]
        for table in tables:
            out_console.print(table)
    if picture is not None:
        draw_precision(quantizations, picture, force=force)
        current().result([f"picture: {picture}"])


@app.command()
def triton(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by build")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the model repository, a folder")],
    engine: Annotated[list[str] | None, typer.Option(help="may be repeated; without it all that fit")] = None,
    instances: Annotated[int | None, typer.Option(help="of each engine; on a GPU 2 without, on a CPU 1")] = None,
    queue_delay: Annotated[int, typer.Option(help="µs that a request waits for others to share a batch")] = 2000,
    force: Annotated[bool, typer.Option("--force", help="replace an existing repository")] = False,
) -> None:
    """The bundle's engines as a model repository for the Triton Inference Server."""
    from misgnet_export.integrations.triton.config import Serving
    from misgnet_export.integrations.triton.repository import write_repository

    written = write_repository(bundle, output, engine or [], Serving(instances, queue_delay), force=force)
    for name, why in written.left_out.items():
        current().info(f"left out: {name}: {why}")
    notes = (f"; {model.note}" if model.note else "" for model in written.models)
    lines = [f"{model.name}: backend {model.backend}{note}" for model, note in zip(written.models, notes, strict=True)]
    current().result([*lines, f"repository: {output}"])


@app.command()
def wheelhouse(
    platform: Annotated[PlatformName, typer.Option(help="the machine that installs from it")],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--output", help="its folder, which is filled further [default: wheelhouse-PLATFORM]"),
    ] = None,
    project: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="a checkout of this project, or its Git address [default: the one that runs]"),
    ] = None,
) -> None:
    """A folder of wheels for a machine without a network, and the list of them with the lines that install it."""
    from misgnet_export.integrations.wheelhouse import LIST, fill_wheelhouse, install_lines

    folder = output or Path(f"wheelhouse-{platform}")
    fill_wheelhouse(platform, folder, project, current().info)
    lines = [f"{len(list(folder.glob('*.whl')))} wheels and {LIST} in {folder}; there:", *install_lines(platform)]
    current().result(lines)


def _check_picture(path: Path, force: bool) -> None:
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"-o is {path}; the picture is a .png or .svg")
    refuse_existing(path, force)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnavailableError("the picture needs matplotlib; install it with: pip install matplotlib") from error


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


app.command()(sign)


def main() -> None:
    run_app(app)

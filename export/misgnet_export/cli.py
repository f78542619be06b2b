"""``misgnet-export``: compile a trained MISGNet into a verified bundle, and prove a bundle again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_runtime.console import err_console, make_app, out_console, run_app
from misgnet_runtime.errors import GateFailed, UnavailableError
from misgnet_runtime.manifest import GateRule, InputForm, Interface, OutputForm
from misgnet_runtime.outputs import refuse_existing
from misgnet_runtime.plans import parse_target

app = make_app(
    "misgnet-export",
    "Compile a trained MISGNet into engines, proven against the float model. "
    "Exit codes: 2 usage, 3 a failed gate, 4 bad input, 5 a missing device or library.",
)

_GATE_HELP = "what must stay within --max-f1-drop: the drop (point), or the upper end of its 95 % interval (upper)"
Gate = Annotated[GateRule, typer.Option(help=_GATE_HELP)]


@app.command()
def build(
    weights: Annotated[Path, typer.Argument(help="checkpoint: safetensors or any published MISGNet file")],
    calib: Annotated[Path, typer.Option(help="folder of A/ B/ label/ whose tiles calibrate INT8")],
    evaluation: Annotated[Path, typer.Option("--eval", help="folder of A/ B/ label/ that judges")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the bundle's folder")],
    val: Annotated[Path | None, typer.Option(help="folder of A/ B/ label/ for decisions; without it, defaults")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="cpu (the default), rtx-smNN,smNN... or tensorrt; may be repeated")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing bundle")] = False,
    tile: Annotated[int, typer.Option(help="tile size in pixels, a multiple of 32")] = 256,
    max_batch: Annotated[int, typer.Option(help="largest batch of the engines")] = 16,
    calib_tiles: Annotated[int, typer.Option(help="calibration tiles, drawn from the seed")] = 128,
    seed: Annotated[int, typer.Option(help="seed of the draw")] = 0,
    max_f1_drop: Annotated[float, typer.Option(help="allowed F1 drop in points; may be negative")] = 0.5,
    gate: Gate = "point",
    threshold: Annotated[float, typer.Option(help="probability above which a pixel is changed")] = 0.5,
    input_form: Annotated[
        InputForm, typer.Option("--input", help="uint8 (raw NHWC images) or float32 (normalised NCHW)")
    ] = "uint8",
    output_form: Annotated[
        OutputForm, typer.Option("--output-form", help="probability, logits or mask")
    ] = "probability",
    bundle_version: Annotated[int, typer.Option(help="a number that only grows")] = 1,
    licence: Annotated[str, typer.Option(help="licence of the weights, for the manifest")] = "not stated",
    timing_cache: Annotated[Path | None, typer.Option(help="TensorRT's timing cache, read and written")] = None,
) -> None:
    """A checkpoint in; engines, manifest and evidence out, if INT8 keeps F1."""
    _need_compiler()
    from misgnet_export.build import build as run
    from misgnet_export.report import parity_table, stage_table, throughput_table
    from misgnet_export.request import BuildRequest

    interface = Interface(tile, max_batch, input_form, output_form)
    request = BuildRequest(
        weights, calib, evaluation, val, tuple(dict.fromkeys(parse_target(t) for t in target or ["cpu"])), output,
        interface, force, calib_tiles, seed, max_f1_drop, gate, threshold, bundle_version, licence, timing_cache,
    )  # fmt: skip
    built = run(request, out_console)
    out_console.print(stage_table(built.stages))
    out_console.print(parity_table(built.draft.evidence.parity))
    out_console.print(throughput_table(built.draft.evidence.timings))
    out_console.print(f"bundle: {built.bundle}\nreport: {built.report}", soft_wrap=True, highlight=False)


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
    force: Annotated[bool, typer.Option("--force", help="replace existing output files")] = False,
) -> None:
    """Prove an existing bundle again, against its own float graph; needs no torch."""
    from misgnet_export.reparity import reparity, write_results
    from misgnet_export.report import parity_table

    outputs = [path for path in (json_file, junit_file) if path is not None]
    for path in outputs:
        refuse_existing(path, force)
    result = reparity(bundle, evaluation, max_f1_drop, gate, err_console)
    write_results(result, json_file, junit_file)
    out_console.print(parity_table(result))
    if not result.passed:
        raise GateFailed(result.failures)


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


def main() -> None:
    run_app(app)


if __name__ == "__main__":
    main()

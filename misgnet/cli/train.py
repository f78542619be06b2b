"""Implements ``misgnet train``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal, Optional

import typer

from misgnet.cli.options import Device, TileSide, need_torch
from misgnet.cli.training_display import TrainingDisplay
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current
from misgnet_runtime.raster.dataset import TileSet

_START, _LOSS, _DATA, _RUN = "Start", "Loss", "Augmentation", "Run"
_QAT = "Quantization-aware fine-tuning"
_QAT_RATE = 1e-5  # the weights are trained already; fine-tuning moves them only by about one INT8 step
_QAT_HELP = (
    "Fine-tune with fake quantization like the INT8 graph of this bundle, which must be built from --init (default: no "
    "fake quantization). Batch norms are frozen. Use few steps (--steps 300) and a learning rate of 1e-5 or less, then "
    "build a bundle from the result."
)
_QAT_GRAPH_HELP = "INT8 graph of the bundle to imitate: cpu, openvino or tensorrt (default: the only one, or cpu)."


class FreezePart(str, Enum):
    """Choices of ``--freeze``; an enum because typer does not support lists of literals."""

    encoder = "encoder"
    norms = "norms"


def train(
    *,
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with train/ and val/, each with A/, B/ and label/.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Resume the interrupted run in --output.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training tiles.")] = 150,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Stop after this many minutes (default: train for --epochs)."),
    ] = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Stop after this many steps (default: train for --epochs)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Tile pairs per step, summed over all processes.")] = 32,
    learning_rate: Annotated[
        float, typer.Option(help="Maximum of the learning-rate schedule (with --qat, the default is 1e-5).")
    ] = 4e-4,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 1e-4,
    warmup_epochs: Annotated[float, typer.Option(help="Duration of the linear warm-up in epochs.")] = 1.0,
    decay_power: Annotated[float, typer.Option(help="Power of the polynomial learning-rate decay.")] = 0.9,
    clip_norm: Annotated[float, typer.Option(help="Maximum norm of the gradient; 0 does not clip it.")] = 1.0,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights, reached after a warm-up.")] = 0.9999,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, tile order and augmentation.")] = 0,
    init: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="MISGNet checkpoint to start from (default: random weights).", rich_help_panel=_START),
    ] = None,
    encoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="PVTv2-B1 file trained on ImageNet to start the encoder from (default: random weights).",
            rich_help_panel=_START,
        ),
    ] = None,
    freeze: Annotated[
        Optional[list[FreezePart]],  # noqa: UP045
        typer.Option(
            help="Do not train the encoder, or the batch norms; may be repeated (default: train everything).",
            rich_help_panel=_START,
        ),
    ] = None,
    teacher: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Checkpoint whose predictions are an additional target (default: no teacher).", rich_help_panel=_START
        ),
    ] = None,
    distill: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Weight of the teacher's predictions in the loss (default: 1).", rich_help_panel=_START),
    ] = None,
    qat: Annotated[Optional[Path], typer.Option(help=_QAT_HELP, rich_help_panel=_QAT)] = None,  # noqa: UP045
    qat_graph: Annotated[Optional[str], typer.Option(help=_QAT_GRAPH_HELP, rich_help_panel=_QAT)] = None,  # noqa: UP045
    dice: Annotated[float, typer.Option(help="Weight of the Dice loss.", rich_help_panel=_LOSS)] = 1.0,
    focal: Annotated[float, typer.Option(help="Weight of the focal loss.", rich_help_panel=_LOSS)] = 0.5,
    focal_alpha: Annotated[
        float, typer.Option(help='Weight of the class "unchanged" in the focal loss.', rich_help_panel=_LOSS)
    ] = 0.2,
    focal_gamma: Annotated[float, typer.Option(help="Exponent of the focal loss.", rich_help_panel=_LOSS)] = 2.0,
    flip: Annotated[bool, typer.Option(help="Flip pairs at random.", rich_help_panel=_DATA)] = True,
    turn: Annotated[bool, typer.Option(help="Rotate pairs at random by quarter turns.", rich_help_panel=_DATA)] = True,
    swap: Annotated[bool, typer.Option(help="Swap the two dates at random.", rich_help_panel=_DATA)] = True,
    colour: Annotated[
        float, typer.Option(help="Strength of the colour jitter; 0 disables it.", rich_help_panel=_DATA)
    ] = 1.0,
    colour_ramp: Annotated[
        float,
        typer.Option(
            help="Share of the run (0 to 1) over which the colour jitter grows to full strength.",
            rich_help_panel=_DATA,
            show_default="1/3",
        ),
    ] = 1 / 3,
    crop: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Side in pixels of random crops at the start of the run, for faster steps (default: no crops).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    crop_share: Annotated[
        float, typer.Option(help="Share of the run (0 to 1) that uses --crop.", rich_help_panel=_DATA)
    ] = 0.6,
    tile: TileSide = 256,
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        typer.Option(
            help="Floating-point type; the guidance stays float32. auto uses bf16 if the hardware supports it.",
            rich_help_panel=_RUN,
        ),
    ] = "auto",
    device: Device = "auto",
    validate_every: Annotated[int, typer.Option(help="Epochs between validations.", rich_help_panel=_RUN)] = 1,
    save_minutes: Annotated[
        float, typer.Option(help="Minutes between saves of the state within an epoch.", rich_help_panel=_RUN)
    ] = 10.0,
    cache_gib: Annotated[float, typer.Option(help="Memory for decoded images in GiB.", rich_help_panel=_RUN)] = 4.0,
    workers: Annotated[int, typer.Option(help="Threads that read and augment tiles.", rich_help_panel=_RUN)] = 2,
    force: Annotated[bool, typer.Option("--force", help="Discard an existing run and start over.")] = False,
) -> None:
    """Train the network on tiles; the defaults are the published recipe.

    Writes best.safetensors (averaged weights), best_fp16.safetensors,
    last.safetensors, log.jsonl, curves.png, curves.svg, config.json, and
    state.safetensors, from which --resume continues an interrupted run.

    For several GPUs or processes:
    torchrun --nproc-per-node N -m misgnet train ...
    """
    need_torch()
    from misgnet import training
    from misgnet.devices import choose_device

    files = training.Start() if resume else training.Start(init, encoder, teacher, qat, qat_graph)
    given = {**context.params, "distill": distill if distill is not None else float(teacher is not None)}
    if qat and not resume and not _is_on_command_line(context, "learning_rate"):
        given["learning_rate"] = _QAT_RATE
        current().info(f"--qat uses learning rate {_QAT_RATE:g}; change it with --learning-rate")
    if workers < 1 or cache_gib < 0:
        raise UsageError(
            f"--workers is {workers} and --cache-gib is {cache_gib}; --workers must be 1 or more, --cache-gib 0 or more"
        )
    if distill and not teacher and not resume:
        raise UsageError("--distill requires a teacher; name its checkpoint with --teacher")
    recipe = _recipe(given)
    sets = TileSet.open(data / "train", tile), TileSet.open(data / "val", tile)
    chosen = choose_device(device)
    leading = os.environ.get("RANK", "0") == "0"
    if leading and files.qat and files.init:
        _warn_if_weights_differ(files.qat, files.init)
    with _stop_on_signal() as stop, TrainingDisplay(leading) as display:
        around: dict[str, Any] = {
            "device": chosen, "cache_bytes": int(cache_gib * 2**30), "workers": workers, "listen": display.show,
            "stopped": stop.is_set,
        }  # fmt: skip
        if resume:
            outcome = training.resume(*sets, output, _given_again(context), **around)
        else:
            outcome = training.train(*sets, output, recipe, files, force=force, **around)
    if leading:
        _report_end(output, outcome)
    if not outcome.finished:
        raise typer.Exit(130)


def _warn_if_weights_differ(bundle: Path, weights: Path) -> None:
    from misgnet.training.qat import different_weights_warning

    if text := different_weights_warning(bundle, weights):
        current().warning(text)


def _recipe(given: dict[str, Any]) -> Any:
    from misgnet.training.augmentation import Augmentation
    from misgnet.training.losses import LossWeights
    from misgnet.training.recipe import Recipe

    parts = {"loss": _made(LossWeights, given), "augmentation": _made(Augmentation, given)}
    return _made(Recipe, {**given, **parts, "freeze": _parts(given["freeze"])})


def _made(kind: Any, given: dict[str, Any]) -> Any:
    """Builds a dataclass from the options that have the names of its fields."""
    return kind(**{field.name: given[field.name] for field in fields(kind)})


def _parts(given: list[FreezePart] | None) -> tuple[str, ...]:
    return tuple(sorted({part.value for part in given or ()}))


def _given_again(context: typer.Context) -> dict[str, Any]:
    """Returns the settings on the command line that must equal those of the run to resume."""
    from misgnet.training.augmentation import Augmentation
    from misgnet.training.folder import Start
    from misgnet.training.losses import LossWeights
    from misgnet.training.recipe import Recipe

    names = [field.name for kind in (Recipe, LossWeights, Augmentation, Start) for field in fields(kind)]
    given = {name: context.params[name] for name in names if _is_on_command_line(context, name)}
    if "freeze" in given:
        given["freeze"] = _parts(given["freeze"])
    if given.get("precision") == "auto":
        del given["precision"]
    return given


def _is_on_command_line(context: typer.Context, name: str) -> bool:
    """Returns whether the option is on the command line, and not a default or an environment variable."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _report_end(output: Path, outcome: Any) -> None:
    if outcome.finished:
        text = f"best validation F1 {outcome.best_f1:.4f}: {output / 'best.safetensors'}"
    else:
        text = f"stopped after {plural(outcome.step, 'step')}; rerun the command with --resume to continue"
    current().result([text])


@contextmanager
def _stop_on_signal() -> Iterator[Event]:
    """Yields an event that is set by the first SIGINT (Ctrl-C) or SIGTERM, so that the run saves its state and stops.

    A second signal raises KeyboardInterrupt.
    """
    stop = Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

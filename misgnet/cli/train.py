"""``misgnet train``."""

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
from misgnet_runtime.cli.app import err_console
from misgnet_runtime.errors import UsageError
from misgnet_runtime.log import current
from misgnet_runtime.raster.dataset import TileSet

_START, _LOSS, _DATA, _RUN = "Start", "Loss", "Augmentation", "Run"
_QAT = "Quantization-aware fine-tuning"
_QAT_RATE = 1e-5  # the weights are good already, and are to move by steps of INT8 only


class FreezePart(str, Enum):
    """typer takes no list of literals."""

    encoder = "encoder"
    norms = "norms"


def train(
    *,
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="folder with train/ and val/, each with A/ B/ label/")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the run")],
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    epochs: Annotated[int, typer.Option(help="passes over the training tiles")] = 150,
    minutes: Annotated[Optional[float], typer.Option(help="end after so many minutes instead of --epochs")] = None,  # noqa: UP045
    steps: Annotated[Optional[int], typer.Option(help="end after so many steps instead of --epochs")] = None,  # noqa: UP045
    batch: Annotated[int, typer.Option(help="tile pairs a step, over all processes together")] = 32,
    learning_rate: Annotated[float, typer.Option(help="peak of the schedule; with --qat 1e-5 unless given")] = 4e-4,
    weight_decay: Annotated[float, typer.Option(help="AdamW's")] = 1e-4,
    warmup_epochs: Annotated[float, typer.Option(help="linear warm-up, in epochs")] = 1.0,
    decay_power: Annotated[float, typer.Option(help="power of the polynomial decay")] = 0.9,
    clip_norm: Annotated[float, typer.Option(help="largest norm of the gradient; 0: any")] = 1.0,
    ema: Annotated[float, typer.Option(help="decay of the averaged weights, which warms up to this")] = 0.9999,
    seed: Annotated[int, typer.Option(help="seed of weights, order and augmentation")] = 0,
    init: Annotated[
        Optional[Path], typer.Option(help="MISGNet checkpoint to start from", rich_help_panel=_START)  # noqa: UP045
    ] = None,
    encoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PVTv2-B1 ImageNet file to start the encoder from", rich_help_panel=_START),
    ] = None,
    freeze: Annotated[
        Optional[list[FreezePart]],  # noqa: UP045
        typer.Option(help="leave as it is: the encoder, the batch norms; may be repeated", rich_help_panel=_START),
    ] = None,
    teacher: Annotated[
        Optional[Path], typer.Option(help="checkpoint whose answers are learned too", rich_help_panel=_START)  # noqa: UP045
    ] = None,
    distill: Annotated[
        Optional[float], typer.Option(help="weight of the teacher's answers [default: 1]", rich_help_panel=_START)  # noqa: UP045
    ] = None,
    qat: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="bundle built from --init: fine-tune with fake quantization where its INT8 graph has it, and batch "
            "norms frozen. Short: --steps 300, and a learning rate of 1e-5 or less. Then build the result",
            rich_help_panel=_QAT,
        ),
    ] = None,
    qat_graph: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="which INT8 graph of the bundle: cpu, tensorrt [default: the only one, or cpu]", rich_help_panel=_QAT
        ),
    ] = None,
    dice: Annotated[float, typer.Option(help="weight of the Dice loss", rich_help_panel=_LOSS)] = 1.0,
    focal: Annotated[float, typer.Option(help="weight of the focal loss", rich_help_panel=_LOSS)] = 0.5,
    focal_alpha: Annotated[float, typer.Option(help='weight of "unchanged" in it', rich_help_panel=_LOSS)] = 0.2,
    focal_gamma: Annotated[float, typer.Option(help="its exponent", rich_help_panel=_LOSS)] = 2.0,
    flip: Annotated[bool, typer.Option(help="random flips", rich_help_panel=_DATA)] = True,
    turn: Annotated[bool, typer.Option(help="random quarter turns", rich_help_panel=_DATA)] = True,
    swap: Annotated[bool, typer.Option(help="random order of the dates", rich_help_panel=_DATA)] = True,
    colour: Annotated[float, typer.Option(help="strength of colour jitter; 0: none", rich_help_panel=_DATA)] = 1.0,
    colour_ramp: Annotated[
        float, typer.Option(help="share of the run in which the jitter grows", rich_help_panel=_DATA)
    ] = 1 / 3,
    crop: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="begin with random crops of so many pixels: quicker steps", rich_help_panel=_DATA),
    ] = None,
    crop_share: Annotated[float, typer.Option(help="share of the run with crops", rich_help_panel=_DATA)] = 0.6,
    tile: TileSide = 256,
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        typer.Option(
            help="autocast; the guidance stays float32. auto: bf16 where the hardware has it", rich_help_panel=_RUN
        ),
    ] = "auto",
    device: Device = "auto",
    validate_every: Annotated[int, typer.Option(help="epochs between validations", rich_help_panel=_RUN)] = 1,
    save_minutes: Annotated[
        float, typer.Option(help="save the state this often within long epochs", rich_help_panel=_RUN)
    ] = 10.0,
    cache_gib: Annotated[float, typer.Option(help="memory for decoded images, GiB", rich_help_panel=_RUN)] = 4.0,
    workers: Annotated[int, typer.Option(help="threads that read and augment", rich_help_panel=_RUN)] = 2,
    force: Annotated[bool, typer.Option("--force", help="train anew in place of an existing run")] = False,
) -> None:
    """Train on tiles; the defaults are the published recipe.

    Writes best.safetensors (averaged weights), best_fp16.safetensors, last.safetensors, log.jsonl, curves.png and
    .svg, config.json, and state.safetensors, from which --resume goes on after a kill. Several GPUs or processes:
    torchrun --nproc-per-node N -m misgnet train ...
    """
    need_torch()
    from misgnet import training
    from misgnet.devices import choose_device

    files = training.Start() if resume else training.Start(init, encoder, teacher, qat, qat_graph)
    given = {**context.params, "distill": distill if distill is not None else float(teacher is not None)}
    if qat and not resume and not _typed(context, "learning_rate"):
        given["learning_rate"] = _QAT_RATE
        err_console.print(f"--qat: learning rate {_QAT_RATE:g}; --learning-rate gives another", highlight=False)
    if workers < 1 or cache_gib < 0:
        raise UsageError(f"--workers is {workers} and --cache-gib {cache_gib}; they must be 1 or more, and 0 or more")
    if distill and not teacher and not resume:
        raise UsageError("--distill weighs a teacher's answers; name the checkpoint with --teacher")
    recipe = _recipe(given)
    sets = TileSet.open(data / "train", tile), TileSet.open(data / "val", tile)
    chosen = choose_device(device)
    leading = os.environ.get("RANK", "0") == "0"
    if leading and files.qat and files.init:
        _warn_of_other_weights(files.qat, files.init)
    with _stop_politely() as stop, TrainingDisplay(leading) as display:
        around: dict[str, Any] = {
            "device": chosen, "cache_bytes": int(cache_gib * 2**30), "workers": workers, "listen": display.show,
            "stopped": stop.is_set,
        }  # fmt: skip
        if resume:
            outcome = training.resume(*sets, output, _asked(context), **around)
        else:
            outcome = training.train(*sets, output, recipe, files, force=force, **around)
    if leading:
        _tell_end(output, outcome)
    if not outcome.finished:
        raise typer.Exit(130)


def _warn_of_other_weights(bundle: Path, weights: Path) -> None:
    from misgnet.training.qat import built_from_others

    if text := built_from_others(bundle, weights):
        current().warning(text)


def _recipe(given: dict[str, Any]) -> Any:
    from misgnet.training.augmentation import Augmentation
    from misgnet.training.losses import LossWeights
    from misgnet.training.recipe import Recipe

    parts = {"loss": _made(LossWeights, given), "augmentation": _made(Augmentation, given)}
    return _made(Recipe, {**given, **parts, "freeze": _parts(given["freeze"])})


def _made(kind: Any, given: dict[str, Any]) -> Any:
    """Makes a dataclass of the options that are named as its fields are."""
    return kind(**{field.name: given[field.name] for field in fields(kind)})


def _parts(given: list[FreezePart] | None) -> tuple[str, ...]:
    return tuple(sorted({part.value for part in given or ()}))


def _asked(context: typer.Context) -> dict[str, Any]:
    """What the command line names itself, of what a run is bound to."""
    from misgnet.training.augmentation import Augmentation
    from misgnet.training.folder import Start
    from misgnet.training.losses import LossWeights
    from misgnet.training.recipe import Recipe

    names = [field.name for kind in (Recipe, LossWeights, Augmentation, Start) for field in fields(kind)]
    asked = {name: context.params[name] for name in names if _typed(context, name)}
    if "freeze" in asked:
        asked["freeze"] = _parts(asked["freeze"])
    if asked.get("precision") == "auto":
        del asked["precision"]
    return asked


def _typed(context: typer.Context, name: str) -> bool:
    """Whether the command line gives the option itself."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _tell_end(output: Path, outcome: Any) -> None:
    if outcome.finished:
        text = f"best validation F1 {outcome.best_f1:.4f}: {output / 'best.safetensors'}"
    else:
        text = f"stopped after {outcome.step} steps; the same command with --resume goes on"
    current().result([text])


@contextmanager
def _stop_politely() -> Iterator[Event]:
    """Ctrl-C or SIGTERM ends a run after its step, with its state saved; a second one ends it at once."""
    asked = Event()

    def note(number: int, _: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

"""``misgnet``: the network itself. Train it, evaluate it, predict with it, draw synthetic tiles."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from misgnet_runtime.console import err_console, make_app, out_console, run_app
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.outputs import refuse_existing, replace_file, replace_folder

app = make_app(
    "misgnet",
    "MISGNet in PyTorch: train, evaluate, predict. Exit codes: 2 usage, 4 bad input, 5 a missing library.",
)
Output = Annotated[Path, typer.Option("-o", "--output", help="where the result goes")]
Force = Annotated[bool, typer.Option("--force", help="replace an existing result")]


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="folder with train/ and val/, each with A/ B/ label/")],
    output: Output,
    init: Annotated[Path | None, typer.Option(help="checkpoint to start from")] = None,
    epochs: Annotated[int, typer.Option(help="passes over the training tiles")] = 150,
    minutes: Annotated[float | None, typer.Option(help="end after so many minutes instead of --epochs")] = None,
    batch: Annotated[int, typer.Option(help="tile pairs a step")] = 16,
    learning_rate: Annotated[float, typer.Option(help="peak of the schedule")] = 3.5e-4,
    ema: Annotated[float, typer.Option(help="decay of the averaged weights")] = 0.998,
    crop: Annotated[int | None, typer.Option(help="train the first 60 % on random crops of so many pixels")] = None,
    tile: Annotated[int, typer.Option(help="tile size in pixels")] = 256,
    seed: Annotated[int, typer.Option(help="seed of weights, order and augmentation")] = 0,
    force: Force = False,
) -> None:
    """Train on tiles; writes best.safetensors (averaged weights), best_fp16.safetensors, config.json, log.jsonl."""
    _need_torch()
    from misgnet.training import StepReport, TrainConfig
    from misgnet.training import train as run
    from misgnet_runtime.tiles import TileSet

    refuse_existing(output, force)
    config = TrainConfig(learning_rate, batch=batch, epochs=epochs, minutes=minutes, ema=ema, crop=crop, seed=seed)
    sets = [TileSet.open(data / part, tile) for part in ("train", "val")]
    with Progress(console=err_console) as bars:
        bar = bars.add_task("training", total=1.0)

        def show(step: StepReport) -> None:
            bars.update(bar, completed=step.share, description=f"step {step.step}, loss {step.loss:.3f}")
            if step.val_f1 is not None:
                bars.console.print(f"step {step.step}: validation F1 {step.val_f1:.4f}", highlight=False)

        best = run(sets[0], sets[1], output, config, init, show)
    out_console.print(f"best validation F1 {best:.4f}: {output / 'best.safetensors'}", soft_wrap=True, highlight=False)


@app.command()
def evaluate(
    weights: Annotated[Path, typer.Argument(help="checkpoint: safetensors or any published MISGNet file")],
    data: Annotated[Path, typer.Argument(help="folder with A/ B/ label/")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the scores as JSON")] = None,
    tile: Annotated[int, typer.Option(help="tile size in pixels")] = 256,
    force: Force = False,
) -> None:
    """Precision, recall, F1, IoU, accuracy and kappa of the changed class, over all pixels together."""
    _need_torch()
    from misgnet.checkpoint import load_network
    from misgnet.evaluation import evaluate as run
    from misgnet_runtime.tiles import TileSet

    if json_file is not None:
        refuse_existing(json_file, force)
    network, tiles = load_network(weights), TileSet.open(data, tile)
    with Progress(console=err_console, transient=True) as bars:
        bar = bars.add_task("evaluate", total=len(tiles))
        scores = run(network, tiles, progress=lambda done, _: bars.update(bar, completed=done)).scores()
    table = Table("metric", "value", title=f"{len(tiles)} tiles of {len(tiles.sources)} images")
    for name, value in scores.items():
        table.add_row(name, "n/a" if value is None else f"{value:.4f}")
    out_console.print(table)
    if json_file is not None:
        with replace_file(json_file) as temporary:
            temporary.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


@app.command()
def predict(
    weights: Annotated[Path, typer.Argument(help="checkpoint: safetensors or any published MISGNet file")],
    before: Annotated[Path, typer.Argument(help="image of the earlier date, 8-bit RGB")],
    after: Annotated[Path, typer.Argument(help="image of the later date, same size")],
    output: Output,
    tile: Annotated[int, typer.Option(help="tile size in pixels")] = 256,
    threshold: Annotated[float, typer.Option(help="probability above which a pixel is changed")] = 0.5,
    force: Force = False,
) -> None:
    """The change mask of one image pair of any size, PNG of 0 and 255."""
    _need_torch()
    from misgnet.checkpoint import load_network
    from misgnet.evaluation import predict_pair
    from misgnet_runtime.images import check_mask_name, read_pair, write_mask

    check_mask_name(output)
    refuse_existing(output, force)
    network = load_network(weights)
    mask = predict_pair(network, *read_pair(before, after), tile) > threshold
    with replace_file(output) as temporary:
        write_mask(temporary, mask)
    out_console.print(f"{output}: {100 * mask.mean():.2f} % changed", soft_wrap=True, highlight=False)


@app.command()
def synthesize(
    output: Output,
    train_pairs: Annotated[int, typer.Option("--train", help="pairs in train/")] = 160,
    val_pairs: Annotated[int, typer.Option("--val", help="pairs in val/")] = 48,
    test_pairs: Annotated[int, typer.Option("--test", help="pairs in test/")] = 64,
    size: Annotated[int, typer.Option(help="side of a tile in pixels, a multiple of 32 from 64 on")] = 256,
    seed: Annotated[int, typer.Option(help="seed; the same seed draws the same bytes")] = 0,
    force: Force = False,
) -> None:
    """Draw synthetic tile pairs: train/, val/ and test/, each with A/ B/ label/."""
    from misgnet.synthetic import write_split

    refuse_existing(output, force)
    if size < 64 or size % 32:
        raise UsageError(f"--size is {size}; tiles are drawn at multiples of 32 from 64 on")
    with replace_folder(output) as folder, Progress(console=err_console, transient=True) as bars:
        for index, (name, count) in enumerate((("train", train_pairs), ("val", val_pairs), ("test", test_pairs))):
            if count:
                move = partial(_move, bars, bars.add_task(name, total=count))
                write_split(folder / name, count, 3 * seed + index + 1, size, move)
    out_console.print(f"{train_pairs} + {val_pairs} + {test_pairs} pairs: {output}", soft_wrap=True, highlight=False)


def _move(bars: Progress, bar: TaskID, done: int, _of: int) -> None:
    bars.update(bar, completed=done)


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            "this command needs PyTorch; install it with: pip install 'misgnet-export[train]'"
        ) from error


def main() -> None:
    run_app(app)


if __name__ == "__main__":
    main()

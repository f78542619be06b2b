"""Implements ``misgnet evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet.cli.options import Bar, Batch, Device, Force, Threshold, TileSide, Weights, check_numbers, need_torch
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.atomic import refuse_existing, replace_file, write_file
from misgnet_runtime.tables import plain_table, print_table

_MAPS_HELP = (
    "Write error maps of the worst tiles to this PNG file (default: the --json path with suffix .png, if given)."
)


def evaluate(
    *,
    weights: Weights,
    data: Annotated[Path, typer.Argument(help="Folder with A/, B/ and label/.")],
    json_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="Write the scores to this JSON file (default: no file)."),
    ] = None,
    maps: Annotated[Optional[Path], typer.Option("--maps", help=_MAPS_HELP)] = None,  # noqa: UP045
    worst: Annotated[int, typer.Option(help="Number of tiles in the error maps; 0 writes no maps.")] = 8,
    tile: TileSide = 256,
    batch: Batch = 4,
    threshold: Threshold = 0.5,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Compute precision, recall, F1, IoU, accuracy and kappa of the changed class over all pixels of a data set."""
    need_torch()
    from misgnet.checkpoint import load_network
    from misgnet.devices import choose_device
    from misgnet.evaluation import evaluate_with_worst
    from misgnet.evaluation.pictures import draw_worst

    check_numbers(tile, batch, threshold)
    maps = _maps_path(maps, json_file, worst)
    for path in (json_file, maps):
        if path is not None:
            refuse_existing(path, force)
    network = load_network(weights).to(choose_device(device))
    tiles = TileSet.open(data, tile)
    with Bar("evaluate") as bar:
        counts, shown = evaluate_with_worst(
            network, tiles, worst if maps else 0, batch=batch, threshold=threshold, progress=bar.move
        )
    _print_table(tiles, counts)
    if json_file is not None:
        write_file(json_file, (json.dumps(_content(tiles, counts, threshold), indent=2) + "\n").encode(), force=force)
    if maps is not None:
        with replace_file(maps, force=force) as temporary:
            draw_worst(shown).save(temporary, format="PNG")
        current().result([f"error maps of the {plural(len(shown), 'worst tile')}: {maps}"])


def _maps_path(maps: Path | None, json_file: Path | None, worst: int) -> Path | None:
    if worst < 0:
        raise UsageError(f"--worst is {worst}; it must be 0 or more")
    if worst == 0:
        return None
    if maps is not None and maps.suffix.lower() != ".png":
        raise UsageError(f"--maps is {maps}; error maps are PNG files: choose a name that ends in .png")
    return json_file.with_suffix(".png") if maps is None and json_file is not None else maps


def _content(tiles: TileSet, counts: Confusion, threshold: float) -> dict[str, float | int | None]:
    pixels = {name: getattr(counts, name) for name in ("tp", "fp", "fn", "tn")}
    return {
        **counts.scores(), **pixels, "tiles": len(tiles), "images": len(tiles.sources), "threshold": threshold,
    }  # fmt: skip


def _print_table(tiles: TileSet, counts: Confusion) -> None:
    table = plain_table(f"{plural(len(tiles), 'tile')} of {plural(len(tiles.sources), 'image pair')}")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in counts.scores().items():
        table.add_row(name, "n/a" if value is None else f"{value:.4f}")
    for name in ("tp", "fp", "fn", "tn"):
        table.add_row(f"{name}, pixels", f"{getattr(counts, name):,}")
    print_table(table)

"""Implements ``misgnet predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet.cli.options import (
    Bar,
    Batch,
    Device,
    Force,
    Output,
    Threshold,
    TileSide,
    Weights,
    check_numbers,
    need_torch,
)
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import format_change, plural
from misgnet_runtime.log import current

_FIRST_HELP = "Folder with A/ and B/, or the image of the earlier date (8-bit RGB)."
_AFTER_HELP = "Image of the later date, of the same size as BEFORE; omit if DATA is a folder."
_PROBABILITY_HELP = "Also write the probability of change as float32 TIFF, 0 to 1."
_OVERLAY_HELP = "Also write the later image with the changes drawn over it."


def predict(
    weights: Weights,
    data: Annotated[Path, typer.Argument(metavar="DATA|BEFORE", help=_FIRST_HELP)],
    after: Annotated[Optional[Path], typer.Argument(metavar="[AFTER]", help=_AFTER_HELP)] = None,  # noqa: UP045
    *,
    output: Output,
    probability: Annotated[bool, typer.Option("--probability", help=_PROBABILITY_HELP)] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help=_OVERLAY_HELP)] = False,
    tile: TileSide = 256,
    batch: Batch = 4,
    threshold: Threshold = 0.5,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Predict change masks (PNG, 0 and 255) for all pairs of a folder or for one pair.

    For a folder of pairs, -o is a folder; for one pair, -o is a file.
    Images may have any size: they are cut into tiles.
    Probabilities and overlays of a folder are written to OUT/probability
    and OUT/overlay, those of one pair next to the mask.
    """
    need_torch()
    from misgnet.checkpoint import load_network
    from misgnet.devices import choose_device
    from misgnet.evaluation.files import PredictOptions, predict_files, predict_folder

    check_numbers(tile, batch, threshold)
    if after is None and not data.is_dir():
        raise UsageError(f"{data} is not a folder; pass a folder with A/ and B/, or two images, BEFORE and AFTER")
    if after is not None and data.is_dir():
        raise UsageError(f"{data} is a folder, but {after} is also given; pass one folder or two images")
    options = PredictOptions(tile, batch, threshold, probability, overlay)
    _check_output(output, after is None, force)
    network = load_network(weights).to(choose_device(device))
    if after is None:
        with Bar("predict") as bar:
            done = predict_folder(network, data, output, options, force=force, progress=bar.move)
    else:
        done = predict_files(network, data, after, output, options, force=force)
    pairs = f"{plural(done.pairs, 'pair')}, " if after is None else ""
    changed = format_change(done.changed_share, 1.0)  # all pixels of plain images are valid
    current().result([f"{output}: {pairs}{changed}"])


def _check_output(output: Path, folder: bool, force: bool) -> None:
    """Raises UsageError for an unsuitable output path, before the weights are read."""
    from misgnet_runtime.raster.images import check_mask_name
    from misgnet_runtime.storage.atomic import refuse_existing

    if not folder:
        check_mask_name(output)
    refuse_existing(output, force)

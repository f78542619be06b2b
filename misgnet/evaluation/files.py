"""Writes predictions to files: masks for one pair or a folder of pairs, with optional probabilities and overlays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from misgnet.evaluation.pictures import overlay
from misgnet.evaluation.tiles import predict_pair
from misgnet.network import MISGNet
from misgnet_runtime.callables import Image, Progress
from misgnet_runtime.raster.dataset import common_size, find_sources
from misgnet_runtime.raster.images import check_mask_name, read_pair, write_mask
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_file, replace_folder

Writer = Callable[[Path], None]


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction."""

    tile: int = 256  # side of a tile, pixels
    batch: int = 4  # tiles per inference call
    threshold: float = 0.5  # a pixel with a higher probability is changed
    probability: bool = False  # also write the probability
    overlay: bool = False  # also write the later image with the changes drawn over it


@dataclass(frozen=True)
class Predicted:
    """Summary of the predictions that were written."""

    pairs: int
    changed_share: float  # share of changed pixels over all pairs, 0 to 1


def predict_folder(
    network: MISGNet, data: Path, output: Path, options: PredictOptions, *, force: bool = False,
    progress: Progress | None = None,
) -> Predicted:  # fmt: skip
    """Predicts all pairs in ``data``/A and ``data``/B, of any size, and writes the masks as ``output``/NAME.png.

    Masks have the values 0 and 255. Optional files are ``output``/probability/NAME.tif (float32, 0 to 1) and
    ``output``/overlay/NAME.png (the later image with the changes drawn over it). ``output`` appears when all files are
    written.

    Args:
        network: Network in evaluation mode.
        data: Folder with A and B.
        output: Folder to create.
        options: Options of the prediction.
        force: Replace an existing ``output``.
        progress: Called with the number of finished pairs and of all pairs.

    Raises:
        InputError: If an image cannot be read, or the sizes of a pair differ. The message names the file.
        UsageError: If ``output`` exists and ``force`` is not set.
    """
    refuse_inputs([output], [data])
    refuse_existing(output, force)
    sources = find_sources(data, labels="ignored")
    for source in sources:  # reads only headers, to report images of different size before the first inference
        common_size(source)
    changed = pixels = 0
    with replace_folder(output, force=force) as folder:
        for number, source in enumerate(sources, 1):
            name = source.name
            paths = folder / f"{name}.png", folder / "probability" / f"{name}.tif", folder / "overlay" / f"{name}.png"
            mask = _predict(network, source.before, source.after, paths, options, write=_write_directly)
            changed, pixels = changed + int(mask.sum()), pixels + mask.size
            if progress:
                progress(number, len(sources))
    return Predicted(len(sources), changed / pixels)


def predict_files(
    network: MISGNet, before: Path, after: Path, output: Path, options: PredictOptions, *, force: bool = False
) -> Predicted:
    """Predicts one pair and writes the mask as ``output`` (PNG, 0 and 255).

    Optional files next to it are NAME_probability.tif and NAME_overlay.png. Raises the errors of
    :func:`predict_folder`.
    """
    check_mask_name(output)
    refuse_inputs([output], [before, after])
    paths = output, output.with_name(f"{output.stem}_probability.tif"), output.with_name(f"{output.stem}_overlay.png")
    for path, wanted in zip(paths, (True, options.probability, options.overlay), strict=True):
        if wanted:
            refuse_existing(path, force)
    mask = _predict(network, before, after, paths, options, write=partial(_write_atomically, force))
    return Predicted(1, float(mask.mean()))


def _predict(
    network: MISGNet, before: Path, after: Path, paths: tuple[Path, Path, Path], options: PredictOptions,
    *, write: Callable[[Path, Writer], None],
) -> NDArray[np.bool_]:  # fmt: skip
    images = read_pair(before, after)
    probability = predict_pair(network, *images, options.tile, options.batch)
    mask = probability > options.threshold
    mask_path, probability_path, overlay_path = paths
    if options.probability:
        write(probability_path, lambda path: _write_probability(path, probability))
    if options.overlay:
        write(overlay_path, lambda path: _write_overlay(path, images[1], mask))
    write(mask_path, lambda path: write_mask(path, mask))
    return mask


def _write_probability(path: Path, probability: NDArray[np.float32]) -> None:
    PIL.Image.fromarray(probability).save(path, format="TIFF", compression="tiff_adobe_deflate")


def _write_overlay(path: Path, image: Image, mask: NDArray[np.bool_]) -> None:
    PIL.Image.fromarray(overlay(image, mask)).save(path, format="PNG")


def _write_directly(path: Path, writer: Writer) -> None:
    path.parent.mkdir(exist_ok=True)
    writer(path)


def _write_atomically(force: bool, path: Path, writer: Writer) -> None:
    with replace_file(path, force=force) as temporary:
        writer(temporary)

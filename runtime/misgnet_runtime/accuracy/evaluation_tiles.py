"""Reads and writes evaluation tiles, which a bundle carries so that the F1 gate can run on the device.

Each file holds a few tiles with the float model's masks, so that a small board never has many tiles in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.limit import F1Limit, limit_of
from misgnet_runtime.accuracy.metrics import require_finite
from misgnet_runtime.accuracy.parity import EngineParity, EvaluatedTile, compare, evaluated_tile
from misgnet_runtime.bundle.golden import are_dates, described, packed_tiles
from misgnet_runtime.bundle.manifest import EngineEntry, Interface
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Image, Predict, Progress
from misgnet_runtime.errors import InputError
from misgnet_runtime.pixels import PixelFormat
from misgnet_runtime.storage.npz import read_archive

ROLE = "evaluation tiles"
_MOST_TILES, _MOST_BYTES = 8, 64 << 20  # of a file, unpacked
_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class EvaluationTiles:
    """N tiles of T x T pixels, with labels and the float model's masks."""

    before: Image  # (N, T, T, C)
    after: Image  # (N, T, T, C)
    label: NDArray[np.bool_]  # (N, T, T); all False if the set has no labels
    reference: NDArray[np.bool_]  # (N, T, T), the float model's masks
    owned: NDArray[np.int64]  # (N, 4): top, bottom, left, right of the evaluated pixels; bottom and right are exclusive
    names: NDArray[np.str_]  # (N,), of the tiles
    sources: NDArray[np.str_]  # (N,), of the images that the tiles were cut from

    def __len__(self) -> int:
        return len(self.names)

    def evaluated(self, masks: NDArray[np.bool_], start: int = 0) -> list[EvaluatedTile]:
        """Compares ``masks`` (M, T, T) with the labels of M tiles, the first of which has the index ``start``."""
        return [self._evaluated(start + index, mask) for index, mask in enumerate(masks)]

    def _evaluated(self, index: int, mask: NDArray[np.bool_]) -> EvaluatedTile:
        top, bottom, left, right = map(int, self.owned[index])
        own = slice(top, bottom), slice(left, right)
        return evaluated_tile(str(self.names[index]), str(self.sources[index]), mask[own], self.label[index][own])


def tiles_in_a_file(tile: int, pixels: PixelFormat) -> int:
    """Returns how many tiles of ``tile`` x ``tile`` px a file holds: at most 8, and of large ones at most 64 MiB."""
    size = tile**2 * (2 * pixels.bytes + 2)  # both dates, the label and the reference's mask
    return max(1, min(_MOST_TILES, _MOST_BYTES // size))


def write_evaluation(path: Path, tiles: EvaluationTiles) -> None:
    arrays: dict[str, Any] = {field.name: getattr(tiles, field.name) for field in fields(tiles)}
    np.savez_compressed(path, **arrays)


def read_evaluation(path: Path, data: bytes | None = None, interface: Interface | None = None) -> EvaluationTiles:
    """Reads a file of :func:`write_evaluation`.

    Args:
        path: The file.
        data: Its bytes, if they are already in memory; ``path`` is then used only in messages.
        interface: The interface of the bundle that the tiles must fit (default: any).

    Raises:
        InputError: The file is damaged, holds something else, or tiles of another form.
    """
    names = [field.name for field in fields(EvaluationTiles)]
    arrays: dict[str, Any] = dict(zip(names, read_archive("evaluation tiles", path, names, data), strict=True))
    tiles = EvaluationTiles(**arrays)
    if not _fit_together(tiles, interface):
        raise InputError(
            f"evaluation tiles {path} do not hold N {described(interface)}, their masks, names and sources"
        )
    return tiles


def evaluation_files(bundle: Bundle) -> list[str]:
    """Returns the relative paths of a bundle's evaluation tiles; empty if it was built without them."""
    return [file.path for file in bundle.manifest.files if file.role == ROLE]


def evaluate_on_device(
    bundle: Bundle, entry: EngineEntry, predict: Predict, device: str,
    *, limit: F1Limit | None = None, progress: Progress | None = None,
) -> EngineParity:  # fmt: skip
    """Compares the engine with the float model on the bundle's evaluation tiles, and applies the gate.

    Args:
        bundle: The bundle.
        entry: The engine.
        predict: Runs the engine.
        device: The device that runs it, for the result.
        limit: Allowed F1 drop, or required F1 ratio; None: as recorded in the bundle.
        progress: Receives the number of files that are done.

    Raises:
        GateFailed: The engine's output contains NaN or Inf.
        InputError: The tiles do not match the manifest.
    """
    manifest, files = bundle.manifest, evaluation_files(bundle)
    reference: list[EvaluatedTile] = []
    found: list[EvaluatedTile] = []
    for number, path in enumerate(files, 1):
        tiles = read_evaluation(bundle.name / path, packed_tiles(bundle, path), manifest.interface)
        reference += tiles.evaluated(tiles.reference)
        found += _evaluate(entry, tiles, predict, min(_BATCH, manifest.interface.max_batch), manifest.threshold)
        if progress:
            progress(number, len(files))
    limit = limit or limit_of(manifest)
    return compare(
        entry.name, entry.precision, reference, found, limit, device=device, gate=manifest.gate,
        labelled=manifest.metrics.get("labelled") is not False,
    )  # fmt: skip


def _evaluate(
    entry: EngineEntry, tiles: EvaluationTiles, predict: Predict, batch: int, threshold: float
) -> Iterator[EvaluatedTile]:
    for start in range(0, len(tiles), batch):
        part = slice(start, start + batch)
        probability = require_finite(predict(tiles.before[part], tiles.after[part]), f"engine {entry.name}")
        yield from tiles.evaluated(probability > threshold, start)


def _fit_together(tiles: EvaluationTiles, interface: Interface | None) -> bool:
    shape = tiles.label.shape
    if len(shape) != 3 or shape[0] == 0:
        return False
    wanted: dict[str, tuple[tuple[int, ...], Callable[[np.dtype[Any]], bool]]] = {
        "label": (shape, lambda dtype: dtype == np.bool_),
        "reference": (shape, lambda dtype: dtype == np.bool_),
        "owned": ((shape[0], 4), lambda dtype: dtype == np.int64),
        "names": (shape[:1], lambda dtype: dtype.kind == "U"),
        "sources": (shape[:1], lambda dtype: dtype.kind == "U"),
    }
    arrays = {name: getattr(tiles, name) for name in wanted}
    fits = all(arrays[name].shape == size and right(arrays[name].dtype) for name, (size, right) in wanted.items())
    fits = fits and are_dates((tiles.before, tiles.after), shape, interface)
    return fits and bool((tiles.owned >= 0).all() and (tiles.owned <= max(shape[1:])).all())

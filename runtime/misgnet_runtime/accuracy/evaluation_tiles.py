"""Evaluation tiles that travel in a bundle, with the float model's masks: for the F1 gate where the engine runs.

They lie in files of a few tiles each, so that a small board never has many in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.metrics import require_finite
from misgnet_runtime.accuracy.parity import EngineParity, Judged, compare, judged_of
from misgnet_runtime.bundle.golden import packed_tiles
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Predict, Progress
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.npz import read_archive

ROLE = "evaluation tiles"
TILES_IN_A_FILE = 8
_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class EvaluationTiles:
    """N tiles of T x T pixels.

    ``before``, ``after``: uint8 (N, T, T, 3); ``label``, and ``reference``, the float model's mask: bool (N, T, T);
    ``owned``: first and last row and column (past the end) that are the tile's own, int64 (N, 4); ``names`` of the
    tiles and of the ``sources`` that they were cut from: text (N,).
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    label: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    owned: NDArray[np.int64]
    names: NDArray[np.str_]
    sources: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.names)

    def judged(self, masks: NDArray[np.bool_], start: int = 0) -> list[Judged]:
        """``masks`` (M, T, T) of M tiles from the one at ``start`` on, against the labels."""
        return [self._judged(start + index, mask) for index, mask in enumerate(masks)]

    def _judged(self, index: int, mask: NDArray[np.bool_]) -> Judged:
        top, bottom, left, right = map(int, self.owned[index])
        own = slice(top, bottom), slice(left, right)
        return judged_of(str(self.names[index]), str(self.sources[index]), mask[own], self.label[index][own])


def write_evaluation(path: Path, tiles: EvaluationTiles) -> None:
    arrays: dict[str, Any] = {field.name: getattr(tiles, field.name) for field in fields(tiles)}
    np.savez_compressed(path, **arrays)


def read_evaluation(path: Path, data: bytes | None = None) -> EvaluationTiles:
    """Read what :func:`write_evaluation` wrote; InputError where it is damaged or holds something else.

    ``data``: the file's bytes, where they were read before; ``path`` is then for messages.
    """
    names = [field.name for field in fields(EvaluationTiles)]
    arrays: dict[str, Any] = dict(zip(names, read_archive("evaluation tiles", path, names, data), strict=True))
    tiles = EvaluationTiles(**arrays)
    if not _fit_together(tiles):
        raise InputError(f"evaluation tiles {path} do not hold N tiles of T x T pixels, their masks, names and sources")
    return tiles


def evaluation_files(bundle: Bundle) -> list[str]:
    """Where a bundle's evaluation tiles lie in it; none where it was built without."""
    return [file.path for file in bundle.manifest.files if file.role == ROLE]


def judge_on_device(
    bundle: Bundle, entry: EngineEntry, predict: Predict, device: str, progress: Progress | None = None
) -> EngineParity:
    """The engine against the float model, on the bundle's evaluation tiles and by the bundle's gate.

    Raises GateFailed where it answers NaN or Inf, InputError for tiles that are not what the manifest says.
    """
    manifest, files = bundle.manifest, evaluation_files(bundle)
    reference: list[Judged] = []
    found: list[Judged] = []
    for number, path in enumerate(files, 1):
        tiles = read_evaluation(bundle.name / path, packed_tiles(bundle, path))
        reference += tiles.judged(tiles.reference)
        found += _judge(entry, tiles, predict, min(_BATCH, manifest.interface.max_batch), manifest.threshold)
        if progress:
            progress(number, len(files))
    return compare(
        entry.name, entry.precision, reference, found, manifest.max_f1_drop, device=device, gate=manifest.gate
    )


def _judge(
    entry: EngineEntry, tiles: EvaluationTiles, predict: Predict, batch: int, threshold: float
) -> Iterator[Judged]:
    for start in range(0, len(tiles), batch):
        part = slice(start, start + batch)
        probability = require_finite(predict(tiles.before[part], tiles.after[part]), f"engine {entry.name}")
        yield from tiles.judged(probability > threshold, start)


def _fit_together(tiles: EvaluationTiles) -> bool:
    shape = tiles.label.shape
    if len(shape) != 3 or shape[0] == 0:
        return False
    wanted: dict[str, tuple[tuple[int, ...], Callable[[np.dtype[Any]], bool]]] = {
        "before": ((*shape, 3), lambda dtype: dtype == np.uint8),
        "after": ((*shape, 3), lambda dtype: dtype == np.uint8),
        "label": (shape, lambda dtype: dtype == np.bool_),
        "reference": (shape, lambda dtype: dtype == np.bool_),
        "owned": ((shape[0], 4), lambda dtype: dtype == np.int64),
        "names": (shape[:1], lambda dtype: dtype.kind == "U"),
        "sources": (shape[:1], lambda dtype: dtype.kind == "U"),
    }
    arrays = {name: getattr(tiles, name) for name in wanted}
    fits = all(arrays[name].shape == size and right(arrays[name].dtype) for name, (size, right) in wanted.items())
    return fits and bool((tiles.owned >= 0).all() and (tiles.owned <= max(shape[1:])).all())

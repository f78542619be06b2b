"""Reads and writes golden tiles: inputs with expected outputs that check an engine on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import ARCHIVE_BYTES
from misgnet_runtime.storage.npz import read_archive

if TYPE_CHECKING:
    from misgnet_runtime.bundle.reader import Bundle


@dataclass(frozen=True)
class GoldenTiles:
    """G tiles of T x T pixels with the float model's output."""

    before: NDArray[np.uint8]  # (G, T, T, 3)
    after: NDArray[np.uint8]  # (G, T, T, 3)
    probability: NDArray[np.float32]  # (G, T, T), probability of change


def write_golden(path: Path, tiles: GoldenTiles) -> None:
    np.savez_compressed(path, before=tiles.before, after=tiles.after, probability=tiles.probability)


def golden_of(bundle: Bundle) -> GoldenTiles:
    """Returns the golden tiles of a bundle."""
    path = bundle.manifest.file("golden tiles").path
    return read_golden(bundle.name / path, packed_tiles(bundle, path))


def packed_tiles(bundle: Bundle, path: str) -> bytes:
    """Returns the bytes of an archive of tiles in a bundle. Raises InputError if it is too large."""
    size = next(entry.size for entry in bundle.manifest.files if entry.path == path)
    if size > ARCHIVE_BYTES:
        raise InputError(f"tiles {bundle.name / path} have {size} bytes; the limit is {ARCHIVE_BYTES}")
    return bundle.read(path)


def read_golden(path: Path, data: bytes | None = None) -> GoldenTiles:
    """Reads a file of :func:`write_golden`.

    Args:
        path: The file.
        data: Its bytes, if they are already in memory; ``path`` is then used only in messages.

    Raises:
        InputError: The file is damaged or holds something else.
    """
    tiles = GoldenTiles(*read_archive("golden tiles", path, ("before", "after", "probability"), data))
    if not _fit_together(tiles):
        raise InputError(f"golden tiles {path} do not hold two uint8 arrays (G, T, T, 3) and one float32 (G, T, T)")
    return tiles


def _fit_together(tiles: GoldenTiles) -> bool:
    dates = (tiles.before, tiles.after)
    shape = tiles.probability.shape
    return (
        len(shape) == 3 and shape[0] > 0 and tiles.probability.dtype == np.float32
        and all(date.shape == (*shape, 3) and date.dtype == np.uint8 for date in dates)
    )  # fmt: skip

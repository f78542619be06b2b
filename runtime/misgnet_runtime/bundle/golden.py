"""Golden tiles: a few inputs with expected outputs, for an engine's first use on another machine."""

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
    """uint8 (G, T, T, 3) of both dates, and the float model's probability of change, float32 (G, T, T)."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    probability: NDArray[np.float32]


def write_golden(path: Path, tiles: GoldenTiles) -> None:
    np.savez_compressed(path, before=tiles.before, after=tiles.after, probability=tiles.probability)


def golden_of(bundle: Bundle) -> GoldenTiles:
    """The golden tiles of a bundle, from the bytes that were checked."""
    path = bundle.manifest.file("golden tiles").path
    return read_golden(bundle.name / path, packed_tiles(bundle, path))


def packed_tiles(bundle: Bundle, path: str) -> bytes:
    """The bytes of an archive of tiles in a bundle; InputError where it is larger than what may be unpacked of it."""
    size = next(entry.size for entry in bundle.manifest.files if entry.path == path)
    if size > ARCHIVE_BYTES:
        raise InputError(f"tiles {bundle.name / path} have {size} bytes, and {ARCHIVE_BYTES} are the most")
    return bundle.read(path)


def read_golden(path: Path, data: bytes | None = None) -> GoldenTiles:
    """Read what :func:`write_golden` wrote; InputError where it is damaged or holds something else.

    ``data``: the file's bytes, where they were read before; ``path`` is then for messages.
    """
    tiles = GoldenTiles(*read_archive("golden tiles", path, ("before", "after", "probability"), data))
    if not _fit_together(tiles):
        raise InputError(f"golden tiles {path} do not hold uint8 (G, T, T, 3) twice and float32 (G, T, T)")
    return tiles


def _fit_together(tiles: GoldenTiles) -> bool:
    dates = (tiles.before, tiles.after)
    shape = tiles.probability.shape
    return (
        len(shape) == 3 and shape[0] > 0 and tiles.probability.dtype == np.float32
        and all(date.shape == (*shape, 3) and date.dtype == np.uint8 for date in dates)
    )  # fmt: skip

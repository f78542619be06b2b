"""Reads and writes golden tiles: inputs with expected outputs that check an engine on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import ARCHIVE_BYTES
from misgnet_runtime.storage.npz import read_archive

if TYPE_CHECKING:
    from misgnet_runtime.bundle.manifest import Interface
    from misgnet_runtime.bundle.reader import Bundle


@dataclass(frozen=True)
class GoldenTiles:
    """G tiles of T x T pixels with the float model's output."""

    before: Image  # (G, T, T, C)
    after: Image  # (G, T, T, C)
    probability: NDArray[np.float32]  # (G, T, T), probability of change


def write_golden(path: Path, tiles: GoldenTiles) -> None:
    np.savez_compressed(path, before=tiles.before, after=tiles.after, probability=tiles.probability)


def golden_of(bundle: Bundle) -> GoldenTiles:
    """Returns the golden tiles of a bundle."""
    path = bundle.manifest.file("golden tiles").path
    return read_golden(bundle.name / path, packed_tiles(bundle, path), bundle.manifest.interface)


def packed_tiles(bundle: Bundle, path: str) -> bytes:
    """Returns the bytes of an archive of tiles in a bundle. Raises InputError if it is too large."""
    size = next(entry.size for entry in bundle.manifest.files if entry.path == path)
    if size > ARCHIVE_BYTES:
        raise InputError(f"tiles {bundle.name / path} have {size} bytes; the limit is {ARCHIVE_BYTES}")
    return bundle.read(path)


def read_golden(path: Path, data: bytes | None = None, interface: Interface | None = None) -> GoldenTiles:
    """Reads a file of :func:`write_golden`.

    Args:
        path: The file.
        data: Its bytes, if they are already in memory; ``path`` is then used only in messages.
        interface: The interface of the bundle that the tiles must fit (default: any).

    Raises:
        InputError: The file is damaged, holds something else, or tiles of another form.
    """
    tiles = GoldenTiles(*read_archive("golden tiles", path, ("before", "after", "probability"), data))
    shape = tiles.probability.shape
    if not (
        len(shape) == 3 and shape[0] > 0 and tiles.probability.dtype == np.float32
        and are_dates((tiles.before, tiles.after), shape, interface)
    ):  # fmt: skip
        raise InputError(
            f"golden tiles {path} do not hold {described(interface)} (G, T, T, C) of both dates, and probabilities "
            "float32 (G, T, T)"
        )
    return tiles


def are_dates(dates: tuple[Image, Image], shape: tuple[int, ...], interface: Interface | None) -> bool:
    """Returns whether both dates are raw tiles: (*shape, C), of uint8 or uint16, and those of ``interface``, if any."""
    before, after = dates
    fit = before.shape[:-1] == shape and before.shape == after.shape and before.dtype == after.dtype
    if interface is None:
        return fit and before.dtype in (np.uint8, np.uint16)
    tile = (interface.tile, interface.tile, interface.bands)
    return fit and before.shape[1:] == tile and before.dtype == interface.samples


def described(interface: Interface | None) -> str:
    """Returns, for a message, what raw tiles must be."""
    if interface is None:
        return "raw tiles"
    return f"tiles of {interface.tile} px with {interface.bands} x {interface.samples}"

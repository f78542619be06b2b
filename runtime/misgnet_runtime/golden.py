"""Golden tiles: a few inputs with expected outputs, for an engine's first use on another machine."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError


@dataclass(frozen=True)
class GoldenTiles:
    """uint8 (G, T, T, 3) of both dates, and the float model's probability of change, float32 (G, T, T)."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    probability: NDArray[np.float32]


def write_golden(path: Path, tiles: GoldenTiles) -> None:
    np.savez_compressed(path, before=tiles.before, after=tiles.after, probability=tiles.probability)


def read_golden(path: Path) -> GoldenTiles:
    """Read what :func:`write_golden` wrote; InputError where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return GoldenTiles(arrays["before"], arrays["after"], arrays["probability"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"golden tiles {path} cannot be read: {error}") from error

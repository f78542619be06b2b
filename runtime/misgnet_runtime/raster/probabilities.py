"""A scene's map on disk, before it becomes outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.tiling import Span


@dataclass(frozen=True)
class Probabilities:
    """The whole map on disk, float32 (``height``, ``width``), NaN without data."""

    path: Path
    height: int
    width: int

    def read(self, rows: Span, columns: Span | None = None) -> NDArray[np.float32]:
        """float32 (h, w), of all columns without ``columns``; InputError where the file is shorter than it must be."""
        wanted = slice(columns.start, columns.stop) if columns else slice(None)
        try:
            mapped = np.memmap(self.path, np.float32, "r", shape=(self.height, self.width))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is cut off or cannot be read; start anew with --restart") from error
        return np.array(mapped[rows.start : rows.stop, wanted])

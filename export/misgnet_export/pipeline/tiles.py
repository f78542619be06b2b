"""Finds the tiles of a set of images. Needs neither torch nor onnx, as `parity` does not."""

from __future__ import annotations

from pathlib import Path

from misgnet_runtime.bundle import Interface
from misgnet_runtime.raster.dataset import TileSet


def open_tiles(path: Path, interface: Interface) -> TileSet:
    """Finds the tiles of a set, whose folder may lack labels. Raises InputError as :meth:`TileSet.open`."""
    return TileSet.open(path, interface.tile, interface.pixels, labels="optional")

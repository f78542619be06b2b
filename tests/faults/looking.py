"""Reads results as a user would see them, for comparison."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

warnings.filterwarnings("ignore", message="Measured")  # from pyogrio
State = Mapping[str, object]


def files(*names: str) -> Callable[[Path], State]:
    """Returns a function that reads the files matching ``names``.

    Rasters and GeoPackages are compared by their contents, because their bytes may be ordered differently (a GeoPackage
    also states when it was written); other files are compared by their bytes.
    """

    def read(root: Path) -> State:
        found = {path.relative_to(root).as_posix(): path for name in names for path in sorted(root.glob(name))}
        shown = {name: path for name, path in found.items() if not any(p.startswith(".") for p in Path(name).parts)}
        return {name: _content(path) for name, path in shown.items() if path.is_file()}

    return read


def _content(path: Path) -> object:
    if path.suffix == ".tif" and path.stat().st_size > 100:
        return _raster(path)
    if path.suffix == ".gpkg" and path.stat().st_size > 100:
        import pyogrio

        _, _, shapes, fields = pyogrio.raw.read(path)
        return len(shapes), hashlib.sha256(b"".join(shapes)).hexdigest(), [list(map(str, field)) for field in fields]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _raster(path: Path) -> object:
    import rasterio

    with rasterio.open(path) as dataset:
        colours = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else None
        pixels = hashlib.sha256(dataset.read().tobytes()).hexdigest()
        return pixels, sorted(dataset.tags().items()), str(dataset.profile), colours

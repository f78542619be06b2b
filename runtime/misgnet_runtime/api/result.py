"""The result of a scene: its files, and what a notebook wants of them."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from misgnet_runtime.api.shown import html_of, plot
from misgnet_runtime.api.vectors import VECTORS, convert_polygons, read_polygons
from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import format_change
from misgnet_runtime.jobs.scene.run import SceneReport
from misgnet_runtime.raster.geotiff import GDAL, load_rasterio, open_geotiff
from misgnet_runtime.raster.writer import CHANGED, NODATA
from misgnet_runtime.storage.atomic import replace_file

_KINDS = {".tif": "output", ".tiff": "output", ".png": "quicklook", ".html": "report"}


class SceneResult:
    """The change between two scenes; returned by :meth:`BundleSession.predict_scene`.

    A notebook shows it as a small picture with its figures. Arrays and polygons are read when they are first used, and
    kept; they belong to the caller. Without ``output``, the files are removed with the result: use :meth:`save`.

    Attributes:
        files: The written files by option: "output" (the change raster), "probability", "vector", "quicklook", and
            others that were requested.
        changed_share: Share of the valid pixels that changed, 0 to 1; None if no pixel is valid.
        valid_share: Share of the pixels where both dates have data, 0 to 1.
        warnings: Texts of the warnings about this pair.
        report: All figures of the run by name, as ``misgnet-run --log json predict`` reports them.
    """

    def __init__(
        self, *, files: Mapping[str, Path], report: SceneReport, warnings: Iterable[str], resources: ExitStack
    ) -> None:
        self.files = dict(files)
        self.changed_share = report.changed_share
        self.valid_share = report.valid_share
        self.warnings = tuple(warnings)
        self.report: dict[str, Any] = asdict(report)
        weakref.finalize(self, resources.close)

    @cached_property
    def mask(self) -> np.ma.MaskedArray[Any, np.dtype[np.bool_]]:
        """Whether each pixel changed: a masked array, bool (H, W), masked where there is no data.

        ``mask.mean()`` is the changed share of the valid pixels. It takes 2 bytes per pixel.
        """
        classes = self._read("output")
        return np.ma.MaskedArray(classes == CHANGED, mask=classes == NODATA)

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """The probability of change, float32 (H, W), NaN where there is no data; 4 bytes per pixel."""
        return np.asarray(self._read("probability"), np.float32)

    @property
    def valid(self) -> Mask:
        """Whether both dates have data, bool (H, W)."""
        return ~np.ma.getmaskarray(self.mask)

    @cached_property
    def polygons(self) -> Any:
        """The changed areas: a GeoDataFrame where geopandas is installed, else a GeoJSON FeatureCollection (a dict).

        Coordinates are those of the scene (longitude and latitude if ``vector`` was requested as GeoJSON); the dict
        states their coordinate system in ``crs``, None if the scene has none. Fields are those of the file.
        """
        return read_polygons(self._file("vector"))

    @property
    def quicklook(self) -> PIL.Image.Image:
        """A picture of both dates and the change, which a notebook shows when it is the last value of a cell."""
        with PIL.Image.open(self._file("quicklook"), formats=("PNG",)) as image:
            image.load()
            return image

    @property
    def crs(self) -> Any:
        """The scene's coordinate system, rasterio's CRS; None: it has none."""
        return self._properties()[0]

    @property
    def transform(self) -> Any:
        """The affine transform from (column, row) to map coordinates."""
        return self._properties()[1]

    def plot(self, ax: Any = None) -> Any:
        """Draws the probability of change in map coordinates, at a reduced size.

        ``result.polygons.plot(ax=ax, facecolor="none", edgecolor="red")`` draws outlines over it.

        Args:
            ax: Matplotlib's axes to draw on (default: new ones).

        Returns:
            The axes.

        Raises:
            UnavailableError: matplotlib is missing: ``pip install 'misgnet-export[notebook]'``.
        """
        return plot(self._file("probability"), ax, self._summary())

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Writes a copy of a file of the result, atomically; the suffix says which.

        .tif is the change raster, .gpkg, .geojson or .fgb are the polygons, .png is the quick look, and .html is the
        report, a page of its own. ``files`` names all files, such as the probability.

        Args:
            path: The file to write.
            force: Whether to replace an existing file.

        Returns:
            The path.

        Raises:
            UsageError: The file exists, its suffix is another one, or the run wrote no such file: for a run with
                ``output``, the report must be requested (``report=PATH``).
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix not in (*_KINDS, *VECTORS):
            raise UsageError(f"{target} has the suffix '{suffix}'; choose {', '.join((*_KINDS, *VECTORS))}")
        source = self._file(_KINDS.get(suffix, "vector"))
        with replace_file(target, force=force) as temporary:
            if suffix in (source.suffix.lower(), ".tif", ".tiff"):
                shutil.copyfile(source, temporary)
            else:
                convert_polygons(source, temporary)
        return target

    def _file(self, kind: str) -> Path:
        if kind not in self.files:
            raise UsageError(f"the result has no {kind}, because {kind} was not requested; pass {kind}=PATH")
        return self.files[kind]

    def _read(self, kind: str) -> NDArray[Any]:
        path = self._file(kind)
        rasterio = load_rasterio("a scene")
        with rasterio.Env(**GDAL), open_geotiff(rasterio, path) as dataset:
            try:
                return np.asarray(dataset.read(1))
            except rasterio.errors.RasterioError as error:
                raise InputError(f"{path} cannot be read: {error}; was it changed since the run?") from error

    def _properties(self) -> tuple[Any, Any]:
        rasterio = load_rasterio("a scene")
        with rasterio.Env(**GDAL), open_geotiff(rasterio, self._file("output")) as dataset:
            return dataset.crs, dataset.transform

    def _summary(self) -> str:
        return format_change(self.changed_share, self.valid_share)

    def __repr__(self) -> str:
        size = f"{self.report['width']} x {self.report['height']} px"
        return f"<SceneResult of {size}, {self._summary()}, engine {self.report['engine']}>"

    def _repr_html_(self) -> str:
        return html_of(repr(self)[1:-1], self.files.get("quicklook"), self.report, self.warnings)

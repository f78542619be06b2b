"""Shows a scene's result in a notebook: as a small HTML page, and as a plot."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.formatting import printable
from misgnet_runtime.raster.geotiff import GDAL, load_rasterio, open_geotiff

_MOST_PIXELS = 1024  # longest side of the pictures
_MOST_BYTES = 200_000  # of the picture in HTML, before base64 makes it a third longer
_QUALITIES = (85, 70, 50, 30)  # of JPEG, until it is small enough


def html_of(title: str, picture: Path | None, figures: Mapping[str, Any], warnings: Iterable[str]) -> str:
    """Returns a self-contained part of an HTML page of at most about 300 kB; all texts are escaped."""
    shown = "" if picture is None else f'<img alt="{escape(title)}" src="{_data_uri(picture)}" style="max-width:100%">'
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in figures.items())
    listed = "".join(f"<p><strong>Warning:</strong> {_text(warning)}</p>" for warning in warnings)
    return (
        f"<div><p>{_text(title)}</p>{listed}{shown}"
        f"<details><summary>Figures of the run</summary><table>{rows}</table></details></div>"
    )


def _text(value: object) -> str:
    return escape(printable(f"{value:.6g}" if isinstance(value, float) else str(value)))


def _data_uri(picture: Path) -> str:
    """Returns a picture of the result as a data URI: a smaller JPEG."""
    with PIL.Image.open(picture, formats=("PNG",)) as image:
        image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
        small = image.convert("RGB")
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= _MOST_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def plot(probability: Path, ax: Any, title: str) -> Any:
    """Draws a probability raster on Matplotlib's axes, and returns them; see :meth:`SceneResult.plot`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UnavailableError("a plot requires matplotlib: pip install 'misgnet-export[notebook]'") from error
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), open_geotiff(rasterio, probability) as dataset:
        step = max(1, -(-max(dataset.shape) // _MOST_PIXELS))
        shape = tuple(-(-side // step) for side in dataset.shape)
        values = dataset.read(1, out_shape=shape, resampling=rasterio.enums.Resampling.average)
        crs, t, (height, width) = dataset.crs, dataset.transform, dataset.shape
    straight = t.b == t.d == 0
    extent = (t.c, t.c + width * t.a, t.f + height * t.e, t.f) if straight else (0, width, height, 0)
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    ax.set_facecolor("lightgrey")  # seen where there is no data
    shown = ax.imshow(
        np.ma.masked_invalid(values), extent=extent, vmin=0, vmax=1, cmap="magma", interpolation="nearest"
    )
    ax.figure.colorbar(shown, ax=ax, label="probability of change", shrink=0.8)
    unit = f" ({crs.to_string()})" if crs and straight and len(crs.to_string()) < 40 else ""
    ax.set(title=title, xlabel=f"x{unit}" if straight else "column", ylabel="y" if straight else "row")
    ax.ticklabel_format(style="plain", useOffset=False)
    return ax

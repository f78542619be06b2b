"""Samples a scene before it is run: percentiles for a stretch, and the offset between the two dates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.reader import Pair, Raster
from misgnet_runtime.raster.scaling import (
    Scaling,
    assets_as_bands,
    check_contradictions,
    check_stretch,
    choose_bands,
    declared_scaling,
    stretched,
)
from misgnet_runtime.raster.tiling import Span

_SAMPLES, _SAMPLE = 8, 128  # windows per axis for percentiles, and their side in pixels
_WINDOWS, _WINDOW = 3, 256  # windows per axis for the offset, and their side in pixels
_CLEAR_PEAK = 0.05  # of the phase correlation; noise in windows of this size stays below 0.02


def find_scaling(raster: Raster, declared: Declared) -> Scaling:
    """Returns the scaling of values to the raster's pixel format; a stretch samples 8 x 8 windows of 128 x 128 px.

    Raises:
        InputError: Bands or scaling are not declared, with all that is missing, or not possible.
        UsageError: A declared band does not exist, or options have another number of values than the network bands.
    """
    check_declared((raster, declared))
    bands = _bands(raster, declared)
    if declared.stretch is None:
        return _declared(raster, declared, bands)
    stated = raster.stated(bands)
    check_stretch(stated, raster.name)
    picked = []
    for rows, columns in spread(raster.dataset.height, raster.dataset.width, _SAMPLES, _SAMPLE):
        values, valid, _ = raster.read(bands, rows, columns)
        picked.append(values[:, valid])
    return stretched(bands, np.concatenate(picked, axis=1), declared.stretch, raster.name, raster.pixels.samples)


def check_declared(*dates: tuple[Raster, Declared]) -> None:
    """Raises InputError if bands or scaling of a date are not declared; the message has all that is missing."""
    found: dict[tuple[str, ...], list[str]] = {}
    for raster, declared in dates:
        if problems := tuple(_undeclared(raster, declared)):
            found.setdefault(problems, []).append(raster.name)
    if found:
        shown = (f"raster {', like '.join(names)}{',' * (len(names) > 1)} {'; it also '.join(problems)}"
                 for problems, names in found.items())  # fmt: skip
        raise InputError("; ".join(shown))


def _undeclared(raster: Raster, declared: Declared) -> Iterator[str]:
    """Yields what is missing for each declaration, without the raster's name: "has 4 bands; specify ..."."""
    name = f"raster {raster.name} "
    check_contradictions(raster.contradictions, declared)
    try:
        bands = _bands(raster, declared)
    except InputError as error:
        yield str(error).removeprefix(name)
        bands = tuple(range(1, min(len(raster.colours), raster.pixels.bands) + 1))
    if declared.stretch is None:
        try:
            _declared(raster, declared, bands)
        except InputError as error:
            yield str(error).removeprefix(name)


def _bands(raster: Raster, declared: Declared) -> tuple[int, ...]:
    if raster.parts and declared.bands is None:
        return assets_as_bands(len(raster.parts), raster.name, raster.pixels)
    return choose_bands(declared, raster.colours, raster.alpha, raster.name, raster.pixels)


def _declared(raster: Raster, declared: Declared, bands: tuple[int, ...]) -> Scaling:
    stated, dtype = raster.stated(bands), raster.file.dtypes[0]
    return declared_scaling(declared, bands, dtype, stated, name=raster.name, pixels=raster.pixels)


def spread(height: int, width: int, count: int, size: int, step: int | None = None) -> list[tuple[Span, Span]]:
    """Returns at most ``count`` x ``count`` windows of at most ``size`` pixels, evenly spread.

    They start at least ``step`` pixels apart (default: ``size``, so that they do not overlap).
    """
    axes = []
    for length in (height, width):
        number = max(1, min(count, 1 + (length - size) // (step or size)))
        begins = [i * max(0, length - size) // max(1, number - 1) for i in range(number)]
        axes.append([Span(begin, min(begin + size, length)) for begin in begins])
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def residual_shift(
    pair: Pair, scalings: tuple[Scaling, Scaling], within: tuple[Span, Span] | None = None
) -> tuple[float, float] | None:
    """Returns the offset of AFTER from BEFORE in rows and columns, the median over 3 x 3 windows.

    ``within``: the rows and columns that both dates cover (default: the whole map). Returns None if fewer than two
    windows have data and a clear peak.
    """
    found = []
    top, left = within or (Span(0, pair.grid.height), Span(0, pair.grid.width))
    for down, across in spread(top.length, left.length, _WINDOWS, _WINDOW):
        pixels = pair.read(scalings, down.moved(top.start), across.moved(left.start))
        if pixels.valid.mean() > 0.9:
            row, column, peak = phase_shift(pixels.before, pixels.after)
            if peak > _CLEAR_PEAK:
                found.append((row, column))
    if len(found) < 2:
        return None
    row, column = np.median(np.array(found), axis=0)
    return float(row), float(column)


def phase_shift(before: Image, after: Image) -> tuple[float, float, float]:
    """Returns the offset of ``after`` from ``before``, (h, w, C), and the height of the peak, 0 to 1.

    The offset is in whole rows and columns. Kuglin and Hines, "The phase correlation image alignment method", 1975.
    """
    first, second = (np.fft.rfft2(_windowed(image)) for image in (before, after))
    cross = second * first.conj()
    surface = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), before.shape[:2])
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    height, width = surface.shape
    return (
        float((row + height // 2) % height - height // 2),
        float((column + width // 2) % width - width // 2),
        float(surface.max()),
    )


def _windowed(image: Image) -> NDArray[np.float64]:
    """Returns the brightness minus its mean, faded to 0 at the window's edges, which are not image content."""
    grey = image.mean(axis=2)
    fade = np.outer(*(np.hanning(length + 2)[1:-1] for length in grey.shape))
    return np.asarray((grey - grey.mean()) * fade, np.float64)

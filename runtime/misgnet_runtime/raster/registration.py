"""Estimates the offset between two dates to a fraction of a pixel, from windows spread over both.

Each window's offset is the peak of a correlation of gradients: Kuglin and Hines, "The phase correlation image alignment
method", 1975; to a fraction of a pixel by a Fourier transform on a finer grid around the peak, Guizar-Sicairos, Thurman
and Fienup, "Efficient subpixel image registration algorithms", 2008 (scikit-image). Gradients of equal weight, not
whitened spectra: clouds and differences in brightness matter less, and so does noise. The mode of the windows' offsets
is near the common one, since those on clouds, changes and tall objects are wrong. The common one is where the sum of
their correlations is highest: it does not depend on which of two peaks of nearly the same height is higher in one
window.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.raster.reader import Pair, Raster
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.statistics import spread
from misgnet_runtime.raster.tiling import Span

TOLERANCE = 1.5  # pixels between a window's offset and the mode; tall objects move by about one
_COARSE = ((2, 1024), (3, 512), (3, 256))  # windows per axis and their side in pixels, for whole pixels
_FINE = 8  # windows per axis for fractions of a pixel; neighbours share up to two thirds
_SIDES = 256, 64  # most and fewest pixels of their side
_SMALLEST = 128  # pixels of a scene's shorter side
_FINER = 100  # steps in a pixel
_WIDTH = 0.9  # pixels: standard deviation of the kernel whose maximum is the mode
_CLEAR = 20.0  # over the window's side: correlation of a clear peak. Unrelated windows of 256 px have 0.05 or less
_LEAST_VALID = 0.5  # share of a window's pixels that must have data
_LEAST, _LEAST_SHARE = 3, 1 / 3  # windows that must agree, also as a share of those with a clear peak
_ROUNDS = 4
_SHOWN = 12  # vectors in a message

_Area = tuple[Span, Span]  # rows and columns
_Vectors = NDArray[np.float64]  # (N, 2): rows and columns


@dataclass(frozen=True, kw_only=True)
class Registration:
    """An estimated offset of AFTER from BEFORE, in pixels of BEFORE's grid."""

    rows: float
    columns: float
    inliers: int  # windows that agree with each other
    windows: int  # windows with a clear peak
    residual: float  # root mean square of their distances from it, in pixels

    @property
    def offset(self) -> str:
        """The offset as text; interrupted runs record it."""
        return f"{self.rows:+.2f} rows, {self.columns:+.2f} columns"

    def __str__(self) -> str:
        agree = f"{self.inliers} of {self.windows} windows agree"
        return f"{self.offset}; {agree}, residual {self.residual:.2f} px"


@dataclass(frozen=True, kw_only=True)
class _Match:
    """The offset that one window shows."""

    row: int  # of the window's centre in BEFORE
    column: int
    vector: tuple[float, float]  # rows and columns
    clarity: float  # the peak's correlation over that of a clear one; 1 or more: clear
    read: tuple[int, int]  # offset at which AFTER was read
    spectrum: NDArray[np.complex128]  # (h, w): cross-power spectrum; its sum is the correlation at ``read``, at most 1


def load_registration() -> Any:
    """Imports scikit-image's registration; raises UnavailableError with the install command if it is missing."""
    try:
        return importlib.import_module("skimage.registration")
    except ImportError as error:
        raise UnavailableError("--coregister requires scikit-image: pip install 'misgnet-export[register]'") from error


def estimate_offset(pair: Pair, scalings: tuple[Scaling, Scaling], within: _Area) -> Registration:
    """Returns the offset of AFTER from BEFORE, from windows within ``within``; deterministic, rounded to 0.01 px.

    Raises:
        InputError: The windows disagree, or too few have data and texture that both dates share.
        UnavailableError: scikit-image is missing.
    """
    library = load_registration()
    rows, columns = within
    if min(rows.length, columns.length) < _SMALLEST:
        raise InputError(
            f"--coregister needs at least {_SMALLEST} px per side that both dates cover, found {columns.length} x "
            f"{rows.length} px; co-register larger images, then crop them"
        )
    views = _View(pair.before, scalings[0], within), _View(pair.after, scalings[1], within)
    offset = _coarse(library, views, within)
    for _ in range(_ROUNDS):
        windows = list(_fine(library, views, within, offset))
        matches = [match for match in windows if match.clarity >= 1]
        if len(matches) < _LEAST:
            raise _refusal(matches, "too few windows have texture that both dates share", 0)
        vectors = np.array([match.vector for match in matches])
        centre = _mode(vectors, np.array([match.clarity for match in matches]))
        moved = round(float(centre[0])), round(float(centre[1]))
        if moved == offset:
            break
        offset = moved
    inside = np.hypot(*(vectors - centre).T) <= TOLERANCE
    agreeing = int(np.count_nonzero(inside))
    if agreeing < max(_LEAST, math.ceil(_LEAST_SHARE * len(matches))):
        raise _refusal(matches, "the windows disagree", agreeing)
    centre = _summed_peak(windows, centre)
    distances = np.hypot(*(vectors[inside] - centre).T)
    return Registration(
        rows=round(float(centre[0]), 2), columns=round(float(centre[1]), 2), inliers=agreeing, windows=len(matches),
        residual=round(float(np.sqrt(np.mean(distances**2))), 2),
    )  # fmt: skip


@dataclass(frozen=True)
class _View:
    """One date."""

    raster: Raster
    scaling: Scaling
    within: _Area

    def gradients(self, rows: Span, columns: Span) -> NDArray[np.complex128] | None:
        """Returns a window's gradients, (h, w), faded to 0 at its edges; None without enough data or texture.

        A strong gradient counts hardly more than an average one, and one next to a pixel without data not at all.
        Nothing outside of the area has data.
        """
        inside = tuple(span.common(limit) for span, limit in zip((rows, columns), self.within, strict=True))
        if not all(span.length for span in inside):
            return None
        part, data, _ = self.raster.image(self.scaling, *inside)
        at = inside[0].within(rows), inside[1].within(columns)
        valid = np.zeros((rows.length, columns.length), np.bool_)
        image = np.zeros((*valid.shape, part.shape[2]), part.dtype)
        image[at], valid[at] = part, data
        if valid.mean() < _LEAST_VALID:
            return None
        down, across = np.gradient(image.mean(axis=2, dtype=np.float64))
        found = (across + 1j * down) * _surrounded(valid)
        average = float(np.abs(found).mean())
        if average == 0:
            return None
        fade = np.outer(*(np.hanning(length + 2)[1:-1] for length in found.shape))
        return np.asarray(found / (np.abs(found) + average) * fade, np.complex128)


def _surrounded(valid: Mask) -> Mask:
    """Returns the pixels that have data, as have all pixels beside them."""
    found = valid.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            found &= np.roll(valid, step, axis)  # wraps at the window's edges, where everything is faded out
    return found


def _coarse(library: Any, views: tuple[_View, _View], within: _Area) -> tuple[int, int]:
    """Returns the offset, in whole pixels, that windows of several sizes support best; (0, 0) if none is clear."""
    shorter = min(span.length for span in within)
    areas = {area: None for count, side in _COARSE for area in _windows(within, count, min(side, shorter), side)}
    matches = (_match(library, views, area, (0, 0), 1) for area in areas)
    found = [(match.vector, match.clarity) for match in matches if match and match.clarity >= 1]  # spectra are large
    if not found:
        return 0, 0
    vectors, clarities = zip(*found, strict=True)
    centre = _mode(np.array(vectors), np.array(clarities))
    return round(float(centre[0])), round(float(centre[1]))


def _fine(library: Any, views: tuple[_View, _View], within: _Area, offset: tuple[int, int]) -> Iterator[_Match]:
    """Yields the offsets of windows whose partners in AFTER are read at ``offset``, so that they show the same area.

    Where the windows are does not depend on the offset: those on tall objects are wrong by different amounts, and
    another choice of windows would change their mode.
    """
    side = max(_SIDES[1], min(_SIDES[0], min(span.length for span in within) // 2))
    for window in _windows(within, _FINE, side, side // 3):
        if match := _match(library, views, window, offset, _FINER):
            yield match


def _windows(within: _Area, count: int, side: int, step: int) -> list[_Area]:
    rows, columns = within
    found = spread(rows.length, columns.length, count, side, step)
    return [(down.moved(rows.start), across.moved(columns.start)) for down, across in found]


def _match(
    library: Any, views: tuple[_View, _View], window: _Area, offset: tuple[int, int], steps: int
) -> _Match | None:
    partner = [span.moved(step) for span, step in zip(window, offset, strict=True)]
    first, second = views[0].gradients(*window), views[1].gradients(*partner)
    if first is None or second is None:
        return None
    first, second = np.fft.fft2(first), np.fft.fft2(second)
    back, error, _ = library.phase_cross_correlation(
        first, second, upsample_factor=steps, space="fourier", normalization=None
    )
    correlation = math.sqrt(max(0.0, 1 - float(error) ** 2))
    side = min(first.shape)
    rows, columns = window
    return _Match(
        row=(rows.start + rows.stop) // 2, column=(columns.start + columns.stop) // 2,
        vector=(offset[0] - float(back[0]), offset[1] - float(back[1])), clarity=correlation * side / _CLEAR,
        read=offset, spectrum=first.conj() * second / float(np.linalg.norm(first) * np.linalg.norm(second)),
    )  # fmt: skip


def _summed_peak(windows: list[_Match], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the peak of the sum of all correlations, within ``TOLERANCE`` of ``centre`` on both axes, to 0.01 px."""
    for reach, step in ((TOLERANCE, 10 / _FINER), (10 / _FINER, 1 / _FINER)):
        count = round(reach / step)
        steps = np.arange(-count, count + 1) * step
        total = np.sum([_correlation(window, centre[0] + steps, centre[1] + steps) for window in windows], axis=0)
        centre = centre + steps[list(np.unravel_index(int(total.argmax()), total.shape))]
    return centre


def _correlation(match: _Match, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a window's correlation, (R, C), at the offsets of ``rows`` (R,) and ``columns`` (C,).

    The inverse Fourier transform at these points only, as two products of matrices (Guizar-Sicairos et al., 2008).
    """
    height, width = match.spectrum.shape
    down = np.exp(2j * np.pi * np.outer(rows - match.read[0], np.fft.fftfreq(height)))
    across = np.exp(2j * np.pi * np.outer(np.fft.fftfreq(width), columns - match.read[1]))
    return np.asarray((down @ match.spectrum @ across).real)


def _mode(vectors: _Vectors, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns where the vectors are densest, by the mean shift from the best of them; less than half may be right.

    Fukunaga and Hostetler, "The estimation of the gradient of a density function", 1975.
    """

    def near(centre: NDArray[np.float64]) -> NDArray[np.float64]:
        squares = np.sum((vectors - centre) ** 2, axis=1)
        return np.asarray(weights * np.exp(-squares / (2 * _WIDTH**2)))

    centre = max(vectors, key=lambda vector: float(near(vector).sum()))
    for _ in range(100):
        kernel = near(centre)
        following = kernel @ vectors / kernel.sum()
        if np.abs(following - centre).max() < 1e-5:
            break
        centre = following
    return np.asarray(centre)


def _refusal(matches: list[_Match], reason: str, agreeing: int) -> InputError:
    shown = "; ".join(f"{m.vector[0]:+.1f}, {m.vector[1]:+.1f} at {m.row}, {m.column}" for m in matches[:_SHOWN])
    vectors = f" (rows, columns at row, column: {shown}{'; ...' if len(matches) > _SHOWN else ''})" if matches else ""
    return InputError(
        f"--coregister: {reason}: of {len(matches)} windows with a clear match, {agreeing} agree within {TOLERANCE:g} "
        f"px{vectors}; if most of the area changed, or the dates differ by a rotation or a scale, register them with "
        "another tool first"
    )

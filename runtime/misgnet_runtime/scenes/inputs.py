"""Rasters looked at before a run: their digests, their state on disk, their scalings, and whether two lie together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from misgnet_runtime.bundle import file_sha256
from misgnet_runtime.errors import InputError
from misgnet_runtime.scenes.grids import Grid
from misgnet_runtime.scenes.options import Declared, SceneOptions
from misgnet_runtime.scenes.sampling import find_scaling, residual_shift
from misgnet_runtime.scenes.scaling import Scaling
from misgnet_runtime.scenes.source import Pair, Raster, open_pair


@dataclass(frozen=True)
class Date:
    """One raster: its digest, its size and time on disk, and how its values become RGB."""

    path: Path
    sha256: str
    stamp: tuple[int, int]
    scaling: Scaling

    def check_unchanged(self) -> None:
        """InputError where the file is not what was looked at."""
        if _stamp(self.path) != self.stamp:
            raise InputError("an input raster was changed while it was read; start anew with --restart")


@dataclass(frozen=True)
class Inputs:
    """Both dates, the grid of the map, the second's shift against the first, and how a thread opens them anew."""

    before: Date
    after: Date
    grid: Grid
    shift: tuple[float, float] | None
    open_pair: Callable[[], AbstractContextManager[Pair]]

    @property
    def scalings(self) -> tuple[Scaling, Scaling]:
        return self.before.scaling, self.after.scaling

    def words(self) -> list[str]:
        """What a user should know before the run: scalings, and a warning."""
        lines = [f"{date}: {scaling}" for date, scaling in zip(("before", "after"), self.scalings, strict=True)]
        if self.shift and max(map(abs, self.shift)) > 1:
            lines.append(
                f"warning: the second date lies about {self.shift[0]:+.0f} rows and {self.shift[1]:+.0f} columns "
                "beside the first; what does not move may be taken for change: register them first"
            )
        return lines


def look_at(before: Path | Date, after: Path, options: SceneOptions, grid: Grid | None = None) -> Inputs:
    """All that is decided before the first tile; a first date that was looked at already is taken as it is.

    Raises as :func:`open_pair`, which knows ``grid``, and :func:`find_scaling`.
    """
    path = before.path if isinstance(before, Date) else before
    opened = partial(open_pair, path, after, align=options.align, grid=grid)
    with opened() as pair:
        first = before if isinstance(before, Date) else look_at_date(pair.before, path, options.before)
        second = look_at_date(pair.after, after, options.after)
        shift = residual_shift(pair, (first.scaling, second.scaling))
        return Inputs(first, second, pair.grid, shift, opened)


def look_at_date(raster: Raster, path: Path, declared: Declared) -> Date:
    """One date, open as ``raster`` on the grid of its map; raises as :func:`find_scaling`."""
    scaling = find_scaling(raster, declared)
    stamp = _stamp(path)
    return Date(path, file_sha256(path), stamp, scaling)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"input {error.filename} cannot be read any more: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns

"""Reads both dates of a scene in windows: the network's bands and samples, and a mask of valid pixels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.errors import InputError, NetworkError, UnreadableError
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.file_metadata import FileMetadata, file_metadata, is_data
from misgnet_runtime.raster.geotiff import GDAL, cache_for, check_memory, load_rasterio
from misgnet_runtime.raster.grid import Grid, check_alike, check_overlap, check_same
from misgnet_runtime.raster.metadata import BandMetadata, acquired, check_interpretation, together
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.source import RasterFile, as_source
from misgnet_runtime.raster.tiff import may_be_tiff
from misgnet_runtime.raster.tiff_blocks import blocks_of
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.unreadable import Blocks, StackedBlocks, UnreadableBlock, Values
from misgnet_runtime.raster.warping import Warping, moved, source_window, warped

_MOST_WARPED_BANDS = 8


@dataclass(frozen=True)
class Pixels:
    """The pixels of a window of both dates.

    If either date has no data at a pixel, both have the format's neutral values, so that no change appears there.
    """

    before: Image  # (h, w, C)
    after: Image  # (h, w, C)
    valid: Mask  # bool (h, w): both dates have data
    unreadable: frozenset[UnreadableBlock] = frozenset()  # blocks that failed to decode


@dataclass(frozen=True, kw_only=True)
class Raster:
    """One open date. One thread at a time may read; a thread that did not open it must use :meth:`in_thread`."""

    date: str  # "before" or "after"
    dataset: Any  # rasterio's dataset; warped if the date is read on another grid than that of its file
    alpha: int | None  # the alpha band (from 1)
    state: Hashable  # of the file when it was opened
    blocks: Blocks  # of the file when it was opened
    metadata: FileMetadata  # cached: after a failed read, rasterio's colorinterp raises its error again
    options: Mapping[str, Any]  # GDAL's options, with which it was opened
    pixels: PixelFormat  # what its values are converted to
    source: Raster | None = None  # the file's own raster, if ``dataset`` is warped
    warping: tuple[Grid, Grid] | None = None  # its grid, maybe moved against what the file states, and that of the map
    # The files that are read as its bands, if it is a stack: then the other fields are those of the first file.
    parts: tuple[Raster, ...] = ()

    @property
    def origin(self) -> RasterFile:
        """What it is read from."""
        return self.blocks.source

    def in_thread(self) -> AbstractContextManager[Any]:
        """Returns a context with GDAL's options, which are per thread, for threads that did not open the raster."""
        found: AbstractContextManager[Any] = load_rasterio("a scene").Env(**self.options)
        return found

    @property
    def file(self) -> Any:
        """The file's own dataset, also if ``dataset`` is warped."""
        return self.dataset if self.source is None else self.source.dataset

    @property
    def name(self) -> str:
        return str(self.origin)

    @property
    def colours(self) -> tuple[str, ...]:
        """The names of the colours of all bands; see :data:`misgnet_runtime.raster.metadata.UNSTATED`."""
        return tuple(colour for part in self.parts or (self,) for colour in part.metadata.colours)

    @property
    def contradictions(self) -> tuple[tuple[str, str], ...]:
        """Contradictions between item and files: the option that settles each, and the message."""
        return tuple(one for part in self.parts or (self,) for one in part.metadata.contradictions)

    def of(self, origin: RasterFile) -> Raster:
        """Returns the same raster, as read from ``origin``: a STAC Item may name its file."""
        return replace(self, blocks=replace(self.blocks, source=origin))

    def stated(self, bands: tuple[int, ...]) -> BandMetadata:
        """Returns the metadata about ``bands`` (from 1)."""
        if self.parts:
            return together([self.parts[band - 1].stated((1,)) for band in bands])
        return self.metadata.of_bands(self.file, bands)

    def nodata(self, bands: tuple[int, ...]) -> tuple[float | None, ...]:
        """Returns the nodata value of each of ``bands`` (from 1)."""
        if self.parts:
            return tuple(self.parts[band - 1].metadata.nodata for band in bands)
        return (self.metadata.nodata,) * len(bands)

    def acquired(self) -> datetime | None:
        """Returns when the image was taken, from an item or from the file's tags, or None."""
        return self.origin.acquired or acquired(self.file)

    def read(self, bands: tuple[int, ...], rows: Span, columns: Span) -> Values:
        """Reads a window: stored values (B, h, w), their validity, bool (h, w), and blocks that failed to decode.

        Unreadable blocks, NaN, Inf, and pixels with a mask or an alpha of 0 are not valid. A pixel with the file's
        nodata value is not valid if any band has that value; for 8-bit values, where it may also be a colour, only if
        all bands have it.
        """
        rasterio = load_rasterio("a scene")
        # GDAL would warp missing blocks as zeros, and its time grows with the square of the number of bands.
        if self.source is not None and (
            self.parts or self.blocks.has_gaps or self.dataset.count > _MOST_WARPED_BANDS
        ):  # fmt: skip
            return self._from_source(self.source, bands, rows, columns)
        if self.parts:
            return self._from_parts([self.parts[band - 1] for band in bands], rows, columns)
        unreadable = frozenset[UnreadableBlock]()
        if self.origin.fetches:
            self._fetch(rasterio, bands, rows, columns)
        try:
            values, valid = self._values(rasterio, bands, rows, columns)
        except rasterio.errors.RasterioError:
            if self.source is not None:
                return self._from_source(self.source, bands, rows, columns)
            values, valid, unreadable = self._by_block(rasterio, bands, rows, columns)
        gaps = self.blocks.gaps(self._with_alpha(bands), rows, columns) if self.source is None else None
        return values, valid if gaps is None else valid & ~gaps, unreadable

    def image(self, scaling: Scaling, rows: Span, columns: Span) -> tuple[Image, Mask, frozenset[UnreadableBlock]]:
        """Reads a window in the raster's pixel format, (h, w, C); the other values are those of :meth:`read`."""
        values, valid, unreadable = self.read(scaling.bands, rows, columns)
        return scaling.apply(values), valid, unreadable

    def _fetch(self, rasterio: Any, bands: tuple[int, ...], rows: Span, columns: Span) -> None:
        """Fetches all blocks of a window together; GDAL would ask for one after the other."""
        window: tuple[Span, Span] | None = rows, columns
        wanted: Iterable[int] = self._with_alpha(bands)
        if self.source is not None and self.warping is not None:
            window = source_window(rasterio, *self.warping, rows, columns)
            wanted = range(1, self.source.dataset.count + 1)
        if window is not None:
            self.origin.fetch(self.blocks.tiff.ranges(wanted, *window))

    def _from_source(self, source: Raster, bands: tuple[int, ...], rows: Span, columns: Span) -> Values:
        assert self.warping is not None
        return Warping(partial(source.read, bands), *self.warping, source.dataset.dtypes[0], len(bands)).window(
            rows, columns
        )

    @staticmethod
    def _from_parts(parts: list[Raster], rows: Span, columns: Span) -> Values:
        """Reads one band from each file. Nodata values count as in one file with all bands: see :func:`is_data`."""
        plain = [replace(part, metadata=replace(part.metadata, nodata=None)) for part in parts]
        found = [part.read((1,), rows, columns) for part in plain]
        values = np.concatenate([part[0] for part in found])
        valid = np.logical_and.reduce([part[1] for part in found])
        valid &= is_data(values, [part.metadata.nodata for part in parts])
        return values, valid, frozenset(block for part in found for block in part[2])

    def _with_alpha(self, bands: tuple[int, ...]) -> list[int]:
        return [*bands, *([self.alpha] if self.alpha else [])]

    def _by_block(self, rasterio: Any, bands: tuple[int, ...], rows: Span, columns: Span) -> Values:
        values = np.zeros((len(bands), rows.length, columns.length), self.dataset.dtypes[bands[0] - 1])
        valid = np.zeros(values.shape[1:], np.bool_)
        unreadable: set[UnreadableBlock] = set()
        for block_rows, block_columns in self._blocks(rows, columns):
            part = rows.common(block_rows), columns.common(block_columns)
            inside = part[0].within(rows), part[1].within(columns)
            try:
                values[(slice(None), *inside)], valid[inside] = self._values(rasterio, bands, *part)
            except rasterio.errors.RasterioError:
                where = block_rows.start, block_columns.start, block_rows.length, block_columns.length
                unreadable.add((self.date, *where))
        return values, valid, frozenset(unreadable)

    def _blocks(self, rows: Span, columns: Span) -> Iterator[tuple[Span, Span]]:
        """Yields the file's blocks that overlap a window."""
        height, width = self.dataset.block_shapes[0]
        for top in range(rows.start // height * height, rows.stop, height):
            for left in range(columns.start // width * width, columns.stop, width):
                yield (
                    Span(top, min(top + height, self.dataset.height)),
                    Span(left, min(left + width, self.dataset.width)),
                )

    def _values(self, rasterio: Any, bands: tuple[int, ...], rows: Span, columns: Span) -> tuple[NDArray[Any], Mask]:
        with self.origin.guarded():
            return self._read(rasterio, bands, rows, columns)

    def _read(self, rasterio: Any, bands: tuple[int, ...], rows: Span, columns: Span) -> tuple[NDArray[Any], Mask]:
        window = rasterio.windows.Window(columns.start, rows.start, columns.length, rows.length)
        wanted = self._with_alpha(bands)
        if self.source is not None:  # GDAL warps all bands together five times faster than a selection
            read = self.dataset.read(window=window)[[band - 1 for band in wanted]]
        else:
            read = self.dataset.read(wanted, window=window)
        values = read[: len(bands)]
        valid = is_data(values, self.nodata(bands))
        if self.alpha:
            valid &= read[-1] != 0
        if any(flag.name == "per_dataset" for flag in self.dataset.mask_flag_enums[0]) and not self.alpha:
            valid &= self.dataset.read_masks(1, window=window) != 0
        return values, valid


@dataclass(frozen=True)
class Pair:
    """Both dates on the grid of BEFORE; see :func:`open_pair`. Threads use it like a :class:`Raster`."""

    before: Raster
    after: Raster
    grid: Grid

    def in_thread(self) -> AbstractContextManager[Any]:
        """Same as :meth:`Raster.in_thread`; the options of AFTER, which was opened last, cover both dates."""
        return self.after.in_thread()

    def read(self, scalings: tuple[Scaling, Scaling], rows: Span, columns: Span) -> Pixels:
        """Reads the pixels of a window, scaled to the rasters' pixel format."""
        before, first, unreadable = self.before.image(scalings[0], rows, columns)
        after, second, also = self.after.image(scalings[1], rows, columns)
        valid = first & second
        neutral = self.before.pixels.neutral
        return Pixels(
            neutralised(before, valid, neutral), neutralised(after, valid, neutral), valid, unreadable | also
        )  # fmt: skip


def neutralised(image: Image, valid: Mask, neutral: tuple[int, ...]) -> Image:
    """Returns ``image``, (h, w, C), with the C ``neutral`` values where ``valid``, bool (h, w), is False."""
    return image if valid.all() else np.where(valid[..., None], image, np.array(neutral, image.dtype))


@contextmanager
def open_pair(
    before: RasterFile | Path, after: RasterFile | Path, *, align: bool, pixels: PixelFormat = RGB8
) -> Iterator[Pair]:
    """Opens both rasters and checks their headers; their values are converted to ``pixels``.

    Both must have the same grid; with ``align``, AFTER is warped onto the grid of BEFORE as it is read. Raises as
    :func:`open_raster`.
    """
    with open_raster(before, "before", pixels=pixels) as first:
        grid = Grid.of(first.dataset)
        with open_raster(after, "after", grid, align=align, pixels=pixels) as second:
            yield Pair(first, second, grid)


@contextmanager
def open_raster(
    given: RasterFile | Path, date: str, grid: Grid | None = None, *, align: bool = False, pixels: PixelFormat = RGB8
) -> Iterator[Raster]:
    """Opens one date.

    Args:
        given: A GeoTIFF.
        date: "before" or "after".
        grid: The grid it must have, or is warped onto (default: any).
        align: Warp it onto ``grid`` (bilinear) as it is read.
        pixels: What its values are converted to.

    Raises:
        InputError: The file is not a GeoTIFF, has too large blocks, or metadata that cannot be honoured; or the grids
            differ, or do not overlap.
        UnreadableError: The file is truncated.
    """
    rasterio = load_rasterio("a scene")
    held = rasterio.env.getenv().get("GDAL_CACHEMAX", 0) if rasterio.env.hasenv() else 0  # needed by the other date
    with rasterio.Env(**GDAL), ExitStack() as stack:
        source = as_source(given)
        stack.callback(source.close)
        source.require()
        state = source.state()
        parts = [_opened_file(rasterio, stack, part, date, pixels) for part in source.parts or (source,)]
        raster = _stacked(parts, source) if len(parts) > 1 else parts[0].of(source)
        options = {**GDAL, "GDAL_CACHEMAX": max(held, sum(cache_for(part.dataset) for part in parts))}
        stack.enter_context(rasterio.Env(**options))
        raster = replace(raster, state=state, options=options)
        if grid is not None and align:
            check_overlap(rasterio, grid, Grid.of(raster.dataset))
            raster = stack.enter_context(_warped(rasterio, raster, Grid.of(raster.dataset), grid))
        elif grid is not None:
            check_same(grid, Grid.of(raster.dataset))
        yield raster


@contextmanager
def move_after(pair: Pair, rows: float, columns: float) -> Iterator[Pair]:
    """Yields an open pair with AFTER moved back by an offset of its content from BEFORE, in pixels; bilinear.

    It is warped once, also if it already was warped onto BEFORE's grid.
    """
    rasterio, own = load_rasterio("a scene"), pair.after.source or pair.after
    source = moved(rasterio, Grid.of(own.dataset), pair.grid, rows, columns)
    with pair.in_thread(), _warped(rasterio, own, source, pair.grid) as after:
        yield replace(pair, after=after)


@contextmanager
def _warped(rasterio: Any, raster: Raster, source: Grid, grid: Grid) -> Iterator[Raster]:
    """Yields an open raster, whose own grid is ``source``, warped onto ``grid``."""
    nodata = raster.metadata.nodata
    without_nodata = nodata is None and raster.alpha is None and not raster.parts  # of a stack, only the grid
    grids = source, grid
    with warped(rasterio, raster.dataset, grids, nodata, add_alpha=without_nodata) as vrt:
        yield replace(raster, dataset=vrt, alpha=_alpha(_colours(vrt)), source=raster, warping=grids)


def _opened_file(rasterio: Any, stack: ExitStack, source: RasterFile, date: str, pixels: PixelFormat) -> Raster:
    """Opens one file; ``stack`` closes it."""
    dataset = stack.enter_context(_checked(rasterio, source, pixels))
    metadata = file_metadata(dataset, source.stated, str(source))
    return Raster(
        date=date, dataset=dataset, alpha=_alpha(metadata.colours), state=None, metadata=metadata, options=GDAL,
        blocks=Blocks.of(source, nodata=metadata.nodata is not None), pixels=pixels,
    )  # fmt: skip


def _stacked(parts: list[Raster], source: RasterFile) -> Raster:
    """Returns the files, opened as ``parts``, as one raster."""
    check_alike({part.name: part.dataset for part in parts}, str(source))
    blocks = StackedBlocks(source, parts[0].blocks.tiff, nodata=False, parts=tuple(part.blocks for part in parts))
    return replace(parts[0], blocks=blocks, parts=tuple(parts))


def _checked(rasterio: Any, source: RasterFile, pixels: PixelFormat) -> Any:
    dataset = _opened(rasterio, source)
    check_memory(dataset, 0, "a window")
    check_interpretation(dataset, source, pixels)
    return dataset


def _opened(rasterio: Any, source: RasterFile) -> Any:
    try:
        return source.dataset(rasterio)
    except NetworkError:
        raise
    except InputError as error:
        try:
            with source.open() as file:
                if may_be_tiff(file):
                    blocks_of(file, source)
        except UnreadableError as reason:
            raise UnreadableError(f"{error}; {reason}") from error
        raise


def _colours(dataset: Any) -> tuple[str, ...]:
    return tuple(colour.name for colour in dataset.colorinterp)


def _alpha(colours: tuple[str, ...]) -> int | None:
    """Returns the number of the alpha band, or None."""
    return colours.index("alpha") + 1 if "alpha" in colours else None

"""Checks whether a build could start: reads and inspects the network and what else was given, and builds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, replace
from pathlib import Path

from misgnet_export.pipeline.request import BuildRequest, check_model, check_request, with_interface
from misgnet_export.sources import open_source
from misgnet_export.sources.options import kind_of
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.options import stated
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.atomic import refuse_existing


def check_build(request: BuildRequest, report: Callable[[str], None]) -> None:
    """Reports what was found, and what a build still needs, in words.

    Args:
        request: The options; required ones that are missing are None.
        report: Is called with each line.

    Raises:
        MisgnetError: A build could not start. One message states all reasons; its class is that of the first one.
    """
    problems: list[MisgnetError] = []
    pixels = _declared_pixels(request)
    with _collected(problems):
        pixels = _check_source(request, report)
    with _collected(problems):
        check_request(request)
    if request.output is not None:
        with _collected(problems):
            refuse_existing(request.output, request.force)
    for flag, folder in (("--calib", request.calib), ("--val", request.val), ("--eval", request.evaluation)):
        if folder is not None:
            with _collected(problems):
                report(_check_tiles(flag, folder, pixels))
    if problems:
        raise type(problems[0])("; ".join(dict.fromkeys(map(str, problems))))
    lacking = [one for one in stated(BuildRequest).values() if one.default is MISSING and one.value_in(request) is None]
    needs = f"; it also needs {', '.join(one.usage for one in lacking)}" if lacking else ""
    report(f"a build can start{needs}")


@contextmanager
def _collected(problems: list[MisgnetError]) -> Iterator[None]:
    try:
        yield
    except MisgnetError as error:
        problems.append(error)


def _check_source(request: BuildRequest, report: Callable[[str], None]) -> PixelFormat:
    """Reports what was found in the network; returns the format of its images."""
    if request.source is None:
        raise UsageError("missing: SOURCE")
    try:
        source = open_source(request.source, request.model)
    except UsageError as error:
        for words in getattr(error, "__notes__", ()):
            report(words)
        raise
    for words in source.findings:
        report(words)
    _, interface = with_interface(replace(request, tile=None) if request.tile == "auto" else request, source)
    check_model(request, source.float_model(interface))
    report(_tiles_in_words(request, interface))
    return interface.pixels


def _tiles_in_words(request: BuildRequest, interface: Interface) -> str:
    tile = "tiles of a size yet to be chosen" if request.tile == "auto" else f"tiles of {interface.tile} px"
    return f"{tile}, batches of up to {interface.max_batch}"


def _declared_pixels(request: BuildRequest) -> PixelFormat | None:
    """Returns the format of the images if it is known without the network."""
    what = request.model
    if what.bands is None and (request.source is None or kind_of(request.source) != "misgnet"):
        return None
    return PixelFormat(what.bands or RGB8.bands, what.samples)


def _check_tiles(flag: str, folder: Path, pixels: PixelFormat | None) -> str:
    """Opens a set of tiles and reads the first one, if the format of the images is known."""
    if pixels is None and folder.is_dir():
        return f"{flag}: not read, since the bands of its images are not known"
    try:
        tiles = TileSet.open(folder, pixels=pixels or RGB8, labels="optional")
        next(tiles.tiles())
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error
    return f"{flag}: {plural(len(tiles.sources), 'image pair')}{'' if tiles.labelled else ', without labels'}"

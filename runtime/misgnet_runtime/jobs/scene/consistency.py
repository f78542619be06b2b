"""Checks that the pixels of two dates have the same meaning, and returns warnings if they may not. Pure functions."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.metadata import RGB, UNSTATED, BandMetadata
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.source import Identity, RasterFile

SAME_FILE = (
    "BEFORE and AFTER are the same file, so no change can be found; check that both dates are the intended files"
)


class Described(Protocol):
    """The attributes of :class:`misgnet_runtime.jobs.scene.inputs.Date` that are used here."""

    @property
    def origin(self) -> RasterFile: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def acquired(self) -> datetime | None: ...
    @property
    def scaling(self) -> Scaling: ...
    @property
    def declared(self) -> Declared: ...
    @property
    def stated(self) -> BandMetadata: ...


def check_statements(before: Described, after: Described) -> None:
    """Checks the options declared for both dates at once against the metadata of their files.

    Raises:
        InputError: One option would mean different colours, or different values, in the two dates.
    """
    first, second = before.stated, after.stated
    shared = before.declared.shared & after.declared.shared
    colours = _stated_colours(first.colours), _stated_colours(second.colours)
    option = _shared_choice(before, after)
    if option and None not in colours and colours[0] != colours[1]:
        bands = ",".join(map(str, before.scaling.bands if option == "bands" else before.declared.assets or ()))
        raise InputError(
            f"--{option} {bands} are {', '.join(first.colours)} according to {_where(before)}, but "
            f"{', '.join(second.colours)} according to {_where(after)}; declare each date's {option}: "
            f"--before-{option} and --after-{option}{_advice(before, after) if option == 'bands' else ''}"
        )
    scaled = before.declared.scale or before.declared.offset
    if scaled and {"scale", "offset"} <= shared and first.values() != second.values():
        raise InputError(
            f"one --scale and --offset is declared for both dates, but {_where(before)} state {first.values()}, "
            f"{_where(after)} {second.values()}; declare each date's: --before-scale, --before-offset, --after-scale "
            "and --after-offset"
        )


def _shared_choice(before: Described, after: Described) -> str | None:
    """Returns the option that chooses the bands of both dates at once, or None."""
    shared = before.declared.shared & after.declared.shared
    if "bands" in shared and before.declared.bands:
        return "bands"
    stated = before.stated.stated and after.stated.stated
    return "assets" if stated and "assets" in shared and before.declared.assets else None


def _where(date: Described) -> str:
    return f"the tags of {date.origin}" if not date.stated.stated else f"STAC Item {date.origin}"


def pair_warnings(before: Described, after: Described) -> list[str]:
    """Returns warnings about two dates: unexpected band colours, the same file twice, wrong order."""
    if before.identity == after.identity:
        return [*band_warnings(before), SAME_FILE]
    order = wrong_order(before.acquired, after.acquired)
    return [*band_warnings(before), *band_warnings(after), *([order] if order else [])]


def band_warnings(date: Described) -> list[str]:
    """Returns a warning if the file's metadata contradict the bands used as red, green and blue.

    What other numbers of bands mean is not known, so nothing can contradict it.
    """
    if len(date.scaling.bands) != len(RGB):
        return []
    wrong = [
        f"band {band} is used as {meant}, but the file's metadata say {colour}"
        for band, meant, colour in zip(date.scaling.bands, RGB, date.stated.colours, strict=True)
        if colour not in (*UNSTATED, meant)
    ]
    return [f"{date.origin.name}: {'; '.join(wrong)}"] if wrong else []


def wrong_order(before: datetime | None, after: datetime | None) -> str | None:
    """Returns a warning if both acquisition times are known and AFTER is not later than BEFORE; else None."""
    if before is None or after is None or before < after:
        return None
    if before == after:
        return (
            f"according to their metadata, BEFORE and AFTER were taken at the same time ({_shown(before)}); check that "
            "both dates are the intended files"
        )
    return (
        f"according to their metadata, BEFORE ({_shown(before)}) was taken after AFTER ({_shown(after)}); check that "
        "they are not swapped"
    )


def _shown(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds")


def _stated_colours(colours: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the colours, or None if the file states no band's colour."""
    return None if set(colours) <= set(UNSTATED) else colours


def _advice(before: Described, after: Described) -> str:
    """Returns the option to give, if one date has red, green and blue in another order; else an empty text."""
    for option, date in (("--before-bands", before), ("--after-bands", after)):
        stated = date.stated.colours
        if stated != RGB and sorted(stated) == sorted(RGB):
            bands = ",".join(str(date.scaling.bands[stated.index(colour)]) for colour in RGB)
            return f" (here: {option} {bands})"
    return ""

"""Whether two dates mean the same by their pixels, and what is to be warned of where they may not. Pure decisions."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Protocol

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.metadata import RGB, UNSTATED, BandMetadata
from misgnet_runtime.raster.scaling import Scaling

SAME_FILE = "BEFORE and AFTER are the same file, so nothing can have changed; is one of them meant to be another date?"


class Described(Protocol):
    """A date as far as it matters here: see :class:`misgnet_runtime.jobs.scene.inputs.Date`."""

    @property
    def path(self) -> Path: ...
    @property
    def sha256(self) -> str: ...
    @property
    def acquired(self) -> datetime | None: ...
    @property
    def scaling(self) -> Scaling: ...
    @property
    def declared(self) -> Declared: ...
    @property
    def stated(self) -> BandMetadata: ...


def check_statements(before: Described, after: Described) -> None:
    """Check what is declared of both dates at once against what their files state.

    Raises:
        InputError: One option would mean different colours, or different values, in the two dates.
    """
    first, second = before.stated, after.stated
    shared = before.declared.shared & after.declared.shared
    colours = _said(first.colours), _said(second.colours)
    if "bands" in shared and before.declared.bands and None not in colours and colours[0] != colours[1]:
        bands = ",".join(map(str, before.scaling.bands))
        raise InputError(
            f"--bands {bands} are {', '.join(first.colours)} by the tags of {before.path} and "
            f"{', '.join(second.colours)} by those of {after.path}; say it of each date: --before-bands and "
            f"--after-bands{_advice(before, after)}"
        )
    scaled = before.declared.scale or before.declared.offset
    if scaled and {"scale", "offset"} <= shared and first.values() != second.values():
        raise InputError(
            f"one --scale and --offset is declared for both dates, but the tags of {before.path} state "
            f"{first.values()}, those of {after.path} {second.values()}; declare each date's: --before-scale, "
            "--before-offset, --after-scale and --after-offset"
        )


def pair_warnings(before: Described, after: Described) -> list[str]:
    """What may be wrong with two dates that are compared: their bands' colours, one file twice, their order."""
    if before.sha256 == after.sha256:
        return [*band_warnings(before), SAME_FILE]
    order = wrong_order(before.acquired, after.acquired)
    return [*band_warnings(before), *band_warnings(after), *([order] if order else [])]


def band_warnings(date: Described) -> list[str]:
    """That the bands declared red, green and blue are called other colours by the file."""
    wrong = [
        f"band {band} is taken as {meant}, and the file calls it {colour}"
        for band, meant, colour in zip(date.scaling.bands, RGB, date.stated.colours, strict=True)
        if colour not in (*UNSTATED, meant)
    ]
    return [f"{date.path.name}: {'; '.join(wrong)}"] if wrong else []


def wrong_order(before: datetime | None, after: datetime | None) -> str | None:
    """What to warn of where both dates say when they were taken; None where AFTER is the later one."""
    if before is None or after is None or before < after:
        return None
    if before == after:
        return f"BEFORE and AFTER were taken at the same time by their metadata, {_shown(before)}; are both right?"
    return f"BEFORE was taken after AFTER by their metadata ({_shown(before)}, {_shown(after)}); are they exchanged?"


def _shown(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds")


def _said(colours: tuple[str, ...]) -> tuple[str, ...] | None:
    """The stated colours, None where the file says nothing of any band."""
    return None if set(colours) <= set(UNSTATED) else colours


def _advice(before: Described, after: Described) -> str:
    """The bands of the date that contradicts, where its colours are red, green and blue in another order."""
    for option, date in (("--before-bands", before), ("--after-bands", after)):
        stated = date.stated.colours
        if stated != RGB and sorted(stated) == sorted(RGB):
            bands = ",".join(str(date.scaling.bands[stated.index(colour)]) for colour in RGB)
            return f", here {option} {bands}"
    return ""

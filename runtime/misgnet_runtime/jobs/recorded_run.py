"""Records in an output which run wrote it, so that ``--skip-existing`` can compare it with another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.selection import Opened
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.raster.dataset import Source
from misgnet_runtime.raster.geotiff import read_tags
from misgnet_runtime.raster.images import read_mask_tags
from misgnet_runtime.raster.writer import is_mask
from misgnet_runtime.storage.jsonl import difference
from misgnet_runtime.storage.snapshot import Snapshot

_SETTINGS, _DATES = "MISGNET_SETTINGS", ("MISGNET_BEFORE_SHA256", "MISGNET_AFTER_SHA256")


def common_settings(bundle: Bundle, opened: Opened, options: SceneOptions) -> dict[str, str]:
    """Returns the settings that masks and maps depend on; the keys appear in messages."""
    detector, entry, _ = opened
    return {
        "the bundle": bundle.digest(),
        "the engine": f"{entry.name} on {detector.engine.device}",
        **({} if options.threshold is None else {"--threshold": f"{options.threshold:g}"}),
    }


def overlap_setting(size: tuple[int, int], tile: int, overlap: int) -> dict[str, str]:
    """Returns the setting that only masks of images larger than a tile depend on; ``size``: height and width."""
    return {"--overlap": str(overlap)} if max(size) > tile else {}


def settings_tag(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the tag that states the settings of a run; the keys appear in messages."""
    return {_SETTINGS: msgspec.json.encode(dict(settings), order="sorted").decode()}


def date_tags(snapshot: Snapshot, before: Path, after: Path) -> dict[str, str]:
    """Returns the tags that identify the files of a pair, of which ``snapshot`` was taken before they were read.

    Raises:
        InputError: A file changed since.
    """
    found = {tag: snapshot.sha256(path) for tag, path in zip(_DATES, (before, after), strict=True)}
    snapshot.check()
    return found


def other_run(output: Path, settings: Mapping[str, str], source: Source) -> str | None:
    """Returns how the run that wrote ``output`` differs from one of ``source`` with ``settings``; None: not at all."""
    try:
        tags = read_mask_tags(output) if is_mask(output) else read_tags(output)
    except InputError as error:
        return f"it cannot be read: {error}"
    try:
        then = msgspec.json.decode(tags.get(_SETTINGS, ""), type=dict[str, str])
    except msgspec.DecodeError:
        return "it does not state which run wrote it"
    if changes := difference(then, dict(settings)):
        return f"it was written with {changes}"
    now = date_tags(Snapshot(source.paths), source.before, source.after)
    changed = [date for date, tag in zip(("BEFORE", "AFTER"), _DATES, strict=True) if tags.get(tag) != now[tag]]
    return f"{' and '.join(changed)} changed since it was written" if changed else None

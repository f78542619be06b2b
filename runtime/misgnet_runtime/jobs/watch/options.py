"""Options of a watcher. Cheap to import."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from misgnet_runtime.jobs.scene.options import VECTOR_SUFFIXES, SceneOptions
from misgnet_runtime.jobs.watch.pairing import FilePair, Naming
from misgnet_runtime.options import check, group, option, settings, stated
from misgnet_runtime.raster.declared import Declared

# Suffixes of output names, after the pair's name.
ENDINGS = (
    "_change.png", "_change.tif", "_probability.tif", "_quicklook.png", "_report.html", "_item.json",
    *(f"_change{end}" for end in VECTOR_SUFFIXES), "_change.qml", "_probability.qml",
)  # fmt: skip

_MAX = 1_000_000_000  # seconds or attempts; the system cannot wait longer


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """How a watcher finds and processes pairs."""

    naming: Naming = group(Naming)
    settle: float = option(
        2.0, help="Seconds without changes after which files count as complete. Unused with --marker.", minimum=0,
        maximum=_MAX,
    )  # fmt: skip
    poll: float = option(1.0, help="Seconds between two scans of the folder.", minimum=0.01, maximum=_MAX)
    once: bool = option(False, help="Process the pairs that are complete now, then exit.")
    reprocess: bool = option(False, help="Process pairs again if their files have changed.")
    retry_failed: bool = option(False, help="Process pairs again that failed before.")
    max_attempts: int = option(
        3, help="Crashes without progress after which a pair is marked as failed.", minimum=1, maximum=_MAX
    )
    max_seconds: float | None = option(
        None, help="Time limit per pair; pairs then run in a separate process (default: no limit).", minimum=0.1,
        maximum=_MAX,
    )  # fmt: skip
    force: bool = option(False, help="Replace outputs of other runs, and accept another bundle than before.")
    probability: bool = option(False, help="Also write NAME_probability.tif.", changes_output=True)
    vector: Literal["gpkg", "geojson", "fgb"] | None = option(
        None, help="Also write polygons as NAME_change with this extension.", changes_output=True
    )
    quicklook: bool = option(False, help="Also write NAME_quicklook.png.", changes_output=True)
    report: bool = option(False, help="Also write NAME_report.html.", changes_output=True, omit_default=True)
    stac_item: bool = option(
        False, help="Also write NAME_item.json, a STAC Item that describes all outputs of the pair.",
        changes_output=True, omit_default=True,
    )  # fmt: skip
    # How pairs of GeoTIFFs are processed.
    scene: SceneOptions = group(SceneOptions, without=("restart", "remote"), fixed={"force": True})

    def check(self) -> None:
        """Raises UsageError for invalid values, so that no pair fails because of them."""
        self.naming.check()
        check(self)
        self.scene_options("x", Path()).check(Path("x_change.tif"))

    def outputs(self, pair: FilePair) -> tuple[str, ...]:
        """Returns the output file names of a pair, the change raster or mask last."""
        if pair.kind == "image":
            return (f"{pair.name}_change.png",)
        change = Path(f"{pair.name}_change.tif")
        _, *others = self.scene_options(pair.name, Path()).outputs(change).values()
        return *(path.name for path in others), change.name

    def scene_options(self, name: str, folder: Path) -> SceneOptions:
        """Returns the options for the pair ``name``, whose products are written to ``folder``."""
        return replace(
            self.scene,
            probability=folder / f"{name}_probability.tif" if self.probability else None,
            vector=folder / f"{name}_change.{self.vector}" if self.vector else None,
            quicklook=folder / f"{name}_quicklook.png" if self.quicklook else None,
            report=folder / f"{name}_report.html" if self.report else None,
            stac_item=folder / f"{name}_item.json" if self.stac_item else None,
        )

    def settings(self) -> dict[str, str]:
        """Returns all settings that affect the results, except the bundle and the engine, for the journal."""
        found = settings(self)
        for date, declared in zip(("before", "after"), self.scene.dates, strict=True):
            values = {name: one.value_in(declared) for name, one in stated(Declared).items()}
            found.update({f"{date}-{name}": str(value) for name, value in values.items() if value is not None})
        return {**found, **({"aoi": os.path.realpath(self.scene.aoi)} if self.scene.aoi else {})}

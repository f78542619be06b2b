"""Options of a series of dates. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from misgnet_runtime.jobs.scene.options import OUTPUT_PANEL, SceneOptions
from misgnet_runtime.options import flag, group, option, settings, stated
from misgnet_runtime.raster.declared import Declared

if TYPE_CHECKING:
    from misgnet_runtime.raster.source import RasterFile

# Fields of SceneOptions that do not affect one date's features.
OF_MAPS = (
    "before", "after", "align", "cog", "min_area", "simplify", "probability", "vector", "quicklook", "report",
    "stac_item", "style", "threshold",
)  # fmt: skip
OF_PAIRS = ("aoi", "coregister")  # fields that are not offered for series
_DATES = {"before_": "the first date", "after_": "all later dates"}


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """Options for computing the maps of a series. Additional outputs are named after their date."""

    consecutive: bool = option(False, help="Compare each date with the previous one (default: with the reference).")
    features: Path | None = option(
        None, help="Features of the reference, written by encode (default: encode it, or reuse those in the folder)."
    )
    discard_features: bool = option(
        False, help="Remove the features from the folder at the end (default: kept for a later series)."
    )
    probability: bool = option(
        False, help="Also write the probability of change (float32), DATE.probability.tif.", panel=OUTPUT_PANEL
    )
    vector: bool = option(False, help="Also write polygons of changed areas, DATE.gpkg.", panel=OUTPUT_PANEL)
    quicklook: bool = option(
        False, help="Also write a small picture of both dates and the change, DATE.png.", panel=OUTPUT_PANEL
    )
    report: bool = option(
        False, help="Also write a page about both dates and the change, DATE.html.", panel=OUTPUT_PANEL
    )
    stac_item: bool = option(
        False, help="Also write a STAC Item that describes all outputs of a date, DATE.json.", panel=OUTPUT_PANEL
    )
    scene: SceneOptions = group(
        SceneOptions,
        without=OF_PAIRS,
        help={
            "force": "Replace existing outputs of other runs.",
            "align": "Warp every date whose grid differs onto the first date's grid (bilinear).",
            "restart": "Discard saved progress and start over; with --force, finished dates too.",
            **{
                prefix + name: f"Same as `{flag(name)}`, for {dates} only."
                for prefix, dates in _DATES.items()
                for name in stated(Declared)
            },
        },
    )

    def of_date(self, folder: Path, date: RasterFile) -> tuple[Path, SceneOptions]:
        """Returns the path of a date's change raster, and its options with the paths of its other outputs."""

        def named(requested: bool, ending: str) -> Path | None:
            return folder / f"{date.stem}{ending}" if requested else None

        return folder / f"{date.stem}.tif", replace(
            self.scene, probability=named(self.probability, ".probability.tif"), vector=named(self.vector, ".gpkg"),
            quicklook=named(self.quicklook, ".png"), report=named(self.report, ".html"),
            stac_item=named(self.stac_item, ".json"),
        )  # fmt: skip


def feature_settings(options: SceneOptions, *, overlap: int) -> dict[str, str]:
    """Returns the options that a date's features depend on, except those that the footer records under other names."""
    found = settings(options, overlap=overlap)
    return {flag(name): value for name, value in found.items() if name not in (*OF_MAPS, "batch")}

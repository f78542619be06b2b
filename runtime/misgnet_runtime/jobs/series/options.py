"""What a series of dates is asked for. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from misgnet_runtime.jobs.scene.options import OUTPUT_PANEL, SceneOptions
from misgnet_runtime.options import flag, group, option, settings, stated
from misgnet_runtime.raster.declared import Declared

# Fields of SceneOptions that say nothing of one date's features.
OF_MAPS = ("before", "after", "align", "cog", "min_area", "simplify", "probability", "vector", "quicklook")
_WHOSE = {"before_": "the first date", "after_": "all later dates"}


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """How a series becomes maps: ``scene`` of each pair; products are named after their date."""

    consecutive: bool = option(False, help="Compare each date with the one before.")
    features: Path | None = option(None, help="The reference's, made by encode.")
    discard_features: bool = option(False, help="Keep none in the folder for a later series.")
    probability: bool = option(False, help="Also DATE.probability.tif of float32.", panel=OUTPUT_PANEL)
    vector: bool = option(False, help="Also polygons of what changed, DATE.gpkg.", panel=OUTPUT_PANEL)
    quicklook: bool = option(False, help="Also a small picture of both dates and change, DATE.png.", panel=OUTPUT_PANEL)
    scene: SceneOptions = group(
        SceneOptions,
        help={
            "force": "Replace existing outputs of other runs.",
            "align": "Warp every date onto the first's grid (bilinear).",
            "restart": "Discard saved progress and start over, with --force also what is finished.",
            **{
                prefix + name: f"Same as `{flag(name)}`, for {whose} only."
                for prefix, whose in _WHOSE.items()
                for name in stated(Declared)
            },
        },
    )

    def of_date(self, folder: Path, date: Path) -> tuple[Path, SceneOptions]:
        """The change raster of a date, and its options with the names of its products."""

        def named(wanted: bool, ending: str) -> Path | None:
            return folder / f"{date.stem}{ending}" if wanted else None

        return folder / f"{date.stem}.tif", replace(
            self.scene, probability=named(self.probability, ".probability.tif"), vector=named(self.vector, ".gpkg"),
            quicklook=named(self.quicklook, ".png"),
        )  # fmt: skip


def feature_settings(options: SceneOptions, *, overlap: int) -> dict[str, str]:
    """What a date's features depend on, by option, beside what their footer records in other words."""
    found = settings(options, overlap=overlap)
    return {flag(name): value for name, value in found.items() if name not in (*OF_MAPS, "batch")}

"""What a scene's run is asked for. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import Option, Stated, check, flag, group, option, settings
from misgnet_runtime.raster.declared import PIXELS_PANEL, Declared

if TYPE_CHECKING:
    from misgnet_runtime.bundle.manifest import EngineEntry, Interface
    from misgnet_runtime.inference.tuned import OptimiseFor

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".fgb")
OUTPUT_PANEL = "GeoTIFF output"
_OUTPUT = Stated(
    name="output", option=Option(help="", suffixes=(".tif", ".tiff", ".png")), type=Path, default=None, path=()
)


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a pair of dates becomes a map. Each field is an option of the commands, and a column of batch's table."""

    engine: str = option(
        "auto", help="An engine of the bundle, or auto.", changes_output=True, recorded_as="the engine"
    )
    force: bool = option(False, help="Replace existing outputs.")
    probability: Path | None = option(
        None, help="Also the probability of change, .tif of float32.", panel=OUTPUT_PANEL, suffixes=(".tif", ".tiff"),
        changes_output=True,
    )  # fmt: skip
    vector: Path | None = option(
        None, help="Also polygons of what changed: .gpkg, .geojson or .fgb.", panel=OUTPUT_PANEL,
        suffixes=VECTOR_SUFFIXES, changes_output=True,
    )  # fmt: skip
    quicklook: Path | None = option(
        None, help="Also a small .png of before, after and change.", panel=OUTPUT_PANEL, suffixes=(".png",),
        changes_output=True,
    )  # fmt: skip
    cog: bool = option(False, help="Write rasters as Cloud Optimized GeoTIFF.", panel=OUTPUT_PANEL, changes_output=True)
    min_area: float = option(
        0.0, help="Smallest polygon in square metres (in pixels if the raster is not georeferenced).",
        panel=OUTPUT_PANEL, minimum=0, changes_output=True,
    )  # fmt: skip
    simplify: float = option(
        0.0, help="How far outlines of polygons may move, in pixels.", panel=OUTPUT_PANEL, minimum=0,
        changes_output=True,
    )  # fmt: skip
    align: bool = option(
        False, help="Warp AFTER onto BEFORE's grid (bilinear) where it has another.", panel=OUTPUT_PANEL,
        changes_output=True,
    )  # fmt: skip
    overlap: int | None = option(
        None, help="Pixels that neighbouring tiles share and blend (default: a quarter of a tile).",
        panel=OUTPUT_PANEL, changes_output=True,
    )  # fmt: skip
    execution: ExecutionOptions = group(ExecutionOptions, panel=OUTPUT_PANEL)
    tuned: bool = option(True, help="Ignore settings saved by `misgnet-run tune`.")
    restart: bool = option(False, help="Discard saved progress and start over.", panel=OUTPUT_PANEL)
    max_unreadable: float = option(
        0.0, help="Percent of either date's pixels that may lie in unreadable blocks (truncated or damaged file); "
        "beyond it the pair fails.",
        metavar="P", panel=PIXELS_PANEL, minimum=0, maximum=100,
    )  # fmt: skip
    both: Declared = group(Declared)
    before: Declared = group(Declared, prefix="before_", help="Same as `{flag}`, for BEFORE only.")
    after: Declared = group(Declared, prefix="after_", help="Same as `{flag}`, for AFTER only.")

    def check(self, output: Path) -> None:
        """Raise UsageError for invalid file names or values."""
        _OUTPUT.check(output)
        self.check_values()
        places = [path.resolve() for path in (output, *self.products().values())]
        if len(set(places)) < len(places):
            raise UsageError("two outputs have one name; give each a name of its own")

    def check_values(self) -> None:
        """Raise UsageError for values that cannot be used, whatever the output is."""
        check(self)
        for prefix, declared in (("", self.both), ("before_", self.before), ("after_", self.after)):
            declared.check(prefix)

    @property
    def dates(self) -> tuple[Declared, Declared]:
        """What is declared of each date, by itself or of both."""
        return self.before.over(self.both), self.after.over(self.both)

    @property
    def optimise_for(self) -> OptimiseFor | None:
        """What the engine is opened for."""
        return "throughput" if self.tuned else None

    def batch_of(self, entry: EngineEntry, interface: Interface, tuned: int | None = None) -> int:
        """Tiles that the engine of ``entry`` gets at once; ``tuned``: what was found best for it here."""
        from misgnet_runtime.engines import batch_for_scenes

        return min(self.execution.batch or tuned or batch_for_scenes(entry), interface.max_batch)

    def overlap_of(self, tile: int) -> int:
        """Pixels that neighbouring tiles of ``tile`` pixels share."""
        return tile // 4 if self.overlap is None else self.overlap

    def products(self) -> dict[str, Path]:
        """The outputs beside the change raster that were asked for, by option."""
        asked = {"probability": self.probability, "vector": self.vector, "quicklook": self.quicklook}
        return {name: path for name, path in asked.items() if path is not None}

    def settings(self, *, overlap: int, batch: int, streams: int) -> dict[str, str]:
        """What the outputs depend on, by option, for the journal; the arguments are what a run resolved them to.

        What a run records in other words, as its engine and its scalings, is left out.
        """
        found = settings(self, overlap=overlap, batch=batch, streams=streams)
        return {flag(name): value for name, value in found.items()}

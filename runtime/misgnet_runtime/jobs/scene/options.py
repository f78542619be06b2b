"""Options of a scene's run. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import Option, Stated, check, flag, group, option, settings
from misgnet_runtime.raster.declared import PIXELS_PANEL, Declared
from misgnet_runtime.raster.remote.options import RemoteOptions

if TYPE_CHECKING:
    from misgnet_runtime.bundle.manifest import EngineEntry, Interface, Manifest
    from misgnet_runtime.inference.tuned import OptimiseFor

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".fgb")
OUTPUT_PANEL = "GeoTIFF output"
_OUTPUT = Stated(
    name="output", option=Option(help="", suffixes=(".tif", ".tiff", ".png")), type=Path, default=None, path=()
)


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Options for computing the map of a pair. Each field is a command-line option and a column of batch's table."""

    engine: str = option(
        "auto", help="Engine of the bundle to run; auto takes the fastest that runs here.", changes_output=True,
        recorded_as="the engine",
    )  # fmt: skip
    force: bool = option(False, help="Replace existing outputs.")
    probability: Path | None = option(
        None, help="Also write the probability of change (float32) to this .tif file (default: not written).",
        panel=OUTPUT_PANEL, suffixes=(".tif", ".tiff"), changes_output=True,
    )  # fmt: skip
    vector: Path | None = option(
        None, help="Also write polygons of changed areas to this .gpkg, .geojson or .fgb file (default: not written).",
        panel=OUTPUT_PANEL, suffixes=VECTOR_SUFFIXES, changes_output=True,
    )  # fmt: skip
    quicklook: Path | None = option(
        None, help="Also write a small picture of both dates and the change to this .png file (default: not written).",
        panel=OUTPUT_PANEL, suffixes=(".png",), changes_output=True,
    )  # fmt: skip
    report: Path | None = option(
        None, help="Also write a page about both dates and the change to this .html file (default: not written).",
        panel=OUTPUT_PANEL, suffixes=(".html",), changes_output=True,
    )  # fmt: skip
    style: bool = option(
        False, help="Also write a QGIS style beside each raster: a .qml file of the same name.", panel=OUTPUT_PANEL,
        changes_output=True, omit_default=True,
    )  # fmt: skip
    stac_item: Path | None = option(
        None, help="Also write a STAC Item that describes all outputs to this .json file (default: not written).",
        panel=OUTPUT_PANEL, suffixes=(".json",), changes_output=True,
    )  # fmt: skip
    cog: bool = option(False, help="Write rasters as Cloud Optimized GeoTIFF.", panel=OUTPUT_PANEL, changes_output=True)
    min_area: float = option(
        0.0, help="Smallest polygon to write, in square metres (in pixels if the raster is not georeferenced).",
        panel=OUTPUT_PANEL, minimum=0, changes_output=True,
    )  # fmt: skip
    simplify: float = option(
        0.0, help="Tolerance for simplifying polygon outlines, in pixels.", panel=OUTPUT_PANEL, minimum=0,
        changes_output=True,
    )  # fmt: skip
    align: bool = option(
        False, help="Warp AFTER onto BEFORE's grid (bilinear) if their grids differ.", panel=OUTPUT_PANEL,
        changes_output=True,
    )  # fmt: skip
    coregister: Literal["shift"] | None = option(
        None, help="Before comparing, move AFTER by the offset between the dates, measured to a fraction of a pixel "
        "(default: not moved).",
        panel=OUTPUT_PANEL, changes_output=True,
    )  # fmt: skip
    aoi: Path | None = option(
        None, help="Compute only where polygons of this GeoJSON or GeoPackage file are, in any coordinate system "
        "(default: everywhere).",
        metavar="FILE", panel=OUTPUT_PANEL, changes_output=True, recorded_as="the area",
    )  # fmt: skip
    overlap: int | None = option(
        None, help="Pixels that neighbouring tiles share and blend (default: the bundle's overlap, see "
        "`misgnet-run info`).",
        changes_output=True,
    )  # fmt: skip
    threshold: float | None = option(
        None, help="Probability above which a pixel is changed (default: the bundle's threshold, at which its F1 was "
        "measured).",
        minimum=0, maximum=1, changes_output=True,
    )  # fmt: skip
    execution: ExecutionOptions = group(ExecutionOptions, panel=OUTPUT_PANEL)
    tuned: bool = option(True, help="Ignore settings saved by `misgnet-run tune`.")
    restart: bool = option(False, help="Discard saved progress and start over.", panel=OUTPUT_PANEL)
    max_unreadable: float = option(
        0.0, help="Highest percentage of either date's pixels in unreadable blocks (truncated or damaged file); above "
        "it, the pair fails.",
        metavar="P", panel=PIXELS_PANEL, minimum=0, maximum=100,
    )  # fmt: skip
    remote: RemoteOptions = group(RemoteOptions)
    both: Declared = group(Declared)
    before: Declared = group(Declared, prefix="before_", help="Same as `{flag}`, for BEFORE only.")
    after: Declared = group(Declared, prefix="after_", help="Same as `{flag}`, for AFTER only.")

    def check(self, output: Path) -> None:
        """Raises UsageError for invalid file names or values."""
        _OUTPUT.check(output)
        self.check_values()
        if self.style and not self.styles(output):
            raise UsageError(f"--style is for GeoTIFFs; choose -o {output.stem}.tif")
        paths = [path.resolve() for path in self.outputs(output).values()]
        if len(set(paths)) < len(paths):
            raise UsageError("two outputs have the same name; give each its own name")

    def check_values(self) -> None:
        """Raises UsageError for invalid values, except file names of outputs."""
        check(self)
        if self.coregister not in (None, "shift"):
            raise UsageError(f"--coregister is {self.coregister}; expected shift")
        for prefix, declared in (("", self.both), ("before_", self.before), ("after_", self.after)):
            declared.check(prefix)

    @property
    def dates(self) -> tuple[Declared, Declared]:
        """Options about the pixels of each date; those for one date take precedence over those for both."""
        return self.before.over(self.both), self.after.over(self.both)

    @property
    def optimise_for(self) -> OptimiseFor | None:
        """The saved settings of `misgnet-run tune` that are used; None: none."""
        return "throughput" if self.tuned else None

    def batch_of(self, entry: EngineEntry, interface: Interface, tuned: int | None = None) -> int:
        """Returns the tiles per inference call of an engine; ``tuned``: the best number measured here, if any."""
        from misgnet_runtime.engines import batch_for_scenes

        return min(self.execution.batch or tuned or batch_for_scenes(entry), interface.max_batch)

    def overlap_of(self, manifest: Manifest) -> int:
        """Returns how many pixels neighbouring tiles share: as requested, else as the bundle states."""
        return manifest.scene_overlap if self.overlap is None else self.overlap

    def inputs(self) -> list[Path]:
        """Returns the files, besides both dates, that the outputs depend on."""
        return [self.aoi] if self.aoi else []

    def threshold_of(self, manifest: Manifest) -> float:
        """Returns the probability above which a pixel is changed: as requested, else as the bundle states."""
        return manifest.threshold if self.threshold is None else self.threshold

    def products(self) -> dict[str, Path]:
        """Returns the requested outputs other than the change raster, by option."""
        requested = {
            "probability": self.probability, "vector": self.vector, "quicklook": self.quicklook, "report": self.report,
            "stac_item": self.stac_item,
        }  # fmt: skip
        return {name: path for name, path in requested.items() if path is not None}

    def styles(self, output: Path) -> dict[str, Path]:
        """Returns the QGIS styles to write, by the option of the raster that they are for; ``output``: the map."""
        rasters = {"output": output, "probability": self.probability} if self.style else {}
        return {
            name: path.with_suffix(".qml") for name, path in rasters.items() if path and path.suffix.lower() != ".png"
        }

    def outputs(self, output: Path) -> dict[str, Path]:
        """Returns all files to write, by option: the map ``output`` first, then the products, then the styles."""
        styles = {f"{name}_style": path for name, path in self.styles(output).items()}
        return {"output": output, **self.products(), **styles}

    def settings(self, *, overlap: int, batch: int, streams: int) -> dict[str, str]:
        """Returns the options that affect the outputs, for the journal; the arguments are their resolved values.

        Options that a run records under another name, such as its engine and scalings, are left out.
        """
        found = settings(self, overlap=overlap, batch=batch, streams=streams)
        return {flag(name): value for name, value in found.items()}

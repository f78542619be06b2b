"""What a scene's run is asked for. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from misgnet_runtime.bundle.manifest import EngineEntry, Interface
from misgnet_runtime.engines import ExecutionOptions, batch_for_scenes
from misgnet_runtime.errors import UsageError
from misgnet_runtime.inference.tuned_settings import Goal
from misgnet_runtime.raster.declared import Declared

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".fgb")


@dataclass(frozen=True)
class SceneOptions:
    """``overlap`` in pixels, a quarter of a tile without; ``streams`` batches of ``batch`` tiles, as suits the engine
    without, on ``threads`` of the CPU together; where ``tuned``, what is not given of these three is what was tuned
    here; ``min_area`` in m² (in pixels where the raster lies nowhere), ``simplify`` in pixels;
    ``max_unreadable``: percent of either date's pixels that may lie in unreadable blocks.
    """

    before: Declared = field(default_factory=Declared)
    after: Declared = field(default_factory=Declared)
    align: bool = False
    overlap: int | None = None
    batch: int | None = None
    streams: int | None = None
    threads: int | None = None
    cog: bool = False
    probability: Path | None = None
    vector: Path | None = None
    quicklook: Path | None = None
    min_area: float = 0.0
    simplify: float = 0.0
    engine: str = "auto"
    force: bool = False
    restart: bool = False
    tuned: bool = True
    max_unreadable: float = 0.0

    def check(self, output: Path) -> None:
        """UsageError where the files' names or the numbers cannot be meant."""
        for option, path, suffixes in (
            ("--output", output, (".tif", ".tiff", ".png")),
            ("--probability", self.probability, (".tif", ".tiff")),
            ("--vector", self.vector, VECTOR_SUFFIXES),
            ("--quicklook", self.quicklook, (".png",)),
        ):
            if path is not None and path.suffix.lower() not in suffixes:
                raise UsageError(f"{option} is {path.name}; choose a name that ends in {' or '.join(suffixes)}")
        places = [path.resolve() for path in (output, *self.products().values())]
        if len(set(places)) < len(places):
            raise UsageError("two outputs have one name; give each a name of its own")
        self.check_numbers()

    def check_numbers(self) -> None:
        """UsageError where a number cannot be meant."""
        for option, number, least in (
            ("--batch", self.batch, 1), ("--streams", self.streams, 1), ("--threads", self.threads, 1),
            ("--min-area", self.min_area, 0), ("--simplify", self.simplify, 0),
        ):  # fmt: skip
            if number is not None and not number >= least:
                raise UsageError(f"{option} is {number}; it is {least} or more")
        if not 0 <= self.max_unreadable <= 100:  # NaN fails too
            raise UsageError(f"--max-unreadable is {self.max_unreadable:g}; it is a percentage, 0 to 100")

    @property
    def execution(self) -> ExecutionOptions:
        """How the engine is run."""
        return ExecutionOptions(threads=self.threads, streams=self.streams, batch=self.batch)

    @property
    def goal(self) -> Goal | None:
        """What the engine is opened for."""
        return "throughput" if self.tuned else None

    def batch_of(self, entry: EngineEntry, interface: Interface, tuned: int | None = None) -> int:
        """Tiles that the engine of ``entry`` gets at once; ``tuned``: what was found best for it here."""
        return min(self.batch or tuned or batch_for_scenes(entry), interface.max_batch)

    def overlap_of(self, tile: int) -> int:
        """Pixels that neighbouring tiles of ``tile`` pixels share."""
        return tile // 4 if self.overlap is None else self.overlap

    def products(self) -> dict[str, Path]:
        """The outputs beside the change raster that were asked for, by option."""
        asked = {"probability": self.probability, "vector": self.vector, "quicklook": self.quicklook}
        return {name: path for name, path in asked.items() if path is not None}


@dataclass(frozen=True)
class SeriesOptions:
    """``scene``: of each pair, but for the products' names: ``products`` are asked for, and named after their date.

    ``scene.before`` is said of the reference, ``scene.after`` of every other date. ``features``: of the reference, as
    ``misgnet-run encode`` made them.
    """

    scene: SceneOptions = field(default_factory=SceneOptions)
    products: frozenset[str] = frozenset()
    consecutive: bool = False
    features: Path | None = None
    discard_features: bool = False

    def of_date(self, folder: Path, date: Path) -> tuple[Path, SceneOptions]:
        """The change raster of a date, and its options with the names of its products."""

        def named(product: str, ending: str) -> Path | None:
            return folder / f"{date.stem}{ending}" if product in self.products else None

        return folder / f"{date.stem}.tif", replace(
            self.scene, probability=named("probability", ".probability.tif"), vector=named("vector", ".gpkg"),
            quicklook=named("quicklook", ".png"),
        )  # fmt: skip

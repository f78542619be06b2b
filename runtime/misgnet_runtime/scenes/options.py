"""What a scene's run is asked for, and what its user declares of the pixels. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from misgnet_runtime.engines import batch_for_scenes
from misgnet_runtime.errors import UsageError
from misgnet_runtime.manifest import EngineEntry, Interface
from misgnet_runtime.tuning.settings import Goal

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".fgb")


@dataclass(frozen=True)
class Declared:
    """What is said of one date's raster; None where nothing is.

    ``bands``: which are red, green and blue, from 1. A stored value times ``scale`` plus ``offset`` is 0 for black and
    1 for white, one number or three; or ``stretch``: the percentiles of each band that become black and white.
    ``shared``: which of them are said of both dates at once.
    """

    bands: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    stretch: tuple[float, ...] | None = None
    shared: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def parse(
        cls, prefix: str, bands: str | None, scale: str | None, offset: str | None, stretch: str | None
    ) -> Declared:
        """From the words of ``--bands``, ``--scale``, ``--offset`` and ``--stretch``; ``prefix``: "before-", say.

        Raises UsageError for what is no number, too few or too many of them, or both a scale and a stretch.
        """
        found = cls(
            _numbers(f"--{prefix}bands", bands, (3,), "3,2,1"),
            _numbers(f"--{prefix}scale", scale, (1, 3), "0.0001"),
            _numbers(f"--{prefix}offset", offset, (1, 3), "-0.1"),
            _numbers(f"--{prefix}stretch", stretch, (2,), "2,98"),
        )
        if found.stretch and (found.scale or found.offset):
            raise UsageError(f"--{prefix}stretch finds scale and offset by itself; leave it out, or leave them out")
        if found.bands and not all(band >= 1 and band == int(band) for band in found.bands):
            raise UsageError(f"--{prefix}bands is '{bands}'; bands are counted from 1")
        if found.stretch and not 0 <= found.stretch[0] < found.stretch[1] <= 100:
            raise UsageError(f"--{prefix}stretch is '{stretch}'; it is two percentiles, the lower one first: 2,98")
        return found

    def over(self, common: Declared) -> Declared:
        """What is said of this date alone, and else of both: a scaling takes the place of a stretch, and back."""
        scaled = self.scale or self.offset
        return Declared(
            self.bands or common.bands,
            self.scale or (None if self.stretch else common.scale),
            self.offset or (None if self.stretch else common.offset),
            self.stretch or (None if scaled else common.stretch),
            frozenset(name for name in ("bands", "scale", "offset") if getattr(self, name) is None),
        )


_Words = tuple[str | None, str | None, str | None, str | None]


def declared_dates(both: _Words, before: _Words, after: _Words) -> tuple[Declared, Declared]:
    """What is said of each date, from bands, scale, offset and stretch; raises as :meth:`Declared.parse`."""
    common = Declared.parse("", *both)
    return Declared.parse("before-", *before).over(common), Declared.parse("after-", *after).over(common)


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


def _numbers(option: str, text: str | None, counts: tuple[int, ...], example: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in counts or not all(abs(number) < 1e30 for number in found):  # NaN fails too
        wanted = " or ".join(map(str, counts))
        raise UsageError(f"{option} is '{text}'; it takes {wanted} number{'s' * (counts != (1,))}, like {example}")
    return found

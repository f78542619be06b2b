"""What a watcher is asked for. Cheap to import."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.scene.options import VECTOR_SUFFIXES, SceneOptions
from misgnet_runtime.jobs.watch.pairing import FilePair, Naming

# All that outputs' names may end in, behind the pair's.
ENDINGS = (
    "_change.png", "_change.tif", "_probability.tif", "_quicklook.png", *(f"_change{end}" for end in VECTOR_SUFFIXES)
)  # fmt: skip

_MOST = 1_000_000_000  # seconds or attempts: what the system can wait for


@dataclass(frozen=True)
class Products:
    """What a pair of GeoTIFFs is made into beside NAME_change.tif; ``vector``: gpkg, geojson or fgb."""

    probability: bool = False
    vector: str | None = None
    quicklook: bool = False


@dataclass(frozen=True)
class WatchOptions:
    """``settle`` and ``poll`` in seconds; ``scene``: how pairs of GeoTIFFs are processed, without its files' names.

    ``reprocess``: pairs whose files have changed since they were processed; ``retry_failed``: those that failed before;
    ``force``: outputs that are there already are replaced, and another bundle may go on; ``max_attempts``: that end the
    process without progress, until a pair is set aside as failed; ``max_seconds``: of each pair, in a process of its
    own.
    """

    naming: Naming = field(default_factory=Naming)
    products: Products = field(default_factory=Products)
    scene: SceneOptions = field(default_factory=SceneOptions)
    settle: float = 2.0
    poll: float = 1.0
    once: bool = False
    reprocess: bool = False
    retry_failed: bool = False
    force: bool = False
    max_attempts: int = 3
    max_seconds: float | None = None

    def check(self) -> None:
        """UsageError for what cannot be meant, before any pair fails for it."""
        self.naming.check()
        if self.products.vector and f".{self.products.vector}" not in VECTOR_SUFFIXES:
            raise UsageError(f"--vector is '{self.products.vector}'; it is gpkg, geojson or fgb")
        for option, number, least in (
            ("--settle", self.settle, 0), ("--poll", self.poll, 0.01), ("--max-attempts", self.max_attempts, 1),
            ("--max-seconds", self.max_seconds, 0.1),
        ):  # fmt: skip
            if number is not None and not least <= number <= _MOST:
                raise UsageError(f"{option} is {number}; it is {least} or more, and {_MOST:,} at most")
        self.scene_options("x", Path()).check(Path("x_change.tif"))

    def outputs(self, pair: FilePair) -> tuple[str, ...]:
        """The names of what is made of a pair, the map or mask last."""
        if pair.kind == "image":
            return (f"{pair.name}_change.png",)
        products = self.scene_options(pair.name, Path()).products().values()
        return *(path.name for path in products), f"{pair.name}_change.tif"

    def scene_options(self, name: str, folder: Path) -> SceneOptions:
        """For the pair ``name``, its products in ``folder``."""
        wanted = self.products
        return replace(
            self.scene,
            probability=folder / f"{name}_probability.tif" if wanted.probability else None,
            vector=folder / f"{name}_change.{wanted.vector}" if wanted.vector else None,
            quicklook=folder / f"{name}_quicklook.png" if wanted.quicklook else None,
        )

    def settings(self) -> dict[str, str]:
        """What the results depend on, for the journal."""
        scene, found = asdict(self.scene), asdict(self.products)
        for date in ("before", "after"):
            found.update({f"{date}-{name}": value for name, value in scene[date].items() if name != "shared"})
        found.update({name: scene[name] for name in ("align", "overlap", "batch", "cog", "min_area", "simplify")})
        return {name: str(value) for name, value in found.items() if value is not None}

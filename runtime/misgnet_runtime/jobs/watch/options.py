"""What a watcher is asked for. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from misgnet_runtime.jobs.scene.options import VECTOR_SUFFIXES, SceneOptions
from misgnet_runtime.jobs.watch.pairing import FilePair, Naming
from misgnet_runtime.options import check, group, option, settings, stated
from misgnet_runtime.raster.declared import Declared

# All that outputs' names may end in, behind the pair's.
ENDINGS = (
    "_change.png", "_change.tif", "_probability.tif", "_quicklook.png", *(f"_change{end}" for end in VECTOR_SUFFIXES)
)  # fmt: skip

_MOST = 1_000_000_000  # seconds or attempts: what the system can wait for


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """How a watcher finds pairs, what it does with them, and how pairs of GeoTIFFs become maps (``scene``)."""

    naming: Naming = group(Naming)
    settle: float = option(
        2.0, help="Else: seconds that files must stay unchanged to be complete.", minimum=0, maximum=_MOST
    )
    poll: float = option(1.0, help="Seconds between two looks at the folder.", minimum=0.01, maximum=_MOST)
    once: bool = option(False, help="Process what is complete now, and end.")
    reprocess: bool = option(False, help="Process pairs again whose files have changed.")
    retry_failed: bool = option(False, help="Process pairs again that failed before.")
    max_attempts: int = option(
        3, help="Times that a pair may end the process without progress before it is set aside as failed.", minimum=1,
        maximum=_MOST,
    )  # fmt: skip
    max_seconds: float | None = option(
        None, help="Time limit for each pair, which then has a process of its own (default: no limit).", minimum=0.1,
        maximum=_MOST,
    )  # fmt: skip
    force: bool = option(False, help="Replace outputs of other runs; resume with another bundle.")
    probability: bool = option(False, help="Also NAME_probability.tif.", changes_output=True)
    vector: Literal["gpkg", "geojson", "fgb"] | None = option(
        None, help="Also polygons, as NAME_change with this ending.", changes_output=True
    )
    quicklook: bool = option(False, help="Also NAME_quicklook.png.", changes_output=True)
    scene: SceneOptions = group(SceneOptions, without=("restart",), fixed={"force": True})

    def check(self) -> None:
        """Raise UsageError for invalid values, before any pair fails for them."""
        self.naming.check()
        check(self)
        self.scene_options("x", Path()).check(Path("x_change.tif"))

    def outputs(self, pair: FilePair) -> tuple[str, ...]:
        """The names of what is made of a pair, the map or mask last."""
        if pair.kind == "image":
            return (f"{pair.name}_change.png",)
        products = self.scene_options(pair.name, Path()).products().values()
        return *(path.name for path in products), f"{pair.name}_change.tif"

    def scene_options(self, name: str, folder: Path) -> SceneOptions:
        """For the pair ``name``, its products in ``folder``."""
        return replace(
            self.scene,
            probability=folder / f"{name}_probability.tif" if self.probability else None,
            vector=folder / f"{name}_change.{self.vector}" if self.vector else None,
            quicklook=folder / f"{name}_quicklook.png" if self.quicklook else None,
        )

    def settings(self) -> dict[str, str]:
        """What the results depend on beside the bundle and the engine, for the journal."""
        found = settings(self)
        for date, declared in zip(("before", "after"), self.scene.dates, strict=True):
            values = {name: one.value_in(declared) for name, one in stated(Declared).items()}
            found.update({f"{date}-{name}": str(value) for name, value in values.items() if value is not None})
        return found

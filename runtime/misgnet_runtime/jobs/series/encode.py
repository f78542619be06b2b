"""Encodes a GeoTIFF into a file of its features."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.split_detector import SplitOpener, choose_split
from misgnet_runtime.jobs.journal import progress_folder
from misgnet_runtime.jobs.scene.consistency import band_warnings
from misgnet_runtime.jobs.scene.inputs import check_readable, warn_of_resolution
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.run import INTERRUPTED
from misgnet_runtime.jobs.series.encoding import SplitEngine, inspect_encoding, make_features, open_split_engine
from misgnet_runtime.jobs.series.features import SUFFIX, FeatureFile
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.raster.reader import open_raster
from misgnet_runtime.raster.source import RasterFile
from misgnet_runtime.raster.stac.locate import locate_dates
from misgnet_runtime.storage.atomic import refuse_existing


@dataclass(frozen=True)
class EncodeReport:
    """Report of a file of features that was written."""

    features: FeatureFile
    engine: SplitEngine
    resumed: int  # tiles encoded by an interrupted run

    def lines(self) -> list[str]:
        """Returns the report as lines of text."""
        path, footer = self.features.path, self.features.footer
        found = [
            f"{path}: {plural(len(footer.crc32), 'tile')}, {path.stat().st_size / 2**20:,.1f} MiB, "
            f"engine {self.engine.entry.name} ({self.engine.reason})"
        ]
        if self.resumed:
            found.append(f"resumed at tile {self.resumed}")
        return found

    def figures(self) -> dict[str, object]:
        """Returns the fields of the result event."""
        footer = self.features.footer
        return {
            "tiles": len(footer.crc32), "bytes": self.features.path.stat().st_size, "unread": len(footer.holes),
            "resumed": self.resumed, "engine": self.engine.entry.name, "reason": self.engine.reason,
            "sha256": self.features.sha256,
        }  # fmt: skip


def encode_file(
    bundle_path: Path,
    raster: RasterFile | Path | str,
    output: Path,
    options: SceneOptions | None = None,
    *,
    log: EventLog | None = None,
    progress: Progress | None = None,
    opener: SplitOpener = choose_split,
) -> EncodeReport:
    """Writes the features of a GeoTIFF as ``output``, for :func:`misgnet_runtime.jobs.series.series.run_series`.

    ``options.dates[0]`` states how to interpret the raster's pixels; ``opener`` opens the engine. Raises like
    :func:`predict_scene_files`; also GateFailed if a feature does not fit float16, and UsageError if the bundle is not
    split.
    """
    options, log = options or SceneOptions(), log or current()
    options.check_values()
    if output.suffix != SUFFIX:
        raise UsageError(f"--output is {output.name}; choose a name that ends in {SUFFIX}")
    output = Path(os.path.realpath(output))
    if not progress_folder(output).exists():
        refuse_existing(output, options.force)
    bundle = read_bundle(bundle_path)
    (source,) = locate_dates([raster], options.dates[:1], options.remote)
    with open_raster(source, "before", pixels=bundle.manifest.interface.pixels) as opened:
        check_readable(opened, options.max_unreadable)  # fails before the engine is opened
        with open_split_engine(bundle, options, opener) as engine:
            encoding = inspect_encoding(engine, opened, options)
            for line in encoding.date.lines():
                log.info(f"{opened.origin.name}: {line}")
            for warning in band_warnings(encoding.date):
                log.warning(warning)
            warn_of_resolution(opened, bundle.manifest.resolution, log)
            try:
                made, resumed = make_features(encoding, opened, output, log=log, progress=progress)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(INTERRUPTED) from None
    return EncodeReport(made, engine, resumed)

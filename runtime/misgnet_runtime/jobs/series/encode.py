"""A GeoTIFF to a file of its features."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.journal import progress_folder
from misgnet_runtime.jobs.scene.consistency import band_warnings
from misgnet_runtime.jobs.scene.inputs import check_readable
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.run import INTERRUPTED
from misgnet_runtime.jobs.series.encoding import SplitEngine, inspect_encoding, make_features, open_split_engine
from misgnet_runtime.jobs.series.features import SUFFIX, FeatureFile
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.raster.reader import open_raster
from misgnet_runtime.storage.atomic import refuse_existing


@dataclass(frozen=True)
class EncodeReport:
    """What was written; ``resumed``: tiles that were there already, of an ended run."""

    features: FeatureFile
    engine: SplitEngine
    resumed: int

    def lines(self) -> list[str]:
        """For a person."""
        path, footer = self.features.path, self.features.footer
        found = [
            f"{path}: {len(footer.crc32):,} tiles, {path.stat().st_size / 2**20:,.1f} MiB, "
            f"engine {self.engine.entry.name} ({self.engine.reason})"
        ]
        if self.resumed:
            found.append(f"gone on from tile {self.resumed} of an ended run")
        return found

    def figures(self) -> dict[str, object]:
        """For a program."""
        footer = self.features.footer
        return {
            "tiles": len(footer.crc32), "bytes": self.features.path.stat().st_size, "unread": len(footer.holes),
            "resumed": self.resumed, "engine": self.engine.entry.name, "reason": self.engine.reason,
            "sha256": self.features.sha256,
        }  # fmt: skip


def encode_file(
    bundle_path: Path,
    raster: Path,
    output: Path,
    options: SceneOptions | None = None,
    *,
    log: EventLog | None = None,
    progress: Progress | None = None,
) -> EncodeReport:
    """Write the features of a GeoTIFF, for :func:`misgnet_runtime.jobs.series.series.run_series`, as ``output``.

    ``options.dates[0]`` says what the raster's pixels are. Else as :func:`predict_scene_files`; GateFailed also where a
    feature does not fit float16, UsageError where the bundle is not split.
    """
    options, log = options or SceneOptions(), log or current()
    options.check_values()
    if output.suffix != SUFFIX:
        raise UsageError(f"--output is {output.name}; choose a name that ends in {SUFFIX}")
    output = Path(os.path.realpath(output))
    if not progress_folder(output).exists():
        refuse_existing(output, options.force)
    bundle = read_bundle(bundle_path)
    with open_raster(raster, "before") as opened:
        check_readable(opened, options.max_unreadable)  # before the engine is opened
        with open_split_engine(bundle, options) as engine:
            encoding = inspect_encoding(engine, opened, options)
            log.info(f"{raster.name}: {encoding.date.scaling}")
            for warning in band_warnings(encoding.date):
                log.warning(warning)
            try:
                made, resumed = make_features(encoding, opened, output, log=log, progress=progress)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(INTERRUPTED) from None
    return EncodeReport(made, engine, resumed)

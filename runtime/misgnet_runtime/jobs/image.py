"""Predicts the change mask of one pair of image files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.results import threshold_note
from misgnet_runtime.callables import Image
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import format_change
from misgnet_runtime.inference.selection import Opened, open_detector
from misgnet_runtime.jobs.recorded_run import common_settings, date_tags, overlap_setting, settings_tag
from misgnet_runtime.jobs.scene.consistency import SAME_FILE, wrong_order
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.images import check_mask_name, image_time, is_raster, read_pair, same_bytes, write_mask
from misgnet_runtime.raster.tiff import is_tiff, read_header
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_file
from misgnet_runtime.storage.files import is_file
from misgnet_runtime.storage.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Report of a mask that was written."""

    height: int  # pixels
    width: int
    changed_share: float  # 0 to 1
    engine: str
    reason: str  # why this engine was chosen
    valid_share: float = 1.0  # all pixels of a plain image are valid

    def line(self, output: Path) -> str:
        """Returns the report as one line of text."""
        return (
            f"{output}: {self.width} x {self.height} px, {format_change(self.changed_share, self.valid_share)}, "
            f"engine {self.engine} ({self.reason})"
        )


def predict_files(
    bundle_path: Path,
    before_path: Path,
    after_path: Path,
    output: Path,
    *,
    engine: str = "auto",
    tuned: bool = True,
    force: bool = False,
    overlap: int | None = None,
    threshold: float | None = None,
    batch: int | None = None,
) -> Prediction:
    """Writes the change mask of a pair as PNG (0 and 255), atomically. Its texts state the run, as those of folders do.

    Args:
        bundle_path: The bundle's folder.
        before_path: Image of the earlier date.
        after_path: Image of the later date.
        output: The mask.
        engine: Name of the engine, or "auto".
        tuned: Whether to use the settings saved by ``misgnet-run tune``.
        force: Whether to replace ``output``.
        overlap: Pixels that neighbouring tiles share (default: the bundle's).
        threshold: Probability above which a pixel is changed (default: the bundle's).
        batch: Tiles per inference call (default: as tuned, else chosen for the engine).

    Raises:
        InputError: The bundle or an image is invalid.
        UsageError: ``output`` exists, or its name does not end in .png; ``overlap`` is out of range.
    """
    check_mask_name(output)
    refuse_inputs([output], [before_path, after_path])
    refuse_existing(output, force)
    bundle = read_bundle(bundle_path)
    pair = read_images(before_path, after_path, bundle.manifest.interface.pixels, current())
    execution = ExecutionOptions(streams=1, batch=batch)
    options = SceneOptions(execution=execution, overlap=overlap, force=force, threshold=threshold)
    options.check_values()
    with open_detector(bundle, engine, options.execution, optimise_for="latency" if tuned else None) as opened:
        threshold = options.threshold_of(bundle.manifest)
        if note := threshold_note(bundle, opened.entry.name, threshold):
            current().info(note)
        return predict_images(bundle, opened, pair, output, options)


def are_rasters(before: Path, after: Path) -> bool:
    """Returns whether a pair consists of rasters, which are run as scenes regardless of the output's name.

    Raises:
        InputError: One is a raster, and the other is not a TIFF.
    """
    rasters = [path for path in (before, after) if is_raster(path)]
    others = [path for path in (before, after) if rasters and is_file(path) and not is_tiff(path)]
    if others:
        properties = ", ".join(read_header(rasters[0]).raster_properties)
        raise InputError(
            f"{rasters[0]} is a raster (it has {properties}), and {others[0]} is not a TIFF; compare two GeoTIFFs on "
            "one grid, or two plain images"
        )
    return bool(rasters)


def warn_of_images(before: Path, after: Path, log: EventLog, pixels: PixelFormat = RGB8) -> None:
    """Logs a warning if two images are the same file, or if their metadata put AFTER before BEFORE."""
    if same_bytes(before, after):
        log.warning(f"{before.name}, {after.name}: {SAME_FILE}")
    elif warning := wrong_order(image_time(before, pixels), image_time(after, pixels)):
        log.warning(f"{before.name}, {after.name}: {warning}")


@dataclass(frozen=True)
class ImagePair:
    """Two image files that were read: their pixels, (H, W, C), and the tags that identify the files."""

    before: Image
    after: Image
    tags: Mapping[str, str]


def read_images(before: Path, after: Path, pixels: PixelFormat, log: EventLog) -> ImagePair:
    """Reads two image files, and logs the warnings of :func:`warn_of_images`.

    Raises:
        InputError: A file cannot be read, or changed meanwhile, or the sizes differ.
    """
    snapshot = Snapshot((before, after))
    images = read_pair(before, after, pixels)
    warn_of_images(before, after, log, pixels)
    return ImagePair(*images, date_tags(snapshot, before, after))


def predict_images(bundle: Bundle, opened: Opened, pair: ImagePair, output: Path, options: SceneOptions) -> Prediction:
    """Writes the mask of two images as ``output``, atomically, with the texts that folders' masks have.

    Images larger than a tile are tiled and blended like scenes, with the overlap and batch size of ``options``.

    Raises:
        UsageError: ``output`` exists, and ``options.force`` is off.
    """
    detector, entry, reason = opened
    overlap, batch = options.overlap_of(bundle.manifest), options.batch_of(entry, detector.interface, detector.batch)
    probability = detector.scene_probability(pair.before, pair.after, overlap=overlap, batch=batch)
    mask = probability > options.threshold_of(bundle.manifest)
    height, width = mask.shape
    size = overlap_setting((height, width), detector.interface.tile, overlap)
    tags = settings_tag({**common_settings(bundle, opened, options), **size})
    with replace_file(output, force=options.force) as temporary:
        write_mask(temporary, mask, {**tags, **pair.tags})
    return Prediction(
        height=height, width=width, changed_share=float(mask.mean()), engine=entry.name, reason=reason
    )  # fmt: skip

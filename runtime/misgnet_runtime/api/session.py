"""Opens a bundle for predictions of image pairs and of scenes."""

from __future__ import annotations

import os
import warnings
import weakref
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from misgnet_runtime.api.images import ChangeMap, Date, read_dates
from misgnet_runtime.api.keywords import options_of
from misgnet_runtime.api.result import SceneResult
from misgnet_runtime.api.scene import DateSource, predict_scene
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.signing.policy import required
from misgnet_runtime.callables import Progress
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.errors import UsageError
from misgnet_runtime.inference.selection import Opened, open_detector
from misgnet_runtime.inference.tuned import OptimiseFor
from misgnet_runtime.log import current


class BundleSession:
    """An open bundle; returned by :func:`open_bundle`.

    Use it in a ``with`` block or close it with :meth:`close`. Garbage collection also closes it, with a
    ResourceWarning. Threads may share a session: up to ``streams`` batches run at once, further calls wait.

    Nothing is printed. Messages are records of the logger ``misgnet`` of the standard :mod:`logging`: INFO for what was
    chosen, such as the scaling of a scene, and WARNING for possible problems.

    Attributes:
        manifest: The bundle's manifest.
        engine: The engine that runs.
        reason: Why that engine was chosen.
    """

    def __init__(self, bundle: Bundle, engine: Opened, resources: ExitStack) -> None:
        self.manifest = bundle.manifest
        self.engine = engine.entry
        self.reason = engine.reason
        self._bundle = bundle
        self._opened = engine
        self._resources = resources
        self._abandoned = weakref.finalize(self, _release, resources, f"unclosed {self!r}")

    def predict(
        self,
        before: Date,
        after: Date,
        *,
        threshold: float | None = None,
        overlap: int | None = None,
        batch: int | None = None,
    ) -> ChangeMap:
        """Predicts the change between two images of equal size.

        Images larger than a tile are cut into tiles that overlap and are blended, like scenes. Each date may be:

        - an array, (H, W, C): uint8 RGB unless ``manifest.interface`` states other ``bands`` or ``samples``;
        - a masked array of that form: pixels with a masked band have no data, and the result is masked there;
        - a Pillow image of mode RGB, RGBA or P without transparent pixels (for a bundle of one band: L or I;16), which
          is rotated by its EXIF orientation, as files are;
        - a path of a PNG, JPEG or TIFF, read as ``misgnet-run predict`` reads it.

        Args:
            before: Image of the earlier date. It is not modified.
            after: Image of the later date, of the same size. It is not modified.
            threshold: Probability above which a pixel is changed (default: ``manifest.threshold``).
            overlap: Pixels that neighbouring tiles share (default: ``manifest.scene_overlap``).
            batch: Tiles per inference call, at most the bundle's largest batch (default: that of :func:`open_bundle`).

        Returns:
            The probability and the mask of change; new arrays, which belong to the caller.

        Raises:
            InputError: A date has another shape, data type or mode, or cannot be read, or the sizes differ.
            GateFailed: The engine's output has NaN or Inf.
            UsageError: An option is out of range, or the session is closed.
        """
        self._check_open()
        options = options_of({"threshold": threshold, "overlap": overlap, "batch": batch})
        options.check_values()
        detector, entry, _ = self._opened
        first, second, valid = read_dates(before, after, detector.interface.pixels, current())
        probability = detector.scene_probability(
            first, second, overlap=options.overlap_of(self.manifest),
            batch=options.batch_of(entry, detector.interface, detector.batch),
        )  # fmt: skip
        return ChangeMap.of(probability, options.threshold_of(self.manifest), valid)

    def predict_scene(
        self,
        before: DateSource,
        after: DateSource,
        output: str | os.PathLike[str] | None = None,
        *,
        bands: tuple[int, ...] | None = None,
        scale: float | tuple[float, ...] | None = None,
        offset: float | tuple[float, ...] | None = None,
        stretch: tuple[float, float] | None = None,
        align: bool = False,
        coregister: Literal["shift"] | None = None,
        aoi: str | os.PathLike[str] | None = None,
        assets: tuple[str, ...] | None = None,
        remote: bool = False,
        threshold: float | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> SceneResult:
        """Predicts the change between two georeferenced scenes of any size, in bounded memory.

        Does what ``misgnet-run predict`` does for two GeoTIFFs, with the same options: every one that is not listed
        below is a keyword too, under its name with underscores (``min_area``, ``before_scale``, ``max_unreadable``,
        ``cog``, ``force``, ...). Options of the engine belong to :func:`open_bundle`.

        Each date may be:

        - a path of a GeoTIFF, or with ``remote=True`` an address: ``https://``, ``http://`` or ``s3://``;
        - a path or an address of a STAC Item, or pystac's Item that has one, from which it is read again; ``assets``
          chooses its bands;
        - an open rasterio dataset. A local GeoTIFF is read from its file; any other (a VRT, a file in memory, a warped
          dataset) is copied to a temporary GeoTIFF first, window by window;
        - an xarray DataArray with the dimensions (band, y, x), (y, x, band) or (y, x), regular coordinates of pixel
          centres, and a CRS (as ``rioxarray`` keeps it in ``spatial_ref``). It is written to a temporary GeoTIFF, in
          parts, so that it need not fit into memory. ``_FillValue`` or ``nodata`` among its attributes is its nodata
          value, and ``scale_factor`` and ``add_offset`` are treated as those of a file.

        Temporary files are in :func:`tempfile.gettempdir` and have about the size of the pixels.

        Args:
            before: The earlier date.
            after: The later date.
            output: The change raster (.tif) to write; beside it, unless these options name other files or None,
                ``NAME_probability.tif`` (``probability``), ``NAME.gpkg`` (``vector``) and ``NAME_quicklook.png``
                (``quicklook``). The same call resumes an interrupted run. By default, these files and the report are
                in a private temporary folder, which is removed with the result.
            bands: Bands in the order that the network reads them, counted from 1.
            scale: Factor of stored values, one or one per band.
            offset: Offset of stored values, one or one per band.
            stretch: Two percentiles of each band that become black and the largest sample, instead of ``scale``.
            align: Warp ``after`` onto the grid of ``before`` if their grids differ.
            coregister: "shift" moves ``after`` back by its offset from ``before``, if windows of both agree about it;
                ``report["registration"]`` states what was applied.
            aoi: File of polygons (.geojson or .gpkg). Only tiles that touch them are computed, and pixels outside have
                no data.
            assets: Assets of a STAC Item, in the order that the network reads them.
            remote: Whether dates may be fetched from a network.
            threshold: Probability above which a pixel is changed (default: the bundle's).
            overlap: Pixels that neighbouring tiles share (default: the bundle's).
            batch: Tiles per inference call, as for :meth:`predict`.
            progress: Called with the finished rows of tiles and their total, in another thread. An exception that it
                raises ends the run.
            options: Further options; see ``misgnet-run predict --help``.

        Returns:
            The result, whose arrays and polygons are read when they are first used.

        Raises:
            InputError: A date cannot be used as declared. The message says what is missing.
            UnreadableError: More of a date is unreadable than ``max_unreadable`` percent.
            UsageError: An option is unknown or invalid, an output exists, or the session is closed.
            UnavailableError: A library is missing; the message names the command that installs it. rasterio, pyogrio
                and shapely are always needed: ``pip install 'misgnet-export[geo]'``.
            GateFailed: The engine's output has NaN or Inf.
        """
        self._check_open()
        given = {
            "bands": bands, "scale": scale, "offset": offset, "stretch": stretch, "align": align,
            "coregister": coregister, "aoi": aoi, "assets": assets,
            "remote": remote, "threshold": threshold, "overlap": overlap, "batch": batch,
        }  # fmt: skip
        return predict_scene(
            self._bundle, self._opened, before, after, output=output, given={**given, **options}, progress=progress
        )

    def close(self) -> None:
        """Waits for running batches, then releases the engine and its memory. Further calls do nothing."""
        if self._abandoned.detach():
            self._resources.close()

    def _check_open(self) -> None:
        if not self._abandoned.alive:
            raise UsageError(f"this session of engine {self.engine.name} is closed; open the bundle again")

    def __repr__(self) -> str:
        return f"<BundleSession of engine {self.engine.name}>"

    def __enter__(self) -> BundleSession:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_bundle(
    path: str | os.PathLike[str],
    engine: str = "auto",
    streams: int = 1,
    *,
    batch: int | None = None,
    tuned: bool = True,
    require_signature: str | os.PathLike[str] | None = None,
    allow_older: bool = False,
) -> BundleSession:
    """Checks a bundle's files and opens one of its engines.

    Problems are raised by this call, not when the ``with`` block is entered. If a signature is required, no other part
    of the bundle is read before it is checked.

    Args:
        path: The bundle's folder.
        engine: Name of the engine. "auto" takes the one that ``misgnet-run tune`` measured fastest on this machine; if
            nothing was measured, the fastest engine that runs on this machine according to the build.
        streams: Number of batches that run at once and share the device: those of several threads, or of one scene.
        batch: Tiles per inference call, at most the bundle's largest batch (default: as tuned, else chosen for the
            engine).
        tuned: Whether to use settings saved by ``misgnet-run tune``.
        require_signature: PEM file of public keys or certificates, one of which must have signed the bundle (default:
            $MISGNET_REQUIRE_SIGNATURE). Policy files also apply.
        allow_older: Accept a signed bundle that has expired or is older than the newest one accepted on this machine,
            if every policy file permits it.

    Returns:
        The open session.

    Raises:
        InputError: The bundle does not match its manifest, or is not signed as required.
        UsageError: The bundle has no such engine, or ``batch`` is less than 1.
        UnavailableError: None of its engines runs on this machine; the message states the reason for each.
    """
    options_of({"batch": batch}).check_values()
    bundle = read_bundle(Path(path), required(require_signature, allow_older))
    optimise_for: OptimiseFor = "latency" if streams == 1 else "throughput"
    execution = ExecutionOptions(streams=streams, batch=batch)
    with ExitStack() as resources:
        opened = resources.enter_context(
            open_detector(bundle, engine, execution, optimise_for=optimise_for if tuned else None)
        )
        return BundleSession(bundle, opened, resources.pop_all())


def _release(resources: ExitStack, message: str) -> None:
    """Closes the resources of an unclosed session, on garbage collection or at the end of the process."""
    resources.close()
    warnings.warn(message, ResourceWarning, stacklevel=2)

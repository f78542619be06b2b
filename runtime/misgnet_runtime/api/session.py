"""Public Python API: opens a bundle and predicts the change between two images.

Example:
    >>> with open_bundle("bundle") as session:
    ...     change = session.predict(before, after)
"""

from __future__ import annotations

import os
import warnings
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import EngineEntry, Manifest
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.policy import required
from misgnet_runtime.callables import Image
from misgnet_runtime.engines import ExecutionOptions, batch_for_scenes
from misgnet_runtime.errors import UsageError
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.tuned import OptimiseFor


@dataclass(frozen=True)
class ChangeMap:
    """Predicted change between two images.

    Attributes:
        probability: Probability of change, float32 (H, W).
        mask: Whether the probability exceeds the bundle's threshold, bool (H, W).
    """

    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]


class BundleSession:
    """An open bundle; returned by :func:`open_bundle`.

    Use it in a ``with`` block or close it with :meth:`close`. Garbage collection also closes it, with a
    ResourceWarning. Threads may share a session: up to ``streams`` batches run at once, further calls wait.

    Attributes:
        manifest: The bundle's manifest.
        engine: The engine that runs.
        reason: Why that engine was chosen.
    """

    def __init__(
        self, manifest: Manifest, engine: EngineEntry, reason: str, *, detector: ChangeDetector, opened: ExitStack
    ) -> None:
        self.manifest = manifest
        self.engine = engine
        self.reason = reason
        self._detector = detector
        self._opened = opened
        self._abandoned = weakref.finalize(self, _release, opened, f"unclosed {self!r}")

    def predict(self, before: Image, after: Image) -> ChangeMap:
        """Predicts the change between two images of equal size.

        Images larger than a tile are cut into tiles that overlap and are blended, like scenes.

        Args:
            before: Image of the earlier date, (H, W, C): uint8 RGB unless ``manifest.interface`` states other
                ``bands`` or ``samples``. It is not modified.
            after: Image of the later date, as ``before``. It is not modified.

        Returns:
            The probability and the mask of change; new arrays, which belong to the caller.

        Raises:
            InputError: The arrays have another shape or data type, or their sizes differ.
            GateFailed: The engine's output has NaN or Inf.
            UsageError: The session is closed.
        """
        self._check_open()
        detector = self._detector
        batch = min(detector.batch or batch_for_scenes(self.engine), detector.interface.max_batch)
        probability = detector.scene_probability(before, after, overlap=self.manifest.scene_overlap, batch=batch)
        return ChangeMap(probability, probability > self.manifest.threshold)

    def close(self) -> None:
        """Waits for running batches, then releases the engine and its memory. Further calls do nothing."""
        if self._abandoned.detach():
            self._opened.close()

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
        streams: Number of batches, from several threads, that run at once and share the device.
        tuned: Whether to use settings saved by ``misgnet-run tune``.
        require_signature: PEM file of public keys or certificates, one of which must have signed the bundle (default:
            $MISGNET_REQUIRE_SIGNATURE). Policy files also apply.
        allow_older: Accept a signed bundle that has expired or is older than the newest one accepted on this machine,
            if every policy file permits it.

    Returns:
        The open session.

    Raises:
        InputError: The bundle does not match its manifest, or is not signed as required.
        UsageError: The bundle has no such engine.
        UnavailableError: None of its engines runs on this machine; the message states the reason for each.
    """
    bundle = read_bundle(Path(path), required(require_signature, allow_older))
    optimise_for: OptimiseFor = "latency" if streams == 1 else "throughput"
    with ExitStack() as opened:
        detector, entry, reason = opened.enter_context(
            open_detector(
                bundle, engine, ExecutionOptions(streams=streams), optimise_for=optimise_for if tuned else None
            )
        )
        return BundleSession(bundle.manifest, entry, reason, detector=detector, opened=opened.pop_all())


def _release(opened: ExitStack, message: str) -> None:
    """Closes the resources of an unclosed session, on garbage collection or at the end of the process."""
    opened.close()
    warnings.warn(message, ResourceWarning, stacklevel=2)

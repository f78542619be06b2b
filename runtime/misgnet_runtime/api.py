"""The public API: a bundle opened once, then asked for the change between two images."""

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
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.errors import UsageError
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.tuned import OptimiseFor


@dataclass(frozen=True)
class ChangeMap:
    """Probability of change, float32 (H, W), and where it exceeds the bundle's threshold, bool (H, W)."""

    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]


class BundleSession:
    """An open bundle for arrays, as users of the package hold it; made by :func:`open_bundle`.

    Close it with :meth:`close`, or use it in a ``with`` block; garbage collection closes it too, with a
    ResourceWarning. Threads may share it: as many batches as it was opened with streams run at once, others wait.

    Attributes:
        manifest: What the bundle says of itself.
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

    def predict(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> ChangeMap:
        """Return the change between two RGB images of one size, uint8 (H, W, 3); the arrays belong to the caller.

        Raises:
            InputError: The arrays are something else.
            GateFailed: The engine's output has NaN or Inf.
            UsageError: The session is closed.
        """
        self._check_open()
        probability = self._detector.scene_probability(before, after)
        return ChangeMap(probability, probability > self.manifest.threshold)

    def close(self) -> None:
        """Wait until no batch runs, then release the engine and its memory; a second call does nothing."""
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
    """Check a bundle's files and open one of its engines; whatever is wrong is raised here, not at the ``with``.

    Where a signature is required, nothing of the bundle is read before its signature over all files was checked, and a
    bundle that has expired or is older than one accepted before is refused, unless ``allow_older`` and every policy
    file permit it.

    Args:
        path: The bundle's folder.
        engine: Its engine, by name; "auto" for the one that ``misgnet-run tune`` measured fastest here, else the
            fastest that runs here.
        streams: Batches of several threads that run at once, sharing the device.
        tuned: Use the settings that ``misgnet-run tune`` saved here, if any.
        require_signature: A PEM file of public keys or certificates (default: $MISGNET_REQUIRE_SIGNATURE); policy files
            apply besides.
        allow_older: See above.

    Raises:
        InputError: The bundle is not what its manifest says, or not signed as required.
        UsageError: The bundle has no such engine.
        UnavailableError: None of its engines runs on this machine; the message has the reason of each.
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
    """Close what a session that nobody closed had opened: it was collected, or the process ends."""
    opened.close()
    warnings.warn(message, ResourceWarning, stacklevel=2)

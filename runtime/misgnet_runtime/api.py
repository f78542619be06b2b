"""The package's face: a bundle opened once, then asked for the change between two images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import EngineEntry, Manifest
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.policy import required
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.tuned_settings import Goal


@dataclass(frozen=True)
class ChangeMap:
    """Probability of change, float32 (H, W), and where it exceeds the bundle's threshold, bool (H, W)."""

    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]


class BundleSession:
    """An open bundle; see :func:`open_bundle`. ``engine`` runs, chosen for the ``reason``.

    Threads may share it: as many batches as it was opened with streams run at once, others wait.
    """

    def __init__(self, manifest: Manifest, engine: EngineEntry, reason: str, detector: ChangeDetector) -> None:
        self.manifest = manifest
        self.engine = engine
        self.reason = reason
        self._detector = detector

    def predict(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> ChangeMap:
        """The change between two RGB images of one size, uint8 (H, W, 3); the arrays belong to the caller.

        Raises InputError for other arrays, GateFailed where the engine answers NaN or Inf.
        """
        probability = self._detector.scene_probability(before, after)
        return ChangeMap(probability, probability > self.manifest.threshold)


@contextmanager
def open_bundle(
    path: str | os.PathLike[str],
    engine: str = "auto",
    streams: int = 1,
    *,
    tuned: bool = True,
    require_signature: str | os.PathLike[str] | None = None,
    allow_older: bool = False,
) -> Iterator[BundleSession]:
    """Check the bundle's files, then open one of its engines: by name, or the fastest that runs here.

    ``streams``: so many batches of several threads run at once, sharing the device; ``tuned``: the engine is opened as
    ``misgnet-run tune`` found best here, if it was run. ``require_signature``: a PEM file of public keys or
    certificates, else $MISGNET_REQUIRE_SIGNATURE; policy files apply besides. Then nothing of the bundle is read before
    its signature over all files was checked, and one that has expired or is older than was accepted before is refused,
    unless ``allow_older`` and every policy file permit it.
    Raises InputError for a bundle that is not what its manifest says, UsageError for an unknown engine,
    UnavailableError with the reason where none can run on this machine.
    """
    bundle = read_bundle(Path(path), required(require_signature, allow_older))
    goal: Goal = "latency" if streams == 1 else "throughput"
    execution = ExecutionOptions(streams=streams)
    with open_detector(bundle, engine, execution, goal=goal if tuned else None) as (detector, entry, reason):
        yield BundleSession(bundle.manifest, entry, reason, detector)

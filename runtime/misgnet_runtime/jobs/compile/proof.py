"""Verifies a plan on this device with the golden tiles, and with the F1 gate if the bundle has evaluation tiles."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from misgnet_runtime.accuracy.evaluation_tiles import evaluate_on_device, evaluation_files
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.parity import EngineParity
from misgnet_runtime.bundle.golden import GoldenTiles, golden_of
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines.cuda import CudaDriver
from misgnet_runtime.engines.tensorrt.engine import TensorRTEngine, open_plan
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.inference.detector import ChangeDetector, Probability
from misgnet_runtime.inference.self_test import golden_agreement, parts_agreement
from misgnet_runtime.inference.split_detector import SplitDetector
from misgnet_runtime.jobs.compile.candidate import Candidate

Candidates = Mapping[str, Candidate]  # by graph file


@dataclass(frozen=True)
class Proof:
    """Results of a successful verification."""

    # With measured device memory.
    candidates: Candidates
    device: str
    # Summary of the agreement on the golden tiles.
    golden: str
    # Result of the F1 gate; None if the bundle has no evaluation tiles.
    parity: EngineParity | None


def prove(
    bundle: Bundle, entry: EngineEntry, candidates: Candidates, driver: CudaDriver, limit: F1Limit | None
) -> Proof:
    """Runs the plans of ``entry`` on this device and compares their outputs.

    ``limit`` is that of the gate; None: as recorded in the bundle.

    Raises:
        GateFailed: The outputs fail the golden tiles or the gate.
        UnavailableError: A plan cannot be opened.
    """
    golden = golden_of(bundle)
    whole, device, line, found, parity = _whole(
        bundle, entry, candidates[entry.graph], driver, golden=golden, limit=limit
    )
    measured = {entry.graph: whole}
    if entry.split is not None:
        files = (entry.split.encoder_graph, entry.split.head_graph)
        selected = [candidates[file] for file in files]
        parts, parts_line = _parts(bundle, entry, selected, driver, golden=golden, whole=found)
        measured |= dict(zip(files, parts, strict=True))
        line = f"{line}; {parts_line}"
    return Proof(measured, device, line, parity)


def _whole(
    bundle: Bundle, entry: EngineEntry, candidate: Candidate, driver: CudaDriver,
    *, golden: GoldenTiles, limit: F1Limit | None,
) -> tuple[Candidate, str, str, Probability, EngineParity | None]:  # fmt: skip
    engine = _open(candidate, driver, bundle)
    with ChangeDetector(engine, bundle.manifest.interface) as detector:
        line, found, parity = prove_whole(bundle, entry, detector, golden, limit)
    return candidate.measured(engine.stream_bytes), engine.device, line, found, parity


def prove_whole(
    bundle: Bundle, entry: EngineEntry, detector: ChangeDetector, golden: GoldenTiles, limit: F1Limit | None = None
) -> tuple[str, Probability, EngineParity | None]:
    """Runs an open engine, not its parts; returns the agreement on the golden tiles, its output, and the gate's result.

    Raises GateFailed if the output fails the golden tiles, or the gate if the bundle has evaluation tiles.
    """
    line, found = golden_agreement(bundle, entry, detector.probability, golden)
    if not evaluation_files(bundle):
        return line, found, None
    parity = evaluate_on_device(bundle, entry, detector.probability, detector.engine.device, limit=limit)
    if parity.verdict is not None and not parity.verdict.passed:
        raise GateFailed(f"engine {entry.name} fails the gate on this device: {parity.verdict.reason}")
    return line, found, parity


def _parts(
    bundle: Bundle, entry: EngineEntry, candidates: list[Candidate], driver: CudaDriver, *, golden: GoldenTiles,
    whole: Probability,
) -> tuple[list[Candidate], str]:  # fmt: skip
    with ExitStack() as opened:
        encoder = _open(candidates[0], driver, bundle)
        opened.callback(encoder.close)
        head = _open(candidates[1], driver, bundle)
        opened.callback(head.close)
        parts = SplitDetector(encoder, head, bundle.manifest.interface, bundle.manifest.features)
        line = parts_agreement(bundle, entry, parts.probability, golden, whole)
    sizes = (encoder.stream_bytes, head.stream_bytes)
    return [candidate.measured(size) for candidate, size in zip(candidates, sizes, strict=True)], line


def _open(candidate: Candidate, driver: CudaDriver, bundle: Bundle) -> TensorRTEngine:
    """Opens a plan after the preflight checks, also for a cached plan: the driver may have changed since."""
    return open_plan(
        candidate.data, candidate.key.vendor, driver, compatibility=candidate.compatibility,
        max_batch=bundle.manifest.interface.max_batch,
    )  # fmt: skip

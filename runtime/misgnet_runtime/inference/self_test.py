"""Runs a bundle's self-test: checks its digests, then golden tiles on the engines that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from misgnet_runtime.bundle.golden import GoldenTiles, golden_of
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.callables import Predict
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.errors import GateFailed, UnavailableError
from misgnet_runtime.formatting import each_reason, not_here
from misgnet_runtime.inference.detector import Probability
from misgnet_runtime.inference.selection import DetectorOpener, open_detector
from misgnet_runtime.inference.split_detector import open_split

GOLDEN_AGREEMENT = 0.95  # share of pixels; a wrong engine is far below it
PARTS_AGREEMENT = 0.99  # share of pixels; on a CPU all agree, a GPU may use other kernels for a part


def verify_bundle(path: Path, engine: str | None = None) -> Iterator[str]:
    """Yields one line of text per check, of ``engine`` (default: of all engines that run here).

    Raises:
        InputError: The bundle is damaged.
        GateFailed: An engine's output differs from the golden tiles.
        UnavailableError: No engine runs here.
        UsageError: The engine is unknown.
    """
    bundle = read_bundle(path)
    entries = bundle.manifest.engines if engine is None else [bundle.engine_entry(engine)]
    yield f"{len(bundle.manifest.files)} files match their digests"
    if bundle.signed:
        yield bundle.signed.describe()
    golden = golden_of(bundle)
    refused: dict[str, UnavailableError] = {}
    for entry in entries:
        try:
            yield check_golden(bundle, entry, golden)
        except UnavailableError as error:
            refused[entry.name] = error
    if len(refused) == len(entries):
        reasons = each_reason((name, str(error)) for name, error in refused.items())
        raise UnavailableError(f"no engine was checked against the golden tiles: {reasons}")
    if refused:
        yield not_here((name, error.short) for name, error in refused.items())


def check_golden(
    bundle: Bundle,
    entry: EngineEntry,
    golden: GoldenTiles,
    batch: int = 1,
    *,
    opener: DetectorOpener = open_detector,
) -> str:
    """Runs the golden tiles on one engine, and on its encoder and head if it is split; returns the result as a line.

    Args:
        bundle: An opened bundle.
        entry: The engine.
        golden: The bundle's golden tiles.
        batch: Tiles per inference call.
        opener: Opens the engine.

    Raises:
        GateFailed: Less than 95 % of pixels equal the golden tiles, or less than 99 % are equal between the engine and
            its two parts.
        UnavailableError: The engine does not run here.
    """
    with opener(bundle, entry.name, ExecutionOptions(streams=1), optimise_for=None) as (detector, _, _):
        line, found = golden_agreement(bundle, entry, detector.probability, golden, batch)
    if entry.split is None:
        return line
    with open_split(bundle, entry) as parts:
        return f"{line}; {parts_agreement(bundle, entry, parts.probability, golden, found, batch=batch)}"


def golden_agreement(
    bundle: Bundle, entry: EngineEntry, predict: Predict, golden: GoldenTiles, batch: int = 1
) -> tuple[str, Probability]:
    """Compares the output of ``predict``, the engine ``entry``, with the golden tiles.

    Returns the result as a line, and the output. Raises GateFailed below 95 % of equal pixels.
    """
    found = _predictions(predict, golden, batch)
    agreement = same_pixels(found, golden.probability, bundle.manifest.threshold)
    if not agreement >= GOLDEN_AGREEMENT:
        raise GateFailed(
            f"engine {entry.name} agrees with the golden tiles in only {100 * agreement:.2f} % of pixels "
            f"(at least {100 * GOLDEN_AGREEMENT:.0f} % required); do not use it, build it again"
        )
    return f"{entry.name}: {100 * agreement:.3f} % of the golden tiles' pixels agree", found


def parts_agreement(
    bundle: Bundle, entry: EngineEntry, predict: Predict, golden: GoldenTiles, whole: Probability, *, batch: int = 1
) -> str:
    """Compares the output of ``predict``, encoder and head of ``entry``, with ``whole``, the output of the engine.

    Returns the result as a line. Raises GateFailed below 99 % of equal pixels.
    """
    found = _predictions(predict, golden, batch)
    agreement = same_pixels(found, whole, bundle.manifest.threshold)
    if not agreement >= PARTS_AGREEMENT:
        raise GateFailed(
            f"encoder and head of engine {entry.name} agree with the engine in only {100 * agreement:.2f} % of the "
            f"golden tiles' pixels (at least {100 * PARTS_AGREEMENT:.0f} % required); do not use them, build it again"
        )
    return f"encoder and head, run separately, agree with the whole graph in {100 * agreement:.3f} %"


def _predictions(predict: Predict, golden: GoldenTiles, batch: int) -> Probability:
    """Returns float32 (G, T, T), computed in calls of ``batch`` tiles; earlier tiles fill up the last call."""
    count = len(golden.before)
    calls = np.resize(np.arange(count), -(-count // batch) * batch).reshape(-1, batch)
    return np.concatenate([predict(golden.before[tiles], golden.after[tiles]) for tiles in calls])[:count]


def same_pixels(found: Probability, expected: Probability, threshold: float) -> float:
    """Returns the share of pixels that both masks agree on; 0 if ``found`` has NaN or Inf."""
    return float(((found > threshold) == (expected > threshold)).mean()) if np.isfinite(found).all() else 0.0

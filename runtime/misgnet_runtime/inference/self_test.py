"""A bundle's self-test: digests first, then golden tiles on the engines that this machine can run."""

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
from misgnet_runtime.inference.detector import Probability
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.split_detector import open_split

GOLDEN_AGREEMENT = 0.95  # share of pixels; an engine that computes something else is far below
PARTS_AGREEMENT = 0.99  # share of pixels; on a CPU all agree, a GPU may have other kernels for a part


def verify_bundle(path: Path, engine: str | None = None) -> Iterator[str]:
    """Yield a line for each check: of ``engine``, or of all that can run here.

    Raises InputError; GateFailed where an engine misses the golden tiles; UnavailableError where none can run;
    UsageError for an unknown engine.
    """
    bundle = read_bundle(path)
    asked = bundle.manifest.engines if engine is None else [bundle.engine_entry(engine)]
    yield f"{len(bundle.manifest.files)} files match their digests"
    if bundle.signed:
        yield bundle.signed.describe()
    golden = golden_of(bundle)
    refused: list[str] = []
    for entry in asked:
        try:
            yield check_golden(bundle, entry, golden)
        except UnavailableError as error:
            refused.append(f"{entry.name}: {error}")
            yield f"{entry.name}: not run: {error}"
    if len(refused) == len(asked):
        raise UnavailableError(f"no engine was checked against the golden tiles: {'; '.join(refused)}")


def check_golden(bundle: Bundle, entry: EngineEntry, golden: GoldenTiles, batch: int = 1) -> str:
    """Run the golden tiles on one engine, and on its parts where it is split; a line that says what came out.

    ``batch``: tiles per inference call.
    Raises GateFailed below 95 % of equal pixels, or below 99 % between the engine and its parts together;
    UnavailableError where the engine cannot run here.
    """
    with open_detector(bundle, entry.name, ExecutionOptions(streams=1)) as (detector, _, _):
        line, found = golden_agreement(bundle, entry, detector.probability, golden, batch)
    if entry.split is None:
        return line
    with open_split(bundle, entry) as parts:
        return f"{line}; {parts_agreement(bundle, entry, parts.probability, golden, found, batch=batch)}"


def golden_agreement(
    bundle: Bundle, entry: EngineEntry, predict: Predict, golden: GoldenTiles, batch: int = 1
) -> tuple[str, Probability]:
    """What ``predict``, the engine ``entry``, answers on the golden tiles, and a line that says how well.

    Raises GateFailed below 95 % of equal pixels.
    """
    found = _answers(predict, golden, batch)
    agreement = same_pixels(found, golden.probability, bundle.manifest.threshold)
    if not agreement >= GOLDEN_AGREEMENT:
        raise GateFailed(
            f"engine {entry.name} agrees with the golden tiles in only {100 * agreement:.2f} % of pixels "
            f"(at least {100 * GOLDEN_AGREEMENT:.0f} % needed); do not use it, build it again"
        )
    return f"{entry.name}: {100 * agreement:.3f} % of the golden tiles' pixels agree", found


def parts_agreement(
    bundle: Bundle, entry: EngineEntry, predict: Predict, golden: GoldenTiles, whole: Probability, *, batch: int = 1
) -> str:
    """``whole``: what the engine answers on the golden tiles, which ``predict``, its parts together, must answer, too.

    Raises GateFailed below 99 % of equal pixels.
    """
    found = _answers(predict, golden, batch)
    agreement = same_pixels(found, whole, bundle.manifest.threshold)
    if not agreement >= PARTS_AGREEMENT:
        raise GateFailed(
            f"encoder and head of engine {entry.name} agree with the engine in only {100 * agreement:.2f} % of the "
            f"golden tiles' pixels (at least {100 * PARTS_AGREEMENT:.0f} % needed); do not use them, build it again"
        )
    return f"encoder and head agree with it in {100 * agreement:.3f} %"


def _answers(predict: Predict, golden: GoldenTiles, batch: int) -> Probability:
    """float32 (G, T, T), ``batch`` tiles per call: the first ones again where the last are too few."""
    count = len(golden.before)
    calls = np.resize(np.arange(count), -(-count // batch) * batch).reshape(-1, batch)
    return np.concatenate([predict(golden.before[tiles], golden.after[tiles]) for tiles in calls])[:count]


def same_pixels(found: Probability, expected: Probability, threshold: float) -> float:
    """Share of pixels with the same mask; 0 where ``found`` has NaN or Inf."""
    return float(((found > threshold) == (expected > threshold)).mean()) if np.isfinite(found).all() else 0.0

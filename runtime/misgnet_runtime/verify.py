"""A bundle's self-test: digests first, then golden tiles on the engines that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.choice import open_detector
from misgnet_runtime.errors import GateFailed, UnavailableError
from misgnet_runtime.golden import GoldenTiles, read_golden
from misgnet_runtime.manifest import EngineEntry

GOLDEN_AGREEMENT = 0.95  # share of pixels; an engine that computes something else is far below


def verify_bundle(path: Path, engine: str | None = None) -> Iterator[str]:
    """Yield a line for each check: of ``engine``, or of all that can run here.

    Raises InputError; GateFailed where an engine misses the golden tiles; UnavailableError where none can run;
    UsageError for an unknown engine.
    """
    bundle = read_bundle(path)
    asked = bundle.manifest.engines if engine is None else [bundle.engine_entry(engine)]
    yield f"{len(bundle.manifest.files)} files match their digests"
    golden = read_golden(bundle.file(bundle.manifest.file("golden tiles").path))
    refused: list[str] = []
    for entry in asked:
        try:
            yield check_golden(bundle, entry, golden)
        except UnavailableError as error:
            refused.append(f"{entry.name}: {error}")
            yield f"{entry.name}: not run: {error}"
    if len(refused) == len(asked):
        raise UnavailableError(f"no engine was checked against the golden tiles: {'; '.join(refused)}")


def check_golden(bundle: Bundle, entry: EngineEntry, golden: GoldenTiles) -> str:
    """Run the golden tiles on one engine; a line that says what came out.

    Raises GateFailed below 95 % of equal pixels, UnavailableError where the engine cannot run here.
    """
    with open_detector(bundle, entry.name) as (detector, _, _):
        found = np.concatenate(
            [detector.probability(b[None], a[None]) for b, a in zip(golden.before, golden.after, strict=True)]
        )
    threshold = bundle.manifest.threshold
    agreement = float(((found > threshold) == (golden.probability > threshold)).mean())
    if not (agreement >= GOLDEN_AGREEMENT and np.isfinite(found).all()):
        raise GateFailed(
            f"engine {entry.name} agrees with the golden tiles in only {100 * agreement:.2f} % of pixels "
            f"(at least {100 * GOLDEN_AGREEMENT:.0f} % needed); do not use it, build it again"
        )
    return f"{entry.name}: {100 * agreement:.3f} % of the golden tiles' pixels agree"

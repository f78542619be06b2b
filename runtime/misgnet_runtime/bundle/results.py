"""Reads the accuracy of a bundle's engines from its manifest."""

from __future__ import annotations

import msgspec

from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.errors import InputError


class EngineResult(msgspec.Struct):
    """Accuracy of one engine, from the manifest's metrics."""

    engine: str
    f1_drop_points: float | None = None
    f1_ratio: float | None = None
    scores: dict[str, float | None] = msgspec.field(default_factory=dict)

    @property
    def f1(self) -> float | None:
        """F1 of the changed class at the bundle's threshold, 0 to 1; None if it was not measured."""
        return self.scores.get("f1")


def engine_results(bundle: Bundle) -> dict[str, EngineResult]:
    """Returns the accuracy of the engines, by name; raises InputError if it cannot be read."""
    try:
        found = msgspec.convert(bundle.manifest.metrics.get("engines", []), list[EngineResult])
    except msgspec.ValidationError as error:
        raise InputError(f"bundle {bundle.name}: the manifest's metrics cannot be read: {error}") from error
    return {result.engine: result for result in found}


def stated_f1(bundle: Bundle, engine: str, threshold: float) -> str | None:
    """Returns the F1 that the bundle states for an engine, and whether it holds at ``threshold``; None if unknown."""
    result = engine_results(bundle).get(engine)
    if result is None or result.f1 is None:
        return None
    measured = bundle.manifest.threshold
    at = f"{result.f1:.4f} at threshold {measured:g}"
    return at if threshold == measured else f"{at}; not measured at threshold {threshold:g}"


def threshold_note(bundle: Bundle, engine: str, threshold: float) -> str | None:
    """Returns a note if the bundle states the F1 of an engine at another threshold than ``threshold``; else None."""
    f1 = None if threshold == bundle.manifest.threshold else stated_f1(bundle, engine, threshold)
    return f1 and f"F1 according to the bundle: {f1}"

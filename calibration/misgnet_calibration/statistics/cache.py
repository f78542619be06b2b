"""Saves activation statistics in a file and reuses them for the same tiles, weights and graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from misgnet_calibration.statistics.calibrators import Calibrating
from misgnet_calibration.statistics.observers import BINS, SAMPLE, Histogram, Range
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import OBSERVATIONS_HEADER_BYTES
from misgnet_runtime.storage.atomic import replace_file
from misgnet_runtime.storage.npz import READ_ERRORS, read_arrays

_FORMAT = f"misgnet-observations-1, {BINS} bins, {SAMPLE} values"


@dataclass(frozen=True)
class StatisticsKey:
    """SHA-256 digests of everything that the statistics depend on."""

    tiles: str  # the tiles' pixels and names
    weights: str
    graph: str  # the float graph


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of activations, by tensor."""

    histograms: Mapping[str, Histogram]  # of the activations to quantize
    absolute_maxima: Mapping[str, float]  # of every tensor

    def ranges(self, calibrator: Calibrating, *, symmetric: bool) -> dict[str, Range]:
        """Returns each tensor's range chosen by ``calibrator``, for INT8 around 0 if ``symmetric``, else for UINT8."""
        return {name: calibrator.of(name).choose(histogram, symmetric) for name, histogram in self.histograms.items()}


def save_statistics(path: Path, observed: ActivationStatistics, key: StatisticsKey) -> None:
    """Writes ``observed`` with its ``key``, atomically."""
    names = list(observed.histograms)
    header = {"format": _FORMAT, "key": asdict(key), "names": names, "peaks": dict(observed.absolute_maxima)}
    extremes = np.array([(h.low, h.high) for h in observed.histograms.values()], np.float64).reshape(-1, 2)
    counts = np.array([h.counts for h in observed.histograms.values()], np.int64).reshape(-1, BINS)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, header=text, extremes=extremes, counts=counts)


def load_statistics(path: Path, key: StatisticsKey) -> tuple[ActivationStatistics | None, str]:
    """Returns the statistics in ``path`` and "reused", or None and the reason why they cannot be reused.

    Raises InputError if the file exists but cannot be read: a damaged file is not replaced silently.
    """
    if not path.exists():
        return None, "nothing saved yet"
    try:
        (text,) = read_arrays(path, ["header"])
        if text.nbytes > OBSERVATIONS_HEADER_BYTES:
            raise ValueError(f"its header has {text.nbytes} bytes, more than {OBSERVATIONS_HEADER_BYTES}")
        header = json.loads(bytes(text))
        if problem := _misfit(header, key):
            return None, problem
        return _observed(header, *read_arrays(path, ["extremes", "counts"])), "reused"
    except READ_ERRORS as error:
        raise InputError(
            f"saved activation statistics {path} cannot be read: {error}; remove the file to collect them again"
        ) from error


def _misfit(header: Mapping[str, Any], key: StatisticsKey) -> str | None:
    if header["format"] != _FORMAT:
        return "saved by another version"
    other = [name for name, digest in asdict(key).items() if header["key"][name] != digest]
    return f"saved for other {' and '.join(other)}" if other else None


def _observed(header: Mapping[str, Any], extremes: Any, counts: Any) -> ActivationStatistics:
    histograms = {}
    if extremes.shape != (len(header["names"]), 2) or counts.shape != (len(header["names"]), BINS):
        raise ValueError("its arrays do not match its tensors")
    for name, (low, high), row in zip(header["names"], extremes.tolist(), counts, strict=True):
        histogram = Histogram()
        histogram.low, histogram.high, histogram.counts = low, high, row
        histograms[name] = histogram
    return ActivationStatistics(histograms, {name: float(maximum) for name, maximum in header["peaks"].items()})

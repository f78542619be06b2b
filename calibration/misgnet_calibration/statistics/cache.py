"""What calibration saw, kept in a file and used again where tiles, weights and graph are the same."""

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
    """SHA-256 of what the observations depend on: the tiles' pixels and names, the weights, the float graph."""

    tiles: str
    weights: str
    graph: str


@dataclass(frozen=True)
class ActivationStatistics:
    """Histograms of the activations to quantize, and the largest magnitude of every tensor."""

    histograms: Mapping[str, Histogram]
    absolute_maxima: Mapping[str, float]

    def ranges(self, calibrator: Calibrating, *, symmetric: bool) -> dict[str, Range]:
        """The range that ``calibrator`` keeps of each tensor, for INT8 around 0 if ``symmetric``, else for UINT8."""
        return {name: calibrator.of(name).choose(seen, symmetric) for name, seen in self.histograms.items()}


def save_statistics(path: Path, observed: ActivationStatistics, key: StatisticsKey) -> None:
    """Write ``observed`` with its ``key``, whole or not at all."""
    names = list(observed.histograms)
    header = {"format": _FORMAT, "key": asdict(key), "names": names, "peaks": dict(observed.absolute_maxima)}
    extremes = np.array([(h.low, h.high) for h in observed.histograms.values()], np.float64).reshape(-1, 2)
    counts = np.array([h.counts for h in observed.histograms.values()], np.int64).reshape(-1, BINS)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, header=text, extremes=extremes, counts=counts)


def load_statistics(path: Path, key: StatisticsKey) -> tuple[ActivationStatistics | None, str]:
    """What ``path`` holds, or None where it was made of something else; and a word on which of the two it is.

    Raises InputError where the file is there and cannot be read: it is replaced only when its owner says so.
    """
    if not path.exists():
        return None, "nothing saved yet"
    try:
        (text,) = read_arrays(path, ["header"])
        if text.nbytes > OBSERVATIONS_HEADER_BYTES:
            raise ValueError(f"its header has {text.nbytes} bytes, and {OBSERVATIONS_HEADER_BYTES} are the most")
        header = json.loads(bytes(text))
        if problem := _misfit(header, key):
            return None, problem
        return _observed(header, *read_arrays(path, ["extremes", "counts"])), "used again"
    except READ_ERRORS as error:
        raise InputError(
            f"saved observations {path} cannot be read: {error}; remove the file to observe anew"
        ) from error


def _misfit(header: Mapping[str, Any], key: StatisticsKey) -> str | None:
    if header["format"] != _FORMAT:
        return "saved by another version"
    other = [name for name, digest in asdict(key).items() if header["key"][name] != digest]
    return f"saved for other {' and '.join(other)}" if other else None


def _observed(header: Mapping[str, Any], extremes: Any, counts: Any) -> ActivationStatistics:
    histograms = {}
    if extremes.shape != (len(header["names"]), 2) or counts.shape != (len(header["names"]), BINS):
        raise ValueError("its numbers are not those of its tensors")
    for name, (low, high), row in zip(header["names"], extremes.tolist(), counts, strict=True):
        histogram = Histogram()
        histogram.low, histogram.high, histogram.counts = low, high, row
        histograms[name] = histogram
    return ActivationStatistics(histograms, {name: float(peak) for name, peak in header["peaks"].items()})

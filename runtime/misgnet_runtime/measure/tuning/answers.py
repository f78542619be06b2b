"""Whether an engine answers as it must under a setting: golden tiles, and its own answers where nothing is tuned."""

from __future__ import annotations

import numpy as np

from misgnet_runtime.bundle.golden import GoldenTiles, golden_of
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Predict
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.inference.detector import ChangeDetector, Probability
from misgnet_runtime.inference.self_test import GOLDEN_AGREEMENT, same_pixels
from misgnet_runtime.inference.split_detector import open_split
from misgnet_runtime.inference.tuned_settings import Setting
from misgnet_runtime.inference.tuned_use import Use

_OWN_AGREEMENT = 0.999  # share of pixels; INT8 answers depend a little on how tiles share a batch


class AnswerCheck:
    """Of one engine; its answers under ``default`` are what other settings must keep. Raises as opening it."""

    def __init__(self, bundle: Bundle, entry: EngineEntry, default: Setting) -> None:
        self._bundle, self._entry = bundle, entry
        self._golden = golden_of(bundle)
        self._own = self._answers(default)

    def problem(self, setting: Setting) -> str | None:
        """Why ``setting`` is not to be used; None where the answers stay."""
        try:
            found = self._answers(setting)
        except MisgnetError as error:
            return str(error)
        for part, answers in found.items():
            for words, expected, least in (
                ("the golden tiles", self._golden.probability, GOLDEN_AGREEMENT),
                ("those of the default", self._own[part], _OWN_AGREEMENT),
            ):
                share = same_pixels(answers, expected, self._bundle.manifest.threshold)
                if not share >= least:
                    return f"answers of {part} agree with {words} in only {100 * share:.2f} % of pixels"
        return None

    def _answers(self, setting: Setting) -> dict[str, Probability]:
        """Of the whole engine, and of its two parts where it is split."""
        bundle, entry, interface = self._bundle, self._entry, self._bundle.manifest.interface
        use = Use(setting.threads, setting.streams, setting.batch, setting.engine)
        with ChangeDetector(use.open(bundle, entry), interface) as detector:
            found = {"the engine": _answers(detector.probability, self._golden, setting.batch)}
        if entry.split:
            with open_split(bundle, entry, use) as parts:
                found["its parts"] = _answers(parts.probability, self._golden, setting.batch)
        return found


def _answers(predict: Predict, golden: GoldenTiles, batch: int) -> Probability:
    """float32 (G, T, T), ``batch`` tiles at once: the first ones again where the last are too few."""
    count = len(golden.before)
    picked = np.resize(np.arange(count), -(-count // batch) * batch).reshape(-1, batch)
    return np.concatenate([predict(golden.before[part], golden.after[part]) for part in picked])[:count]

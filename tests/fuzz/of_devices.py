"""Prepares the targets that read files cached by a build or a device, and the evaluation tiles of a bundle."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
from readers import Prepared, written


def evaluation(folder: Path) -> Prepared:
    from misgnet_runtime.accuracy.evaluation_tiles import read_evaluation, write_evaluation
    from support.device_bundles import evaluation_tiles

    good = io.BytesIO()
    write_evaluation(good, evaluation_tiles(0, 2))  # type: ignore[arg-type]  # NumPy takes both
    return written(folder / "tiles.npz", read_evaluation), [good.getvalue()]


def observations(folder: Path) -> Prepared:
    from misgnet_calibration.statistics.cache import (
        ActivationStatistics,
        StatisticsKey,
        load_statistics,
        save_statistics,
    )
    from misgnet_calibration.statistics.observers import Histogram

    key, path = StatisticsKey("tiles", "weights", "graph"), folder / "observations.npz"
    histogram = Histogram()
    histogram.observe(np.linspace(-1, 2, 100, dtype=np.float32))
    save_statistics(path, ActivationStatistics({"a": histogram}, {"a": 2.0}), key)
    return written(path, lambda path: load_statistics(path, key)), [path.read_bytes()]


def plans(folder: Path) -> Prepared:
    """Damages the active plan, the records of a plan and a choice, and kernel timings, without and with a digest."""
    from misgnet_runtime.engines.tensorrt.open import slot_of
    from misgnet_runtime.engines.tensorrt.plan_cache import FORMAT, Activation, PlanKey, PlanRecord, PlanStore
    from misgnet_runtime.inference.choice import Choice, ChoiceScope, Chosen, Variant
    from misgnet_runtime.storage.schema import encode
    from support.device_bundles import DEVICE
    from support.fake_cuda import FakeDriver

    os.environ["MISGNET_CACHE"] = str(folder / "cache")
    store, slot = PlanStore(), slot_of("0" * 64, DEVICE, FakeDriver("sm87").device())
    key = PlanKey("tensorrt", "10.3.0", "Orin", "sm87", "linux-aarch64", "0" * 64, ((1, 4, 16),))
    record = PlanRecord(FORMAT, "2026-01-01", key, hashlib.sha256(b"plan").hexdigest(), 4, "12.6", 0, 0, 0, 1.0)
    active = Activation(FORMAT, "2026-01-01", slot, "a fake", {DEVICE.graph: record}, "", None)
    store.prepare()
    store.keep(record, b"plan")
    store.activate(active)
    store.timings(key).write(b"timings")
    scope, best = ChoiceScope("0" * 64, "Orin", "sm87", "linux-aarch64"), Chosen(DEVICE.name, "the only one")
    variant = Variant(DEVICE.name, "INT8", plans={DEVICE.graph: record.sha256})
    choice = Choice(FORMAT, "2026-01-01", scope, best, best, [variant])
    store.keep_choice(scope, choice)
    (choice_file,) = (folder / "cache/plans").glob("choice-*")
    names = [slot.name() + ".json", key.name() + ".json", store.timings(key).name, choice_file.name]

    def read(data: bytes) -> None:
        for name in names:
            for contents in (data, hashlib.sha256(data).hexdigest().encode() + b"\n" + data):
                (folder / "cache/plans" / name).write_bytes(contents)
                with redirect_stderr(io.StringIO()):  # hides warnings
                    _read_all(store, slot, key, scope)

    return read, [encode(active), encode(record), encode(choice)]


def _read_all(store: object, slot: object, key: object, scope: object) -> None:
    """Calls all functions that read the store; each may raise InputError for a damaged file."""
    from typing import Any

    from misgnet_runtime.errors import InputError
    from misgnet_runtime.inference.choice import Choice

    kept: Any = store
    for call in (
        lambda: kept.active(slot), lambda: kept.cached(key), lambda: kept.choice(scope, Choice), kept.timings(key).read,
        kept.sweep,
    ):  # fmt: skip
        try:
            found = call()
            for record in getattr(found, "plans", {}).values():
                kept.plan(record)
        except InputError:
            pass

"""Compares a bundle's engines with the network in PyTorch, or finds a threshold. Runs in the benchmark's environment.

The probability of every evaluation tile is computed by a plain loop over the network, without anything of
``misgnet_export``; the bundle is opened through the runtime's public API.
"""

from __future__ import annotations

import json
from typing import Any

import forward
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.api import open_bundle

SOME = 16  # tiles from which a threshold is found


def predictions(asked: forward.Request, pairs: list[Any]) -> list[NDArray[np.float32]]:
    network = forward.load(asked, asked["factory"])
    return [forward.predict(network, asked, before, after) for before, after, _ in pairs]


def scores(found: list[NDArray[np.float32]], pairs: list[Any], threshold: float) -> dict[str, Any]:
    masks = [probability > threshold for probability in found]
    counts = Confusion.total([Confusion.of(mask, label) for mask, (*_, label) in zip(masks, pairs, strict=True)])
    return {"f1": counts.f1, "changed": float(np.mean([mask.mean() for mask in masks]))}


def difference(found: list[NDArray[np.float32]], expected: list[NDArray[np.float32]], threshold: float) -> Any:
    a, b = np.stack(found), np.stack(expected)
    apart = np.abs(a - b)
    return {
        "mean_difference": float(apart.mean()), "largest_difference": float(apart.max()),
        "agreement": float(((a > threshold) == (b > threshold)).mean()),
    }  # fmt: skip


def main() -> None:
    asked = forward.request()
    pairs = forward.read_pairs(asked["tiles"])
    if "bundle" not in asked:
        print(json.dumps({"median": float(np.median(predictions(asked, pairs[:SOME])))}))
        return
    expected, engines = predictions(asked, pairs), {}
    threshold = asked["threshold"]
    for engine in asked["engines"]:
        with open_bundle(asked["bundle"], engine) as session:
            found = [session.predict(before, after).probability for before, after, _ in pairs]
        engines[engine] = {**scores(found, pairs, threshold), **difference(found, expected, threshold)}
    print(json.dumps({"network": scores(expected, pairs, threshold), "engines": engines}))


if __name__ == "__main__":
    main()

"""Compares masks that another machine made with a bundle with the masks that this machine makes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import PIL.Image

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.engines import open_engine_file
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.raster.images import read_pair


def own_mask(bundle: Bundle, engine: str, before: Image, after: Image) -> Mask:
    """Returns this machine's mask, bool (H, W), with the graph of ``engine``, even if it is for another processor."""
    entry = msgspec.structs.replace(bundle.engine_entry(engine), needs=[])
    manifest = bundle.manifest
    batch = manifest.interface.max_batch
    with ChangeDetector(open_engine_file(entry, bundle.path, batch), manifest.interface) as detector:
        probability = detector.scene_probability(before, after, overlap=manifest.scene_overlap, batch=batch)
        return probability > manifest.threshold


def read_mask(path: Path) -> Mask:
    with PIL.Image.open(path) as image:
        return np.asarray(image) > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per engine; returns 3 if the share of equal pixels is below ``--least``, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bundle", "before", "after", "masks"):
        parser.add_argument(name, type=Path)
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--least", type=float, default=0.999, help="Required share of equal pixels (default: 0.999).")
    options = parser.parse_args(arguments)
    bundle, images = read_bundle(options.bundle), read_pair(options.before, options.after)
    shares = []
    for engine in options.engines:
        found, own = read_mask(options.masks / f"{engine}.png"), own_mask(bundle, engine, *images)
        shares.append(float((found == own).mean()) if found.shape == own.shape else 0.0)
        print(f"{engine}: {100 * shares[-1]:.4f} % of {own.size} pixels are equal, {int(own.sum())} changed")
    return 0 if min(shares) >= options.least else 3


if __name__ == "__main__":
    sys.exit(main())

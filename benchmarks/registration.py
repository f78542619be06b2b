"""Measures --coregister shift on pairs whose AFTER was moved by a known offset: the error of the estimate, and F1.

    python -m benchmarks.registration BUNDLE DATA... [--shift -12.3 4.7] [--engine NAME] [--json FILE]

DATA are folders of A/, B/ and label/. Each pair is run as it is, registered, and moved and registered. AFTER is moved
by cubic interpolation; edges are cut off all images, so that no pixel is made up. Labels of changes mark what is in
AFTER, so those of a registered pair are moved as registration moves AFTER; figures for labels as they are are stated,
too. Only pixels with data in all three maps count: all of them, and those at least 64 px from the edges, since a moved
AFTER ends before the edge, and the network looks at the pixels around each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import new_parser, report_errors
from misgnet_runtime import BundleSession, open_bundle
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.errors import InputError
from misgnet_runtime.machine import describe_machine
from misgnet_runtime.raster.dataset import Source, find_sources
from misgnet_runtime.raster.images import read_label, read_pair
from misgnet_runtime.storage.atomic import write_file

Offset = tuple[float, float]  # rows and columns, in pixels
MAPS = ("as it is", "registered", "moved and registered")
INSIDE = 64  # pixels from the edges
_SPARE = 19  # pixels cut off at each edge, besides those that the shift makes up


@dataclass(frozen=True)
class Map:
    """A predicted map."""

    changed: Mask  # (h, w), like ``valid``
    valid: Mask
    offset: Offset | None  # that registration removed


Predict = Callable[[Path, Path, bool], Map]  # from BEFORE, AFTER and whether to register


@dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one pair."""

    name: str
    refused: str | None = None  # why it could not be registered
    offset: Offset | None = None  # of the pair as it is
    error: Offset | None = None  # estimate of the moved pair, minus that of the pair as it is, minus the shift
    counts: dict[str, dict[str, Confusion]] = field(default_factory=dict)  # by pixels and labels, then by map


def measure(predict: Predict, source: Source, shift: Offset, folder: Path) -> Row:
    """Runs a labelled pair; ``folder``: for temporary files."""
    before, after = read_pair(source.before, source.after)
    label = read_label(source.label) if source.label else np.zeros(before.shape[:2], np.bool_)
    edge = math.ceil(max(map(abs, shift))) + _SPARE
    paths = [
        _write(folder / f"{name}.tif", image[edge:-edge, edge:-edge])
        for name, image in (("before", before), ("after", after), ("moved", _moved_image(after, shift)))
    ]
    try:
        maps = [predict(paths[0], paths[1 + (index > 1)], index > 0) for index in range(len(MAPS))]
    except InputError as error:
        return Row(name=source.name, refused=str(error))
    own, found = (one.offset or (0.0, 0.0) for one in maps[1:])
    valid = np.logical_and.reduce([one.valid for one in maps])
    inside = np.zeros_like(valid)
    inside[INSIDE:-INSIDE, INSIDE:-INSIDE] = True
    # Where registration puts what is labelled.
    to = ((0.0, 0.0), (-own[0], -own[1]), (shift[0] - found[0], shift[1] - found[1]))
    return Row(
        name=source.name, offset=own, error=(found[0] - own[0] - shift[0], found[1] - own[1] - shift[1]),
        counts={
            about: {
                name: Confusion.of(one.changed[pixels], _moved_label(label, step)[edge:-edge, edge:-edge][pixels])
                for name, one, step in zip(MAPS, maps, steps, strict=True)
            }
            for about, pixels, steps in (
                ("all pixels, labels moved with AFTER", valid, to),
                ("all pixels, labels as they are", valid, (to[0],) * len(MAPS)),
                (f"{INSIDE} px from the edges, labels moved with AFTER", valid & inside, to),
            )
        },
    )  # fmt: skip


def predict_with(bundle: BundleSession) -> Predict:
    def predict(before: Path, after: Path, register: bool) -> Map:
        result = bundle.predict_scene(before, after, coregister="shift" if register else None)
        found = result.report["registration"]
        return Map(result.mask.filled(False), result.valid, (found["rows"], found["columns"]) if found else None)

    return predict


def rows(predict: Predict, data: Sequence[Path], shift: Offset) -> Iterator[Row]:
    """Yields the figures of all pairs of the folders; raises InputError if one has no pairs."""
    for folder in data:
        for source in find_sources(folder):
            with tempfile.TemporaryDirectory() as temporary:
                yield measure(predict, source, shift, Path(temporary))


def total(found: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Returns F1 over the pixels of all registered pairs, by pixels and labels, then by map."""
    known = [row.counts for row in found if row.counts]
    names = known[0] if known else {}
    return {about: {name: Confusion.total([c[about][name] for c in known]).f1 for name in MAPS} for about in names}


def table(found: Sequence[Row], shift: Offset) -> str:
    """Formats the estimates of all pairs, and F1 over all of them."""
    lines = ["| pair | own offset, px | error, px |", "|---|---|---|"]
    lines += [f"| {row.name} | {_pixels(row.offset)} | {_pixels(row.error)} |" for row in found if row.offset]
    lines += [f"| {row.name} | refused | |" for row in found if row.refused]
    good = sum(round(max(map(abs, row.error)), 2) <= 0.1 for row in found if row.error)
    lines += ["", f"AFTER moved by {_pixels(shift)} px: {good} of {len(found)} pairs within 0.1 px on both axes", ""]
    lines += [f"| F1 | {' | '.join(MAPS)} |", "|---|---|---|---|"]
    for about, scores in total(found).items():
        lines.append(f"| {about} | {' | '.join(map(_score, scores.values()))} |")
    return "\n".join(lines)


def _line(row: Row) -> str:
    if row.refused:
        return f"{row.name}: {row.refused}"
    scores = ", ".join(map(_score, next(iter(total([row]).values())).values()))
    return f"{row.name}: error {_pixels(row.error)} px; F1 {', '.join(MAPS)}: {scores}"


def _score(score: float | None) -> str:
    return "n/a" if score is None else f"{score:.4f}"


def _pixels(offset: Offset | None) -> str:
    return "" if offset is None else f"{offset[0]:+.2f}, {offset[1]:+.2f}"


def _moved_image(image: Image, shift: Offset) -> Image:
    from scipy import ndimage

    found = ndimage.shift(image.astype(np.float64), (*shift, 0), order=3, mode="nearest")
    return np.asarray(np.clip(np.rint(found), 0, 255), image.dtype)


def _moved_label(label: Mask, shift: Offset) -> Mask:
    from scipy import ndimage

    return np.asarray(ndimage.shift(label.astype(np.float32), shift, order=1, mode="nearest") > 0.5)


def _write(path: Path, image: NDArray[np.uint8]) -> Path:
    import rasterio
    from rasterio.transform import from_origin

    height, width, count = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=image.dtype, photometric="RGB",
        crs="EPSG:32633", transform=from_origin(400_000, 5_000_000, 0.5, 0.5),
    ) as dataset:  # fmt: skip
        dataset.write(np.moveaxis(image, 2, 0))
    return path


def parser() -> argparse.ArgumentParser:
    parser = new_parser("registration", __doc__)
    add = parser.add_argument
    add("bundle", type=Path, help="Bundle folder.")
    add("data", type=Path, nargs="+", help="Folders of A/ B/ label/.")
    add("--shift", type=float, nargs=2, default=(-12.3, 4.7), metavar=("ROWS", "COLUMNS"), help="Known offset in px.")
    add("--engine", default="auto", help="Engine of the bundle (default: the fastest that runs here).")
    return parser


def main() -> None:
    options = parser().parse_args()
    shift: Offset = (options.shift[0], options.shift[1])
    found: list[Row] = []
    with report_errors(), open_bundle(options.bundle, options.engine) as bundle:
        for row in rows(predict_with(bundle), options.data, shift):
            found.append(row)
            print(_line(row), file=sys.stderr, flush=True)
        engine = bundle.engine.name
    print(table(found, shift))
    if options.json:
        report: dict[str, Any] = {
            "machine": describe_machine(), "engine": engine, "shift": shift, "f1": total(found),
            "pairs": [asdict(row) for row in found],
        }  # fmt: skip
        write_file(options.json, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()

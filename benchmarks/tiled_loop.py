"""Writes the change mask of two GeoTIFFs with a plain tiled loop: what a user writes without this project.

    python benchmarks/tiled_loop.py GRAPH BEFORE AFTER OUTPUT [--threads N] [--overlap PX] [--threshold P] [--cache DIR]

GRAPH is the straight export (uint8 RGB tiles of both dates, probability of change). It needs NumPy, rasterio and
OpenVINO only. OpenVINO chooses its precision and, by its throughput hint, the number of streams; its queue computes
while tiles are read. Overlapping predictions are averaged. Prints its figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from threading import Lock

import numpy as np
import openvino
import rasterio
from rasterio.windows import Window


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the first pixel of each tile along one axis; the last tile is shifted inward."""
    return [*range(0, length - tile, tile - overlap), length - tile]


def main() -> None:
    given = options()
    core = openvino.Core()
    if given.cache:
        core.set_property({"CACHE_DIR": given.cache})
    model = core.read_model(given.graph)
    _, tile, _, bands = model.inputs[0].partial_shape
    tile = tile.get_length()
    # OpenVINO is much faster with a fixed batch.
    model.reshape({port: [1, tile, tile, bands] for port in model.inputs})
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": given.threads}
    queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings))
    with rasterio.open(given.before) as before, rasterio.open(given.after) as after:
        height, width, lock = before.height, before.width, Lock()
        total, count = np.zeros((height, width), np.float32), np.zeros((height, width), np.uint8)

        def add(request: openvino.InferRequest, where: tuple[slice, slice]) -> None:
            with lock:  # callbacks of several requests run at once, and their tiles overlap
                total[where] += request.get_output_tensor(0).data[0]
                count[where] += 1

        queue.set_callback(add)
        start, tiles = time.perf_counter(), 0
        for top in starts(height, tile, given.overlap):
            for left in starts(width, tile, given.overlap):
                window = Window(left, top, tile, tile)
                pair = [date.read(window=window).transpose(1, 2, 0)[None] for date in (before, after)]
                queue.start_async(pair, (slice(top, top + tile), slice(left, left + tile)))
                tiles += 1
        queue.wait_all()
        seconds = time.perf_counter() - start
        profile = before.profile | {"count": 1, "photometric": "MINISBLACK"}
    mask = (total > given.threshold * count).astype(np.uint8)
    with rasterio.open(given.output, "w", **profile) as output:
        output.write(mask, 1)
    print(json.dumps({"tiles": tiles, "seconds": seconds}))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("graph", "before", "after", "output"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores).")
    parser.add_argument("--overlap", type=int, default=64, help="Pixels that neighbours share (default: 64).")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="Probability above which is change (default: 0.5)."
    )
    parser.add_argument("--cache", help="Folder where OpenVINO keeps compiled graphs (default: none).")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Creates bundles whose plans are compiled on the device, with graphs for the fake of TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from misgnet_runtime.accuracy.evaluation_tiles import ROLE, EvaluationTiles, write_evaluation
from misgnet_runtime.bundle import MANIFEST
from misgnet_runtime.bundle.manifest import EngineEntry, SplitEntry, decode_manifest
from misgnet_runtime.bundle.reader import describe_files
from misgnet_runtime.storage.schema import encode
from support import fake_tensorrt
from support.bundles import FLOAT, INTERFACE, TILE, expected, images, make_bundle

GRAPH, ENCODER, HEAD = "graphs/int8.onnx", "graphs/encoder.onnx", "graphs/int8_head.onnx"
GRAPH_FP16 = "graphs/float16.onnx"
DEVICE = EngineEntry(
    "jetson-orin", "tensorrt", GRAPH, GRAPH, "int8+float16", "", ["sm87"], "any", (1, 4, INTERFACE.max_batch),
    compiled="to be compiled on the device",
)  # fmt: skip
# The two variants that one target stands for.
DEVICE_INT8 = replace(DEVICE, name="jetson-orin-int8")
DEVICE_FP16 = replace(DEVICE, name="jetson-orin-fp16", precision="float16", file=GRAPH_FP16, graph=GRAPH_FP16)
SPLIT = replace(DEVICE, split=SplitEntry(ENCODER, HEAD, ENCODER, HEAD))
# About half of the tiles' pixels are above this threshold, so that masks contain both classes.
THRESHOLD = 0.33


def device_bundle(
    root: Path, entry: EngineEntry = DEVICE, *, tiles: int = 0, wrong: bool = False, flip: bool = False,
    graph: bytes | None = None,
) -> Path:  # fmt: skip
    """Creates a bundle with ``tiles`` evaluation tiles, whose masks the engine reproduces, or misses if ``wrong``."""
    make_bundle(root, engines=[FLOAT, entry], flip=flip)
    (root / GRAPH).write_bytes(graph or fake_tensorrt.model(size=TILE))
    if entry.split:
        for name, data in zip((ENCODER, HEAD), fake_tensorrt.parts(TILE), strict=True):
            (root / name).write_bytes(data)
    for start in range(0, tiles, 2):
        (root / "evaluation").mkdir(exist_ok=True)
        write_evaluation(root / f"evaluation/tiles_{start}.npz", evaluation_tiles(start, min(2, tiles - start), wrong))
    return described(root)


def variants_bundle(
    root: Path, *, more: Sequence[EngineEntry] = (), int8: bytes | None = None, fp16: bytes | None = None
) -> Path:
    """Creates a bundle with both variants and ``more`` engines; ``int8``, ``fp16``: other graphs for the variants."""
    make_bundle(root, engines=[FLOAT])
    (root / GRAPH).write_bytes(int8 or fake_tensorrt.model(size=TILE))
    (root / GRAPH_FP16).write_bytes(fp16 or fake_tensorrt.model(size=TILE) + b" ")  # another graph, the same network
    return described(root, engines=[FLOAT, DEVICE_INT8, DEVICE_FP16, *more])


def evaluation_tiles(seed: int, count: int, wrong: bool = False) -> EvaluationTiles:
    before, after = images(count, TILE, TILE, seed=seed)
    mask = expected(before, after) > THRESHOLD
    masks = ~mask if wrong else mask
    owned = np.tile(np.array([0, TILE, 8, TILE], np.int64), (count, 1))
    names = np.array([f"image_{seed}@{index},0" for index in range(count)], np.str_)
    sources = np.array([f"image_{seed}"] * count, np.str_)
    return EvaluationTiles(
        before=before, after=after, label=masks, reference=masks, owned=owned, names=names, sources=sources
    )


def described(root: Path, **changes: Any) -> Path:
    """Rewrites the manifest for the files as they are now, with ``changes``."""
    manifest = decode_manifest(root / MANIFEST)
    roles = {file.path: (file.role, file.precision) for file in manifest.files}
    roles[GRAPH_FP16] = ("float16 graph", "float16")
    roles |= {path.relative_to(root).as_posix(): (ROLE, None) for path in (root / "evaluation").glob("*")}
    changed = msgspec.structs.replace(
        manifest, **{"files": describe_files(root, roles), "threshold": THRESHOLD, **changes}
    )
    (root / MANIFEST).write_bytes(encode(changed))
    return root

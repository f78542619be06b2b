"""The splitting stages: encoder and head of each graph, written beside it once they answer together as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from misgnet_export.graph.split import SplitGraph, split_graph
from misgnet_export.pipeline.agreement import Answers, answers_of, compare, require_masks, require_same
from misgnet_export.pipeline.progress import Stage, StageLog
from misgnet_export.pipeline.request import BuildRequest
from misgnet_export.pipeline.result import GraphFile
from misgnet_runtime.bundle import Interface, SplitEntry
from misgnet_runtime.callables import Progress
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.inference.split_detector import SplitDetector
from misgnet_runtime.raster.dataset import Tile, stack


def split_graphs(
    request: BuildRequest, graphs: list[GraphFile], few: Sequence[Tile], root: Path, log: StageLog
) -> list[GraphFile]:
    """``graphs`` with the files of their parts, as far as ``request`` asks for them.

    Raises GateFailed where a graph has no place to cut, or where the parts do not answer as the whole on ``few``.
    """
    if not request.split:
        return graphs
    done = []
    for graph in graphs:
        with log.stage(f"split {graph.name}") as stage:
            done.append(_split(request, graph, few, root, stage))
    return done


def _split(request: BuildRequest, graph: GraphFile, few: Sequence[Tile], root: Path, stage: Stage) -> GraphFile:
    whole = onnx.load(root / graph.file)
    parts = split_graph(whole, request.interface)
    agreement = _check(request, graph, whole, parts, few, stage)
    encoder, head = (_write(root, graph, *part) for part in (("encoder", parts.encoder), ("head", parts.head)))
    sizes = [part.ByteSize() / 1e6 for part in (parts.encoder, parts.head)]
    stage.finding = f"encoder {sizes[0]:.1f} MB, head {sizes[1]:.1f} MB; {agreement}"
    return replace(graph, split=SplitEntry(encoder, head, encoder, head), features=parts.features)


def _write(root: Path, graph: GraphFile, part: str, model: onnx.ModelProto) -> str:
    file = PurePosixPath(graph.file)
    name = file.with_name(f"{file.stem}_{part}.onnx").as_posix()
    (root / name).write_bytes(model.SerializeToString())
    return name


def _check(
    request: BuildRequest, graph: GraphFile, whole: onnx.ModelProto, parts: SplitGraph, few: Sequence[Tile],
    stage: Stage,
) -> str:  # fmt: skip
    """How closely the parts answer as ``whole``, with the features as they are and kept in float16."""
    expected = answers_of(whole, request.interface, few)
    with _detector(parts, request.interface) as detector:
        composed = _composed(detector, few, stage.progress)
    direct, kept = (compare(expected, found, request.threshold) for found in composed)
    what, before = f"the graph '{graph.name}' in two parts", "the whole one"
    if graph.precision == "float32":
        require_same(direct, request.interface, what, before)
    require_masks(direct, what, before)
    require_masks(kept, f"{what} with features kept in float16", before)
    return f"as the whole: {direct}; features in float16: {kept}"


def _detector(parts: SplitGraph, interface: Interface) -> SplitDetector:
    encoder, head = (
        OnnxRuntimeEngine(part.SerializeToString(), interface.max_batch) for part in (parts.encoder, parts.head)
    )
    return SplitDetector(encoder, head, interface, parts.features)


def _composed(detector: SplitDetector, few: Sequence[Tile], progress: Progress) -> tuple[Answers, Answers]:
    """What the parts answer with the features as they are, and with those that float16 keeps of them."""
    direct: Answers = []
    kept: Answers = []
    for done, tile in enumerate(few, 1):
        dates = [detector.encode(images) for images in stack([tile])]
        direct += list(detector.compare(*dates))
        halves = [[feature.astype(np.float16).astype(np.float32) for feature in date] for date in dates]
        kept += list(detector.compare(*halves))
        progress(done, len(few))
    return direct, kept

"""The splitting stages: encoder and head of each graph, written beside it once they answer together as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from misgnet_export.graph.split import SplitGraph, split_graph
from misgnet_export.pipeline.agreement import Answers, answers_of, compare, require_masks, require_same
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.progress import Stage
from misgnet_export.pipeline.result import GraphFile, WrittenGraph
from misgnet_runtime.bundle import Interface, SplitEntry
from misgnet_runtime.callables import Progress
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.inference.split_detector import SplitDetector
from misgnet_runtime.raster.dataset import Tile, stack


def split_graphs(context: BuildContext, graphs: list[WrittenGraph]) -> list[GraphFile]:
    """The files of ``graphs``, with those of their parts where the request asks for them.

    Raises GateFailed where a graph has no place to cut, or where the parts do not answer as the whole.
    """
    if not context.request.split:
        return [graph.file for graph in graphs]
    done = []
    for graph in graphs:
        with context.log.stage(f"split {graph.file.name}") as stage:
            done.append(_split(context, graph, stage))
    return done


def _split(context: BuildContext, graph: WrittenGraph, stage: Stage) -> GraphFile:
    parts = split_graph(graph.model, context.interface)
    agreement = _check(context, graph, parts, stage)
    encoder = _write(context.root, graph.file, "encoder", parts.encoder)
    head = _write(context.root, graph.file, "head", parts.head)
    sizes = [part.ByteSize() / 1e6 for part in (parts.encoder, parts.head)]
    stage.finding = f"encoder {sizes[0]:.1f} MB, head {sizes[1]:.1f} MB; {agreement}"
    return replace(graph.file, split=SplitEntry(encoder, head, encoder, head), features=parts.features)


def _write(root: Path, graph: GraphFile, part: str, model: onnx.ModelProto) -> str:
    file = PurePosixPath(graph.file)
    name = file.with_name(f"{file.stem}_{part}.onnx").as_posix()
    (root / name).write_bytes(model.SerializeToString())
    return name


def _check(context: BuildContext, graph: WrittenGraph, parts: SplitGraph, stage: Stage) -> str:
    """How closely the parts answer as the whole graph, with the features as they are and kept in float16."""
    expected = answers_of(graph.model, context.interface, context.check_tiles)
    with _detector(parts, context.interface) as detector:
        composed = _composed(detector, context.check_tiles, stage.progress)
    direct, kept = (compare(expected, found, context.policy.threshold) for found in composed)
    what, before = f"the graph '{graph.file.name}' in two parts", "the whole one"
    if graph.file.precision == "float32":
        require_same(direct, context.interface, what, before)
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

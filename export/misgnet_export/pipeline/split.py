"""Splits each graph into encoder and head, and writes them after checking that together they reproduce its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import onnx

from misgnet_export.graph.split import SplitGraph, split_graph
from misgnet_export.pipeline.agreement import Predictions, compare, predictions_of, require_masks, require_same
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.graph_metadata import write_graph
from misgnet_export.pipeline.progress import Stage
from misgnet_export.pipeline.result import GraphFile, WrittenGraph
from misgnet_runtime.bundle import Interface, SplitEntry
from misgnet_runtime.callables import Progress
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.inference.split_detector import SplitDetector
from misgnet_runtime.raster.dataset import Tile, stack


def split_graphs(context: BuildContext, graphs: list[WrittenGraph]) -> list[GraphFile]:
    """Returns the files of ``graphs``, with those of encoder and head if the request asks for them.

    Raises:
        GateFailed: A graph cannot be cut, or encoder and head do not reproduce its output.
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
    encoder = _write(context, graph.file, "encoder", parts.encoder)
    head = _write(context, graph.file, "head", parts.head)
    sizes = [part.ByteSize() / 1e6 for part in (parts.encoder, parts.head)]
    stage.finding = f"encoder {sizes[0]:.1f} MB, head {sizes[1]:.1f} MB; {agreement}"
    return replace(graph.file, split=SplitEntry(encoder, head, encoder, head), features=parts.features)


def _write(context: BuildContext, graph: GraphFile, part: Literal["encoder", "head"], model: onnx.ModelProto) -> str:
    file = PurePosixPath(graph.file)
    name = file.with_name(f"{file.stem}_{part}.onnx").as_posix()
    write_graph(context, name, model, part)
    return name


def _check(context: BuildContext, graph: WrittenGraph, parts: SplitGraph, stage: Stage) -> str:
    """Compares encoder and head with the whole graph, with features in float32 and rounded to float16."""
    expected = predictions_of(graph.model, context.interface, context.check_tiles)
    with _detector(parts, context.interface) as detector:
        composed = _composed(detector, context.check_tiles, stage.progress)
    direct, kept = (compare(expected, found, context.policy.threshold) for found in composed)
    what, before = f"the graph '{graph.file.name}' in two parts", "the whole one"
    if graph.file.precision == "float32":
        require_same(direct, context.interface, what, before)
    require_masks(direct, what, before)
    require_masks(kept, f"{what} with features kept in float16", before)
    return f"compared with the whole graph: {direct}; features in float16: {kept}"


def _detector(parts: SplitGraph, interface: Interface) -> SplitDetector:
    encoder, head = (
        OnnxRuntimeEngine(part.SerializeToString(), interface.max_batch) for part in (parts.encoder, parts.head)
    )
    return SplitDetector(encoder, head, interface, parts.features)


def _composed(detector: SplitDetector, few: Sequence[Tile], progress: Progress) -> tuple[Predictions, Predictions]:
    """Returns the predictions of encoder and head with features in float32, and with features rounded to float16."""
    direct: Predictions = []
    kept: Predictions = []
    for done, tile in enumerate(few, 1):
        dates = [detector.encode(images) for images in stack([tile])]
        direct += list(detector.compare(*dates))
        halves = [[feature.astype(np.float16).astype(np.float32) for feature in date] for date in dates]
        kept += list(detector.compare(*halves))
        progress(done, len(few))
    return direct, kept

"""The splitting stages: encoder and head of each graph, written beside it once they answer together as it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_export.agreement import answers, answers_of, compare, require_masks, require_same
from misgnet_export.draft import GraphFile
from misgnet_export.graph.split import SplitGraph, split_graph
from misgnet_export.progress import Stage, StageLog
from misgnet_export.request import BuildRequest
from misgnet_runtime.callables import Predict
from misgnet_runtime.engines.ort import OnnxRuntimeEngine
from misgnet_runtime.manifest import Interface, SplitEntry
from misgnet_runtime.split import SplitDetector
from misgnet_runtime.tiles import Tile

Kept = Callable[[NDArray[np.float32]], NDArray[np.float32]]


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
    sizes = [(root / name).stat().st_size / 1e6 for name in (encoder, head)]
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
        direct, kept = (
            compare(expected, answers(composed(detector, keep), few, stage.progress), request.threshold)
            for keep in (_as_is, _in_float16)
        )
    what, before = f"encoder and head of the graph '{graph.name}'", "the whole graph"
    if graph.precision == "float32":
        require_same(direct, request.interface, what, before)
    require_masks(direct, what, before)
    require_masks(kept, f"{what}, with features kept in float16,", before)
    return f"as the whole: {direct}; features in float16: {kept}"


def _detector(parts: SplitGraph, interface: Interface) -> SplitDetector:
    encoder, head = (
        OnnxRuntimeEngine(part.SerializeToString(), interface.max_batch) for part in (parts.encoder, parts.head)
    )
    return SplitDetector(encoder, head, interface, parts.features)


def composed(detector: SplitDetector, keep: Kept) -> Predict:
    """Encoder and head as one function of both dates' tiles; ``keep``: what a feature goes through in between."""
    return lambda before, after: detector.compare(
        *([keep(feature) for feature in detector.encode(images)] for images in (before, after))
    )


def _as_is(feature: NDArray[np.float32]) -> NDArray[np.float32]:
    return feature


def _in_float16(feature: NDArray[np.float32]) -> NDArray[np.float32]:
    return feature.astype(np.float16).astype(np.float32)

"""Writes graphs with ``metadata_props``, so that a graph that was copied out of its bundle still says what it is."""

from __future__ import annotations

from typing import Literal

import msgspec
import onnx

from misgnet_calibration.onnx_graph import copied
from misgnet_export.pipeline.context import BuildContext

# What a graph reads: images of both dates, the image of one date, or the features of both dates.
Io = Literal["pair", "encoder", "head"]
_PREFIX = "misgnet_"


def write_graph(context: BuildContext, file: str, model: onnx.ModelProto, io: Io = "pair") -> int:
    """Writes ``model`` with its metadata to ``file``, relative to the bundle; returns the file's size in bytes.

    ``model`` stays unchanged: digests of graphs, such as those of saved activation statistics, do not depend on it.
    """
    path = context.root / file
    path.parent.mkdir(exist_ok=True)
    written = copied(model)
    onnx.helper.set_model_props(written, graph_metadata(context, io))
    return path.write_bytes(written.SerializeToString())


def graph_metadata(context: BuildContext, io: Io) -> dict[str, str]:
    """Returns the metadata of a graph: text as it is, numbers and lists as JSON.

    The version is that of the build; ``misgnet-export sign`` may raise the manifest's.
    """
    request, how = context.request, context.interface.preprocessing()
    values = {
        "name": context.entry.name, "version": request.bundle_version, "io": io, "bands": how.bands,
        "scale": how.scale, "mean": how.mean, "std": how.std, "resolution": context.entry.resolution,
        "threshold": context.policy.threshold, "licence": request.licence,
        "source_weights_sha256": context.weights_sha256,
    }  # fmt: skip
    return {_PREFIX + name: _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

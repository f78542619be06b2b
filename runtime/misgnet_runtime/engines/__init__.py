"""Opens the engine that a manifest entry describes; vendor libraries are imported only when needed."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.machine import check_processor, usable_cores

if TYPE_CHECKING:
    from misgnet_runtime.bundle.checked import CheckedFiles
    from misgnet_runtime.bundle.manifest import EngineEntry
    from misgnet_runtime.engines.base import Engine, TensorSpec

__all__ = [
    "DEFAULT_EXECUTION", "LIBRARIES", "MOST_STREAMS", "Engine", "ExecutionOptions", "TensorSpec", "batch_for_scenes",
    "is_on_cpu", "open_engine_file", "streams_for_scenes", "streams_on_cpu",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports ``Engine`` and ``TensorSpec`` on first use: they need NumPy, the options of this package do not."""
    if name not in ("Engine", "TensorSpec"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from misgnet_runtime.engines import base

    return getattr(base, name)


LIBRARIES = MappingProxyType({
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "rtx": ("tensorrt-rtx",),
    "tensorrt": ("tensorrt",),
})  # fmt: skip
"""Distributions that run each kind of engine, whose versions affect its speed."""

MOST_STREAMS = 4  # each stream holds memory for one batch


def is_on_cpu(entry: EngineEntry) -> bool:
    return entry.kind in ("onnxruntime", "openvino")


def streams_on_cpu(cores: int | None = None) -> int:
    """Returns one stream per core, at most :data:`MOST_STREAMS`. A core that computes a batch alone never waits.

    ``cores``: default: all usable cores.
    """
    return min(MOST_STREAMS, cores or usable_cores())


def streams_for_scenes(entry: EngineEntry) -> int:
    """Returns how many batches in flight keep the engine's device busy during a scene.

    On a GPU, two: the copies of one batch overlap the computation of the other.
    """
    return streams_on_cpu() if is_on_cpu(entry) else 2


def batch_for_scenes(entry: EngineEntry) -> int:
    """Returns the batch size that is fastest for a scene: 1 on a CPU (fits its caches), about 4 on a GPU.

    On a GPU, the largest one up to 4 that an optimization profile of the plan accepts without padding.
    """
    if is_on_cpu(entry):
        return 1
    profiles = [profile.batches for profile in entry.plan_profiles]
    return max((min(high, 4) for low, _, high in profiles if low <= 4), default=profiles[0][0])


def open_engine_file(
    entry: EngineEntry,
    root: Path | CheckedFiles,
    max_batch: int,
    execution: ExecutionOptions = DEFAULT_EXECUTION,
) -> Engine:
    """Opens the engine that ``entry`` describes, from the bytes that were verified.

    Args:
        entry: The engine's entry in the manifest.
        root: The files of a bundle, or the directory of a bundle that is still being built.
        max_batch: Largest number of tiles per inference call.
        execution: Threads (default: all usable cores) and streams (default: 1). Its batch is not used here.

    Raises:
        UnavailableError: The device, the processor features, the library or its version are missing on this machine, or
            the plan has not been compiled here yet.
        InputError: The engine file cannot be opened.
    """
    from misgnet_runtime.bundle.checked import CheckedFiles
    from misgnet_runtime.engines.onnx_file import read_graph

    check_processor(entry.needs)
    files = CheckedFiles(root) if isinstance(root, Path) else root
    if entry.kind in ("rtx", "tensorrt"):
        from misgnet_runtime.engines.tensorrt.open import open_plan_of

        return open_plan_of(entry, files, execution.streams or 1, max_batch=max_batch)
    graph, name = read_graph(files, entry.file), str(files.name / entry.file)
    if entry.kind == "openvino":
        from misgnet_runtime.engines.openvino import OpenVinoEngine

        # A build opens graphs that it discards; only those of a finished bundle are worth keeping.
        cached = files.manifest_sha256 is not None
        return OpenVinoEngine(graph, max_batch, execution, precision=entry.precision, name=name, cached=cached)
    if entry.kind == "onnxruntime":
        from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(graph, max_batch, execution, name=name)
    from misgnet_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine

    return OnnxRuntimeCudaEngine(graph, max_batch, execution, name=name)

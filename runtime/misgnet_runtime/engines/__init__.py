"""Engines: one contract, opened by the manifest's entry. Vendors are imported when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.machine import check_processor, usable_cores

if TYPE_CHECKING:
    from misgnet_runtime.bundle.checked import CheckedFiles
    from misgnet_runtime.bundle.manifest import EngineEntry
    from misgnet_runtime.engines.base import Engine, TensorSpec

__all__ = [
    "DEFAULT_EXECUTION", "MOST_STREAMS", "Engine", "ExecutionOptions", "TensorSpec", "batch_for_scenes", "is_on_cpu",
    "open_engine_file", "streams_for_scenes", "streams_on_cpu",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The contract, which takes NumPy: this package's options are cheap to import."""
    if name not in ("Engine", "TensorSpec"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from misgnet_runtime.engines import base

    return getattr(base, name)


MOST_STREAMS = 4  # each takes memory for a batch of its own


def is_on_cpu(entry: EngineEntry) -> bool:
    return entry.kind in ("onnxruntime", "openvino")


def streams_on_cpu(cores: int | None = None) -> int:
    """One for each of ``cores``, or of all that are usable, but four at most: a core that computes a batch alone waits
    for no other one."""
    return min(MOST_STREAMS, cores or usable_cores())


def streams_for_scenes(entry: EngineEntry) -> int:
    """Batches at once that keep the engine's device busy where there is always a next one.

    On a GPU the copies of one batch hide behind another.
    """
    return streams_on_cpu() if is_on_cpu(entry) else 2


def batch_for_scenes(entry: EngineEntry) -> int:
    """Tiles in a batch that serve a scene best: on a CPU one alone stays in the caches, a GPU wants more of them."""
    return 1 if is_on_cpu(entry) else 4


def open_engine_file(
    entry: EngineEntry,
    root: Path | CheckedFiles,
    max_batch: int,
    execution: ExecutionOptions = DEFAULT_EXECUTION,
) -> Engine:
    """Open the engine that ``entry`` describes, from the bytes that were checked.

    Args:
        entry: The engine's entry in the manifest.
        root: The files of a bundle, or the folder of one that is still being built.
        max_batch: The most tiles of an inference call.
        execution: Threads (default: all usable cores) and streams (default: one); the batch is the caller's.

    Raises:
        UnavailableError: This machine lacks the device, the processor, the library or the right version, or has no plan
            for it yet.
        InputError: The file cannot be opened.
    """
    from misgnet_runtime.bundle.checked import CheckedFiles
    from misgnet_runtime.engines.onnx_file import read_graph

    check_processor(entry.needs)
    files = CheckedFiles(root) if isinstance(root, Path) else root
    if entry.kind in ("rtx", "tensorrt"):
        from misgnet_runtime.engines.tensorrt.open import open_plan_of

        return open_plan_of(entry, files, execution.streams or 1)
    graph, name = read_graph(files, entry.file), str(files.name / entry.file)
    if entry.kind == "openvino":
        from misgnet_runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(graph, max_batch, execution, precision=entry.precision, name=name)
    if entry.kind == "onnxruntime":
        from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(graph, max_batch, execution, name=name)
    from misgnet_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine

    return OnnxRuntimeCudaEngine(graph, max_batch, execution, name=name)

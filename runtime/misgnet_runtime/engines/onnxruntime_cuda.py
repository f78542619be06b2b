"""Runs the float ONNX graph on a GPU by ONNX Runtime's CUDA provider, for GPUs without a TensorRT plan."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnxruntime

from misgnet_runtime.engines.base import Arrays
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.engines.tensorrt.logger import one_line
from misgnet_runtime.errors import InputError, UnavailableError

_CUDA = "CUDAExecutionProvider"
_OPTIONS = {
    "device_id": "0",
    "use_tf32": "0",  # TF32 has 10 bits of mantissa, and would differ from the float32 that was evaluated
    "cudnn_conv_algo_search": "HEURISTIC",  # the default picks by timing, so two runs may differ
}


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """One ONNX graph in an onnxruntime session on CUDA device 0, in the graph's own types."""

    device = "CUDA device 0 (ONNX Runtime)"
    _providers = ((_CUDA, _OPTIONS), "CPUExecutionProvider")  # shape computations run on the CPU

    def __init__(
        self, graph: Path | bytes, max_batch: int, execution: ExecutionOptions = DEFAULT_EXECUTION, *, name: str = ""
    ) -> None:
        """Opens a graph; arguments as for :class:`OnnxRuntimeEngine`, threads are used for nodes on the CPU.

        Raises:
            UnavailableError: onnxruntime cannot use a GPU here; on its own it would silently fall back to the CPU.
            InputError: onnxruntime cannot open ``graph``.
        """
        if _CUDA not in onnxruntime.get_available_providers():
            raise UnavailableError(
                f"the installed onnxruntime {onnxruntime.__version__} has no CUDA provider; replace it: "
                "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
                short="onnxruntime without CUDA",
            )
        load_messages = _load_libraries()
        try:
            super().__init__(graph, max_batch, execution, name=name)
        except InputError as error:
            OnnxRuntimeEngine(graph, max_batch, name=name).close()  # raises if the graph itself is the problem
            raise UnavailableError(
                f"onnxruntime cannot use the GPU: {one_line(str(error))}", short="onnxruntime cannot use a GPU"
            ) from error
        if (found := self._session.get_providers()[0]) != _CUDA:
            self.close()
            raise UnavailableError(
                f"onnxruntime was asked to use a GPU but selected {found}; install the driver, CUDA and cuDNN in the "
                f"versions that it was built for{': ' if load_messages else ''}{load_messages}",
                short="onnxruntime cannot use a GPU",
            )

    def _infer(self, context: None, arrays: Arrays, batch: int) -> Arrays:
        try:
            return super()._infer(context, arrays, batch)
        except Exception as error:  # onnxruntime's errors have no common base class below Exception
            raise UnavailableError(f"onnxruntime failed on {self.device}: {one_line(str(error))}") from error


def _load_libraries() -> str:
    """Loads the CUDA libraries that pip installed; returns onnxruntime's messages about missing ones, or ""."""
    load: Any = getattr(onnxruntime, "preload_dlls", None)  # available from 1.21 on
    with redirect_stdout(io.StringIO()) as printed:
        if load is not None:
            load()
    return one_line(printed.getvalue())

"""ONNX Runtime on a GPU, by its CUDA provider: the float graph, where there is no plan for the GPU."""

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
    "use_tf32": "0",  # else float32 is computed with 10 bits of mantissa, and is not what was judged
    "cudnn_conv_algo_search": "HEURISTIC",  # the default takes the fastest of a try, so no two runs need agree
}


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """One ONNX graph in an onnxruntime session on CUDA device 0, in the graph's own types."""

    device = "CUDA device 0 (ONNX Runtime)"
    _providers = ((_CUDA, _OPTIONS), "CPUExecutionProvider")  # the CPU for what works on shapes

    def __init__(
        self, graph: Path | bytes, max_batch: int, execution: ExecutionOptions = DEFAULT_EXECUTION, *, name: str = ""
    ) -> None:
        """``execution``: its threads are for what stays on the CPU.

        Raises UnavailableError where onnxruntime cannot compute on a GPU here: it would take the CPU and say nothing.
        InputError where it cannot open ``graph``.
        """
        if _CUDA not in onnxruntime.get_available_providers():
            raise UnavailableError(
                f"the installed onnxruntime {onnxruntime.__version__} has no CUDA provider; install the one that has "
                "in its place: pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        said = _load_libraries()
        try:
            super().__init__(graph, max_batch, execution, name=name)
        except InputError as error:
            OnnxRuntimeEngine(graph, max_batch, name=name).close()  # raises where it is the graph
            raise UnavailableError(f"onnxruntime computes nothing on a GPU here: {one_line(str(error))}") from error
        if (found := self._session.get_providers()[0]) != _CUDA:
            self.close()
            raise UnavailableError(
                f"onnxruntime was asked to compute on a GPU and takes {found}; see that a driver, CUDA and cuDNN of "
                f"the versions that it was built for are installed{': ' if said else ''}{said}"
            )

    def _infer(self, context: None, arrays: Arrays, batch: int) -> Arrays:
        try:
            return super()._infer(context, arrays, batch)
        except Exception as error:  # onnxruntime's errors have no common base below Exception
            raise UnavailableError(f"onnxruntime failed on {self.device}: {one_line(str(error))}") from error


def _load_libraries() -> str:
    """Let onnxruntime find the CUDA libraries that pip installed; returns what it says, if it misses one."""
    load: Any = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    with redirect_stdout(io.StringIO()) as said:
        if load is not None:
            load()
    return one_line(said.getvalue())

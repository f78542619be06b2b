"""Runs ONNX graphs in ONNX Runtime on the CPU; this engine works on every machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.errors import InputError
from misgnet_runtime.machine import usable_cores

# This optimizer quantizes the float biases of Q/DQ convolutions again, with scales that are too coarse in float16: the
# output of the TensorRT graph then has 3 to 4 times the error (measured on 1.32).
DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}  # all other types have NumPy's names

if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":  # needed if onnxruntime was imported before this package
    onnxruntime.disable_telemetry_events()


class OnnxRuntimeEngine(Engine):
    """One ONNX graph in an onnxruntime session on the CPU."""

    device = "CPU"
    _providers: Sequence[Any] = ("CPUExecutionProvider",)

    def __init__(
        self,
        graph: Path | bytes,
        max_batch: int,
        execution: ExecutionOptions = DEFAULT_EXECUTION,
        *,
        name: str = "",
    ) -> None:
        """Opens a graph.

        Args:
            graph: A file, or the graph's bytes.
            max_batch: Largest number of tiles per call.
            execution: Threads (default: all usable cores) and streams (default: 1).
            name: Name of a graph given as bytes, for messages.

        Raises:
            InputError: onnxruntime cannot open ``graph``.
        """
        super().__init__((None,) * (execution.streams or 1))  # a session accepts concurrent calls
        name = str(graph) if isinstance(graph, Path) else name or "the graph in memory"
        source = os.fspath(graph) if isinstance(graph, Path) else graph
        try:
            self._session = onnxruntime.InferenceSession(
                source, session_options(execution), providers=self._providers,
                disabled_optimizers=DISABLED_OPTIMIZERS, enable_fallback=False,
            )  # fmt: skip
            self._session.disable_fallback()  # for failing batches; enable_fallback=False covers only opening
        except Exception as error:  # onnxruntime's errors have no common base class below Exception
            raise InputError(f"onnxruntime cannot open {name}: {error}") from error
        self.max_batch = max_batch
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())

    def _infer(self, context: None, arrays: Arrays, batch: int) -> Arrays:  # noqa: ARG002
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, arrays), strict=True))

    def _release(self) -> None:
        self._session = None


def session_options(execution: ExecutionOptions = DEFAULT_EXECUTION) -> onnxruntime.SessionOptions:
    """Returns the session options for ``execution`` (default: all usable cores, one stream)."""
    options = onnxruntime.SessionOptions()
    # The calling thread of each stream computes, too; the session adds one thread fewer than this for all streams.
    options.intra_op_num_threads = max(1, (execution.threads or usable_cores()) - (execution.streams or 1) + 1)
    # Spinning threads and a kept memory arena measured as fast as, or faster than, sleeping threads and freed memory.
    # Denormals are not flushed to zero: the first session that does so changes its thread for good (observed on 1.32).
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.enable_cpu_mem_arena = True
    options.log_severity_level = 3
    return options


def _spec(node: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else -1 for d in node.shape)
    dtype = _DTYPES.get(node.type, node.type.removeprefix("tensor(").removesuffix(")"))
    return TensorSpec(node.name, dtype, shape)

"""OpenVINO on the CPU: Q/DQ graphs in INT8, or the float graph in BF16.

Compiled for one pair: with a batch that is dynamic OpenVINO 2026.4 keeps the transposes and reorderings beside
convolutions that it drops where all sizes are known (1.4 to 1.6 times the time). A CPU gains nothing from a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.engines.tensorrt.logger import one_line
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.machine import usable_cores

_BF16 = "BF16"  # as OpenVINO names it among a device's capabilities


def load_openvino() -> Any:
    """The module ``openvino``; UnavailableError with the install line where it is missing.

    Imported here first, it reports nothing to its maker: see :func:`_without_telemetry`.
    """
    try:
        with _without_telemetry():
            import openvino
    except (ImportError, OSError) as error:  # OSError: the wheel is there, one of its libraries is not
        raise UnavailableError(
            f"OpenVINO was asked for, but importing openvino failed: {error}; "
            "install it with: pip install 'misgnet-export[openvino]'"
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """As if the package were not installed by which OpenVINO tells that it was imported; it has a stand-in for that."""
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        yield
    finally:
        del sys.modules[name]


class OpenVinoEngine(Engine):
    """One ONNX graph compiled by OpenVINO for the CPU."""

    def __init__(
        self,
        graph: Path | bytes,
        max_batch: int,
        execution: ExecutionOptions = DEFAULT_EXECUTION,
        *,
        precision: str = "float32",
        name: str = "the graph in memory",
    ) -> None:
        """``precision``: of the manifest's entry; ``execution``: by default all usable cores, in one stream.

        ``name``: of a graph in memory, for messages.

        Raises UnavailableError where OpenVINO is missing or would not compute in ``precision`` here, and InputError
        where it cannot open ``graph``.
        """
        openvino = load_openvino()
        core = openvino.Core()
        wanted = "bf16" if "bf16" in precision else "f32"  # of an INT8 graph the remainder
        if wanted == "bf16" and _BF16 not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # It would compute in float32, or emulate: slower, and other numbers than those that were judged.
            raise UnavailableError("OpenVINO does not compute in BF16 on this processor; take another engine")
        try:
            options = compile_options(wanted, execution)
            model = core.read_model(graph)
            self.inputs = tuple(map(_spec, model.inputs))
            self.outputs = tuple(map(_spec, model.outputs))
            fix_batch(openvino, model)
            compiled = core.compile_model(model, "CPU", options)
        except Exception as error:  # OpenVINO raises RuntimeError, its bindings TypeError and others
            raise InputError(
                f"OpenVINO cannot open {graph if isinstance(graph, Path) else name}: {one_line(str(error))}"
            ) from error
        _check_type(compiled, wanted)
        self._compiled: Any = compiled
        super().__init__([compiled.create_infer_request() for _ in range(execution.streams or 1)])
        self.max_batch = max_batch
        self.device = "CPU (OpenVINO)"

    def _infer(self, context: Any, arrays: Arrays, batch: int) -> Arrays:
        pairs = [self._infer_pair(context, {name: a[i : i + 1] for name, a in arrays.items()}) for i in range(batch)]
        return {spec.name: np.concatenate([pair[spec.name] for pair in pairs]) for spec in self.outputs}

    def _infer_pair(self, context: Any, arrays: Arrays) -> Arrays:
        found = context.infer(arrays, share_inputs=True, share_outputs=False)
        return {spec.name: found[spec.name] for spec in self.outputs}

    def _release(self) -> None:
        self._compiled = None


def compile_options(precision: str, execution: ExecutionOptions = DEFAULT_EXECUTION) -> dict[str, Any]:
    """Each stream for the least latency, which leaves the second threads of cores out.

    Threads are not pinned: a pinned one may share its core with another process, and was not faster where it was
    measured. ``precision``: as OpenVINO names it, of an INT8 graph that of the remainder.
    """
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": execution.threads or usable_cores(),
        "NUM_STREAMS": execution.streams or 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }


def _check_type(compiled: Any, wanted: str) -> None:
    """A type that the processor lacks is no error to OpenVINO: it takes another one, and tells when asked."""
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != wanted:
        raise UnavailableError(f"OpenVINO was asked to compute in {wanted} and takes {found} on this processor")


def fix_batch(openvino: Any, model: Any) -> None:
    """Give a model that OpenVINO has read a batch of one where its batch is dynamic."""
    shapes = {port: openvino.PartialShape(port.partial_shape) for port in model.inputs}
    for shape in shapes.values():
        if shape[0].is_dynamic:
            shape[0] = 1
    model.reshape(shapes)


def _spec(port: Any) -> TensorSpec:
    shape = tuple(-1 if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(port.any_name, port.element_type.to_dtype().name, shape)

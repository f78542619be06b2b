"""Runs graphs in OpenVINO on the CPU: Q/DQ graphs in INT8, or the float graph in BF16.

Graphs are compiled for a batch of 1. With a dynamic batch OpenVINO 2026.4 keeps transposes and reorderings beside
convolutions, which it removes when all sizes are known (1.4 to 1.6 times the time). A CPU gains nothing from a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.engines.openvino_cache import CompiledGraph, CompiledKey, keep, kept
from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.engines.tensorrt.logger import one_line
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.log import current
from misgnet_runtime.machine import usable_cores

_BF16 = "BF16"  # OpenVINO's name of this device capability


def load_openvino() -> Any:
    """Imports ``openvino`` without its telemetry; raises UnavailableError with the install command if it is missing."""
    try:
        with _without_telemetry():
            import openvino
    except (ImportError, OSError) as error:  # OSError: the wheel is installed, one of its libraries is not
        raise UnavailableError(
            f"OpenVINO was requested, but importing openvino failed: {error}; "
            "install it with: pip install 'misgnet-export[openvino]'",
            short="OpenVINO is not installed",
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hides the package that reports the import of OpenVINO; OpenVINO then uses its own empty replacement."""
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # makes Python raise ImportError for this name
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
        cached: bool = False,
    ) -> None:
        """Compiles a graph.

        Args:
            graph: A file, or the graph's bytes.
            max_batch: Largest number of tiles per call.
            execution: Threads (default: all usable cores) and streams (default: 1).
            precision: Precision stated in the manifest's entry.
            name: Name of a graph given as bytes, for messages.
            cached: Whether the compiled graph is kept in, and taken from, the user's cache, if ``graph`` is bytes.

        Raises:
            UnavailableError: OpenVINO is missing, or would not compute in ``precision`` on this processor.
            InputError: OpenVINO cannot open ``graph``.
        """
        openvino = load_openvino()
        core = openvino.Core()
        wanted = "bf16" if "bf16" in precision else "f32"  # for an INT8 graph: of the layers that are not quantized
        if wanted == "bf16" and not computes_bf16(core):
            raise UnavailableError(
                "OpenVINO does not compute in BF16 on this processor; choose another engine",
                short="no BF16 on this processor",
            )
        try:
            compiled, self.inputs, self.outputs = _open(
                openvino, core, graph, compile_options(wanted, execution), cached
            )
        except Exception as error:  # OpenVINO raises RuntimeError, its bindings TypeError and others
            raise InputError(
                f"OpenVINO cannot open {graph if isinstance(graph, Path) else name}: {one_line(str(error))}"
            ) from error
        # OpenVINO fills a table of types when it is used first. Threads whose first calls do that at once wait for each
        # other forever: one has the table's lock, another the interpreter's.
        openvino.Type.u8.to_dtype()
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


_Opened = tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]  # compiled model, inputs and outputs of the graph


def _open(openvino: Any, core: Any, graph: Path | bytes, options: dict[str, Any], cached: bool) -> _Opened:
    """Imports the graph that was compiled before, or compiles it and keeps it; see :mod:`.openvino_cache`."""
    if isinstance(graph, Path) or not cached:
        return _compile(openvino, core, graph, options)
    key = CompiledKey.of(graph, openvino.__version__, options)
    if found := kept(key):
        try:
            return core.import_model(found.exported, "CPU", options), found.inputs, found.outputs
        except Exception as error:
            current().warning(f"OpenVINO cannot import a compiled graph, which is replaced: {one_line(str(error))}")
    compiled, inputs, outputs = _compile(openvino, core, graph, options)
    exported = BytesIO()
    compiled.export_model(exported)
    keep(key, CompiledGraph(inputs, outputs, exported.getvalue()))
    return compiled, inputs, outputs


def _compile(openvino: Any, core: Any, graph: Path | bytes, options: dict[str, Any]) -> _Opened:
    model = core.read_model(graph)
    inputs, outputs = (tuple(map(_spec, ports)) for ports in (model.inputs, model.outputs))
    fix_batch(openvino, model)
    return core.compile_model(model, "CPU", options), inputs, outputs


def computes_bf16(core: Any) -> bool:
    """Returns whether an ``openvino.Core`` computes in BF16 on this processor.

    Otherwise it would compute in float32 or emulate BF16: slower, and with other numbers than those evaluated.
    """
    return _BF16 in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_options(precision: str, execution: ExecutionOptions = DEFAULT_EXECUTION) -> dict[str, Any]:
    """Returns OpenVINO's options: optimised for latency per stream, which does not use hyper-threads.

    Threads are not pinned: a pinned thread may share its core with another process, and pinning did not measure faster.
    ``precision``: OpenVINO's name; for an INT8 graph that of the layers that are not quantized.
    """
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": execution.threads or usable_cores(),
        "NUM_STREAMS": execution.streams or 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }


def _check_type(compiled: Any, wanted: str) -> None:
    """Raises UnavailableError if OpenVINO replaced the precision ``wanted``, which it does without an error."""
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != wanted:
        raise UnavailableError(
            f"OpenVINO was asked to compute in {wanted} but uses {found} on this processor",
            short=f"no {wanted} on this processor",
        )


def fix_batch(openvino: Any, model: Any) -> None:
    """Sets dynamic batches of a loaded model to 1."""
    shapes = {port: openvino.PartialShape(port.partial_shape) for port in model.inputs}
    for shape in shapes.values():
        if shape[0].is_dynamic:
            shape[0] = 1
    model.reshape(shapes)


def _spec(port: Any) -> TensorSpec:
    shape = tuple(-1 if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(port.any_name, port.element_type.to_dtype().name, shape)

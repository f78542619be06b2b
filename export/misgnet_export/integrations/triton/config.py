"""Builds Triton's configuration of an engine, ``config.pbtxt``, with Triton's own protobuf schema.

Pre- and postprocessing are part of the graphs, so a model is one engine, not an ensemble. The parameters of each
backend are documented in its README (triton-inference-server: onnxruntime_backend, openvino_backend, tensorrt_backend).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misgnet_runtime.bundle import EngineEntry, Interface, TensorEntry
from misgnet_runtime.engines import MOST_STREAMS, is_on_cpu, streams_for_scenes
from misgnet_runtime.errors import UnavailableError, UsageError

_TYPES = {"uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "float32": "TYPE_FP32"}


@dataclass(frozen=True)
class Backend:
    """A Triton backend that can run a kind of engine."""

    backend: str
    file: str  # file name that the backend expects
    note: str = ""  # difference from the evaluated engine, shown to the user


# By kind of engine. A plan of TensorRT for RTX has no entry: no backend of Triton can open one.
BACKENDS: Mapping[str, Backend] = {
    "tensorrt": Backend(
        "tensorrt", "model.plan", "the server needs the TensorRT version and the GPU that the plan was compiled for"
    ),
    "onnxruntime": Backend("onnxruntime", "model.onnx"),
    "onnxruntime-cuda": Backend("onnxruntime", "model.onnx", "the backend may compute in TF32, the engine does not"),
    "openvino": Backend(
        "openvino", "model.onnx",
        "on a processor with BF16 the backend computes the operators that are not INT8 in BF16, the engine in float32",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Serving:
    """Options of a server's models."""

    instances: int | None = None  # of each engine; None: 2 on a GPU, 1 on a CPU
    queue_delay: int = 2000  # longest time in µs that a request waits for others

    def check(self) -> None:
        """Raises UsageError for an invalid number."""
        for option, number, least in (("--instances", self.instances, 1), ("--queue-delay", self.queue_delay, 0)):
            if number is not None and number < least:
                raise UsageError(f"{option} is {number}; it must be {least} or more")


def load_schema() -> Any:
    """Imports Triton's ``model_config_pb2``. Raises UnavailableError with the install command if it is missing."""
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise UnavailableError(
            "`misgnet-export triton` requires tritonclient: pip install 'misgnet-export[triton]'"
        ) from error
    return model_config_pb2


def preferred_batches(entry: EngineEntry, speeds: Mapping[int, float], largest: int) -> list[int]:
    """Returns batch sizes that requests should wait for: the fastest measured one, unless that is 1.

    ``speeds``: pairs/s by batch, as the build measured them. An unmeasured plan prefers the batches of its profile.
    """
    found = {batch: speed for batch, speed in speeds.items() if batch <= largest}
    if len(found) > 1:
        best = max(found, key=lambda batch: (found[batch], -batch))
        return [best] if best > 1 else []
    return [] if is_on_cpu(entry) else sorted({min(batch, largest) for batch in entry.batches[1:]} - {1})


def model_config(
    name: str,
    entry: EngineEntry,
    interface: Interface,
    serving: Serving,
    *,
    speeds: Mapping[int, float],
    parameters: Mapping[str, str],
) -> Any:
    """Returns the ``ModelConfig`` of an engine; clients can query ``parameters`` from the server."""
    schema, backend = load_schema(), BACKENDS[entry.kind]
    # OpenVINO's backend supports fixed batches or a fixed shape; with the latter, clients send whole batches. A graph
    # of single pairs states its batch, which Triton refuses in a model that it forms batches for.
    single = interface.max_batch == 1
    batched = backend.backend != "openvino" and not single
    largest = _largest(entry, interface) if batched else 0
    config = schema.ModelConfig(
        name=name, backend=backend.backend, default_model_filename=backend.file, max_batch_size=largest
    )
    for target, tensors in ((config.input, interface.inputs()), (config.output, interface.outputs())):
        for tensor in tensors:
            first = [] if batched else [1] if single else tensor.shape[:1]
            target.add(name=tensor.name, data_type=_type(schema, tensor), dims=[*first, *tensor.shape[1:]])
    _add_instances(schema, config, entry, serving)
    preferred = preferred_batches(entry, speeds, largest)
    if batched:
        config.dynamic_batching.preferred_batch_size.extend(preferred)
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay if preferred else 0
    for batch in (1, *preferred):
        _add_warm_up(schema, config, interface.inputs(), batch, batched)
    for key, value in {**_backend_parameters(entry, serving), **parameters}.items():
        config.parameters[key].string_value = value
    return config


def _largest(entry: EngineEntry, interface: Interface) -> int:
    return min(interface.max_batch, entry.batches[2]) if entry.kind == "tensorrt" else interface.max_batch


def _type(schema: Any, tensor: TensorEntry) -> int:
    return int(schema.DataType.Value(_TYPES[tensor.dtype]))


def _add_instances(schema: Any, config: Any, entry: EngineEntry, serving: Serving) -> None:
    """Adds two instances on a GPU, so that one copies while the other computes, and one with all cores on a CPU."""
    kind = schema.ModelInstanceGroup.KIND_CPU if is_on_cpu(entry) else schema.ModelInstanceGroup.KIND_GPU
    count = serving.instances or (1 if is_on_cpu(entry) else streams_for_scenes(entry))
    config.instance_group.add(kind=kind, count=count)


def _add_warm_up(schema: Any, config: Any, inputs: Sequence[TensorEntry], batch: int, batched: bool) -> None:
    """Adds a warm-up request of random data: the first request of a batch size is slow."""
    sample = config.model_warmup.add(name=f"batch of {batch}", batch_size=batch if batched else 1)
    for tensor in inputs:
        dims = tensor.shape[1:] if batched else [batch, *tensor.shape[1:]]
        sample.inputs[tensor.name].CopyFrom(
            schema.ModelWarmup.Input(data_type=_type(schema, tensor), dims=dims, random_data=True)
        )


def _backend_parameters(entry: EngineEntry, serving: Serving) -> dict[str, str]:
    if entry.kind != "openvino":
        return {}
    streams = {"NUM_STREAMS": str(min(MOST_STREAMS, serving.instances or 1)), "PERFORMANCE_HINT": "LATENCY"}
    return {**streams, "HINT_BF16": "YES"} if "bf16" in entry.precision else streams

"""Runs plans of TensorRT or TensorRT for RTX on CUDA device 0."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.engines.cuda import CudaDriver, Device, first_device, open_driver
from misgnet_runtime.engines.tensorrt.bindings import load_vendor, rules, vendor_version
from misgnet_runtime.engines.tensorrt.compatibility import PlanCompatibility, check_plan_fits, this_machine
from misgnet_runtime.engines.tensorrt.logger import VendorLog, make_logger
from misgnet_runtime.engines.tensorrt.streams import ExecutionContexts, StreamContext, Tensors, item_bytes
from misgnet_runtime.errors import InputError, UnavailableError

# NumPy names by TensorRT's enum names; BF16, FP8 and the 4-bit types have no NumPy counterpart.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def open_plan(
    data: bytes, vendor: str, driver: CudaDriver | None = None, *, compatibility: PlanCompatibility | None = None,
    streams: int = 1, rebuild: str | None = None,
) -> TensorRTEngine:  # fmt: skip
    """Opens a plan on CUDA device 0.

    Deserialising runs native code: verify the digest or signature of ``data`` first.

    Args:
        data: The plan's bytes.
        vendor: "rtx" or "tensorrt".
        driver: CUDA (default: opened here).
        compatibility: Compatibility information of the plan, checked before anything is deserialised.
        streams: Batches that run at once; each has its own buffers and working memory on the device.
        rebuild: Command that rebuilds the plan, for the message.

    Raises:
        UnavailableError: TensorRT, a CUDA driver or a device is missing, or the plan is not compatible with them.
        InputError: The plan has tensors that NumPy cannot hold.
    """
    module = load_vendor(vendor)
    driver = driver or open_driver()
    device = first_device(driver)
    if compatibility is not None:
        check_plan_fits(compatibility, this_machine(vendor, module, driver, device), streams, rebuild)
    with driver.current():
        return TensorRTEngine(data, module, vendor, driver, device, streams=streams)


class TensorRTEngine(Engine):
    """One plan, and a stream context for each batch that may run at once; see :func:`open_plan`.

    ``stream_bytes`` is the device memory of each stream, besides the plan itself.
    """

    def __init__(
        self, data: bytes, module: Any, vendor: str, driver: CudaDriver, device: Device, *, streams: int
    ) -> None:
        self.device = f"{device.name} ({device.compute_capability})"
        self._driver = driver
        self._log = VendorLog()
        self._logger = make_logger(module, self._log)
        self._runtime = module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            title = f"{rules(vendor).title} {vendor_version(module)}"
            reason = self._log.last_errors()
            raise UnavailableError(f"{title} cannot open the plan on {self.device}: {reason}")
        self.inputs, self.outputs = _tensor_specs(self._engine, module)
        self.min_batch, self.max_batch = _batch_range(self._engine, self.inputs)
        contexts = ExecutionContexts(module, self._engine, self._log)
        self.stream_bytes = contexts.memory_bytes + (2 if device.integrated else 1) * self._buffer_bytes()
        self._stream_contexts = self._take_contexts(contexts, driver, streams)
        super().__init__(self._stream_contexts)

    def _take_contexts(self, contexts: ExecutionContexts, driver: CudaDriver, streams: int) -> list[StreamContext]:
        """Allocates the device memory of all streams; frees it again if a later allocation fails."""
        tensors = Tensors(self.inputs, self.outputs, self.max_batch)
        with ExitStack() as taken:
            made = [StreamContext(contexts, tensors, driver, taken) for _ in range(streams)]
            self._taken = taken.pop_all()
        return made

    def _buffer_bytes(self) -> int:
        """Returns the bytes of a stream's buffers: as many on the host, which an integrated GPU shares."""
        return self.max_batch * sum(item_bytes(spec) for spec in (*self.inputs, *self.outputs))

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(context.note for context in self._stream_contexts if context.note))

    def _infer(self, context: StreamContext, arrays: Arrays, batch: int) -> Arrays:
        if batch < self.min_batch:
            raise InputError(f"a batch of {batch} is too small for this plan, which starts at {self.min_batch}")
        with self._driver.current():
            return context.infer(arrays, batch)

    def _release(self) -> None:
        """Frees contexts before the memory that they use and before the engine, and the engine before its runtime."""
        with self._driver.current():
            self._stream_contexts.clear()
            self._taken.close()
            self._engine = self._runtime = None


def _tensor_specs(engine: Any, module: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs and outputs of a deserialised engine, in its order."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(_tensor_spec(engine, name))
    return tuple(inputs), tuple(outputs)


def _tensor_spec(engine: Any, name: str) -> TensorSpec:
    shape = tuple(int(size) for size in engine.get_tensor_shape(name))
    dtype = DTYPES.get(engine.get_tensor_dtype(name).name)
    if dtype is None:
        found = engine.get_tensor_dtype(name).name
        raise InputError(f"plan tensor '{name}' is {found}; cast it in the graph to one of {', '.join(DTYPES)}")
    if not shape or shape[0] != -1 or -1 in shape[1:]:
        raise InputError(
            f"plan tensor '{name}' has shape {shape}; only its first axis, the batch, must be dynamic (-1)"
        )
    return TensorSpec(name, dtype, shape)


def _batch_range(engine: Any, inputs: tuple[TensorSpec, ...]) -> tuple[int, int]:
    """Returns the smallest and largest batch that the first optimization profile of every input accepts."""
    profiles = [engine.get_tensor_profile_shape(spec.name, 0) for spec in inputs]
    return max(int(low[0]) for low, _, _ in profiles), min(int(high[0]) for _, _, high in profiles)

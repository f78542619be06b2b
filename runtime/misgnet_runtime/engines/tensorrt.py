"""The engine over a TensorRT plan, of TensorRT for RTX or of TensorRT itself, on CUDA device 0."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.cuda import Bytes, CudaDriver, Device, first_device, open_driver
from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError
from misgnet_runtime.plans.facts import MachineFacts, PlanFacts, check_plan_fits, this_platform
from misgnet_runtime.plans.log import VendorLog, make_logger
from misgnet_runtime.plans.vendor import load_vendor, rules, vendor_version

# By the vendor's enum names; BF16, FP8 and the 4-bit types have no NumPy counterpart.
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
    data: bytes, vendor: str, driver: CudaDriver | None = None, *, facts: PlanFacts | None = None
) -> TensorRTEngine:
    """Open the bytes of a plan with the vendor module "rtx" or "tensorrt" on CUDA device 0.

    Deserialising runs native code: verify the bytes' digest or signature first. With ``facts``, what the
    plan was built for, a misfit is told before anything is deserialised.

    Raises UnavailableError without the vendor, a CUDA driver or a device, or where the plan does not fit
    them; InputError for tensors that NumPy cannot hold.
    """
    module = load_vendor(vendor)
    driver = driver or open_driver()
    device = first_device(driver)
    if facts is not None:
        machine = MachineFacts(vendor, vendor_version(module), device.compute_capability, this_platform())
        check_plan_fits(facts, machine)
    return TensorRTEngine(data, module, vendor, driver, device)


@dataclass(frozen=True)
class _Buffer:
    """A tensor's memory for the largest batch: on the device, and pinned on the host."""

    spec: TensorSpec
    address: int
    host: Bytes

    def view(self, batch: int) -> NDArray[Any]:
        """The host's first ``batch`` items, in the tensor's dtype and shape."""
        flat = self.part(batch).view(self.spec.dtype)
        return flat.reshape(batch, *self.spec.shape[1:])

    def part(self, batch: int) -> Bytes:
        return self.host[: _item_bytes(self.spec) * batch]


class TensorRTEngine(Engine):
    """One plan, one execution context, one stream; see :func:`open_plan`."""

    def __init__(self, data: bytes, module: Any, vendor: str, driver: CudaDriver, device: Device) -> None:
        super().__init__()
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
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise UnavailableError(f"the plan cannot run on {self.device}: {self._log.last_errors()}")
        self.inputs, self.outputs = _tensor_specs(self._engine, module)
        self.min_batch, self.max_batch = _batch_range(self._engine, self.inputs)
        self._allocate()

    def _allocate(self) -> None:
        """Take all device memory at once; what was taken is given back where a later part fails."""
        driver = self._driver
        with ExitStack() as taken:
            self._stream = driver.create_stream()
            taken.callback(driver.destroy_stream, self._stream)
            self._buffers = {spec.name: self._buffer(spec, taken) for spec in (*self.inputs, *self.outputs)}
            self._taken = taken.pop_all()

    def _buffer(self, spec: TensorSpec, taken: ExitStack) -> _Buffer:
        size = _item_bytes(spec) * self.max_batch
        address = self._driver.allocate(size)
        taken.callback(self._driver.free, address)
        host = self._driver.allocate_host(size)
        taken.callback(self._driver.free_host, host)
        return _Buffer(spec, address, host)

    def _infer(self, lane: Any, arrays: Arrays, batch: int) -> Arrays:  # noqa: ARG002
        if batch < self.min_batch:
            raise InputError(f"a batch of {batch} is too small for this plan, which starts at {self.min_batch}")
        for spec in self.inputs:
            shape = (batch, *spec.shape[1:])
            self._accept(self._context.set_input_shape(spec.name, shape), f"shape {shape}", spec.name)
        for name, buffer in self._buffers.items():
            self._accept(self._context.set_tensor_address(name, buffer.address), "address", name)
        for spec in self.inputs:
            self._send(self._buffers[spec.name], arrays[spec.name])
        self._accept(self._context.execute_async_v3(self._stream), "execution", "batch")
        for spec in self.outputs:
            buffer = self._buffers[spec.name]
            self._driver.copy_to_host(buffer.part(batch), buffer.address, self._stream)
        self._driver.synchronize(self._stream)
        # The pinned memory is the engine's and is overwritten by the next batch: hand out copies.
        return {spec.name: self._buffers[spec.name].view(batch).copy() for spec in self.outputs}

    def _send(self, buffer: _Buffer, array: NDArray[Any]) -> None:
        batch = array.shape[0]
        np.copyto(buffer.view(batch), array, casting="equiv")
        self._driver.copy_to_device(buffer.address, buffer.part(batch), self._stream)

    def _accept(self, accepted: bool, what: str, name: str) -> None:
        if not accepted:
            raise MisgnetError(f"TensorRT refused the {what} of '{name}': {self._log.last_errors()}")

    def _release(self) -> None:
        """Context before engine before runtime, then the device's memory."""
        self._context = self._engine = self._runtime = None
        self._buffers = {}
        self._taken.close()


def _tensor_specs(engine: Any, module: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and the outputs of a deserialised engine, in its order."""
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
            f"plan tensor '{name}' has shape {shape}; its first axis, the batch, must be dynamic (-1), and no other"
        )
    return TensorSpec(name, dtype, shape)


def _batch_range(engine: Any, inputs: tuple[TensorSpec, ...]) -> tuple[int, int]:
    """The smallest and largest batch that every input's first optimization profile takes."""
    profiles = [engine.get_tensor_profile_shape(spec.name, 0) for spec in inputs]
    return max(int(low[0]) for low, _, _ in profiles), min(int(high[0]) for _, _, high in profiles)


def _item_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize

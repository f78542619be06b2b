"""Runs plans of TensorRT or TensorRT for RTX on CUDA device 0."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.engines.cuda import CudaDriver, Device, first_device, open_driver
from misgnet_runtime.engines.tensorrt.bindings import load_vendor, rules, vendor_version
from misgnet_runtime.engines.tensorrt.compatibility import (
    PlanCompatibility,
    check_memory,
    check_plan_fits,
    free_bytes,
    this_machine,
)
from misgnet_runtime.engines.tensorrt.kernel_cache import KernelCache
from misgnet_runtime.engines.tensorrt.logger import VendorLog, make_logger
from misgnet_runtime.engines.tensorrt.profiles import (
    Profile,
    dropped_note,
    profiles_for,
    profiles_in_memory,
    read_profiles,
)
from misgnet_runtime.engines.tensorrt.streams import ExecutionContexts, StreamContext, Tensors, context_bytes
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
    streams: int = 1, rebuild: str | None = None, max_batch: int | None = None, keep_kernels: bool = False,
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
        max_batch: Largest batch that the engine accepts (default: the plan's largest); larger ones than a profile of
            the plan accepts are split.
        keep_kernels: Whether the kernels that TensorRT for RTX compiles are kept for later processes.

    Raises:
        UnavailableError: TensorRT, a CUDA driver or a device is missing, the plan is not compatible with them, or not
            even its smallest profile fits into the free memory.
        InputError: The plan has tensors that NumPy cannot hold.
    """
    module = load_vendor(vendor)
    driver = driver or open_driver()
    device = first_device(driver)
    if compatibility is not None:
        check_plan_fits(compatibility, this_machine(vendor, module, driver, device), streams, rebuild)
    kernels = KernelCache(data, vendor_version(module), device) if keep_kernels and vendor == "rtx" else None
    with driver.current():
        return TensorRTEngine(
            data, module, vendor, driver, device, streams=streams, max_batch=max_batch, kernels=kernels
        )


class TensorRTEngine(Engine):
    """One plan, and a stream context for each batch that may run at once; see :func:`open_plan`.

    ``profiles`` are the optimization profiles that are used: those that batches up to ``max_batch`` need and the free
    memory holds. ``stream_bytes`` is the device memory that a stream needs at least, besides the plan itself: with the
    smallest profile alone.
    """

    def __init__(
        self, data: bytes, module: Any, vendor: str, driver: CudaDriver, device: Device, *, streams: int,
        max_batch: int | None = None, kernels: KernelCache | None = None,
    ) -> None:  # fmt: skip
        self.device = f"{device.name} ({device.compute_capability})"
        self._driver, self._gpu, self._kernels = driver, device, kernels
        self._log = VendorLog()
        self._logger = make_logger(module, self._log)
        # As before Builder(): an object of TensorRT that a failed run's traceback left in a reference cycle must not be
        # freed by the logger's allocations, while TensorRT holds the lock that freeing it needs.
        gc.collect()
        self._runtime = module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            title = f"{rules(vendor).title} {vendor_version(module)}"
            reason = self._log.last_errors()
            raise UnavailableError(f"{title} cannot open the plan on {self.device}: {reason}")
        profiles = read_profiles(self._engine, _input_names(self._engine, module))
        self.inputs, self.outputs = _tensor_specs(self._engine, module, profiles)
        self.max_batch = max_batch or profiles[-1].largest
        self._notes: tuple[str, ...] = ()
        tensors = self._use_profiles(Tensors(self.inputs, self.outputs, profiles), streams)
        self.profiles = tensors.profiles
        contexts = ExecutionContexts(module, self._engine, self._log, self.profiles, kernels)
        self._stream_contexts = self._take_contexts(contexts, tensors, streams)
        super().__init__(self._stream_contexts)

    def _use_profiles(self, tensors: Tensors, streams: int) -> Tensors:
        """Returns the tensors with the profiles that are used; raises UnavailableError if none fits into memory."""

        def needed(profiles: Sequence[Profile]) -> int:
            # An integrated GPU shares its memory with the host, whose buffers are as large.
            buffers = (2 if self._gpu.integrated else 1) * tensors.buffer_bytes(profiles)
            return context_bytes(profiles) + buffers

        self.stream_bytes = needed(tensors.profiles[:1])
        free = free_bytes(self._driver, self._gpu)
        wanted = profiles_for(tensors.profiles, self.max_batch)
        used = profiles_in_memory(wanted, lambda profiles: streams * needed(profiles), free)
        if not used:
            check_memory(streams * self.stream_bytes, free, streams)
        if dropped := wanted[len(used) :]:
            self._notes = (dropped_note(dropped, used, streams, streams * needed(wanted), free),)
        return replace(tensors, profiles=used)

    def _take_contexts(self, contexts: ExecutionContexts, tensors: Tensors, streams: int) -> list[StreamContext]:
        """Allocates the device memory of all streams; frees it again if a later allocation fails."""
        with ExitStack() as taken:
            made = [StreamContext(contexts, tensors, self._driver, taken, alone=streams == 1) for _ in range(streams)]
            self._taken = taken.pop_all()
        return made

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._notes, *(each.note for each in self._stream_contexts if each.note))))

    def _infer(self, context: StreamContext, arrays: Arrays, batch: int) -> Arrays:
        with self._driver.current():
            return context.infer(arrays, batch)

    def _release(self) -> None:
        """Frees contexts before the memory that they use and before the engine, and the engine before its runtime."""
        with self._driver.current():
            if self._kernels is not None:
                self._kernels.save()
            self._stream_contexts.clear()
            self._taken.close()
            self._engine = self._runtime = None


def _is_input(engine: Any, module: Any, name: str) -> bool:
    return bool(engine.get_tensor_mode(name) == module.TensorIOMode.INPUT)


def _input_names(engine: Any, module: Any) -> list[str]:
    names = (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
    return [name for name in names if _is_input(engine, module, name)]


def _tensor_specs(
    engine: Any, module: Any, profiles: Sequence[Profile]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs and outputs of a deserialised engine, in its order."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        (inputs if _is_input(engine, module, name) else outputs).append(_tensor_spec(engine, name, profiles))
    return tuple(inputs), tuple(outputs)


def _tensor_spec(engine: Any, name: str, profiles: Sequence[Profile]) -> TensorSpec:
    shape = tuple(int(size) for size in engine.get_tensor_shape(name))
    dtype = DTYPES.get(engine.get_tensor_dtype(name).name)
    if dtype is None:
        found = engine.get_tensor_dtype(name).name
        raise InputError(f"plan tensor '{name}' is {found}; cast it in the graph to one of {', '.join(DTYPES)}")
    # With a single static profile, TensorRT may state its batch.
    only = {(profile.smallest, profile.largest) for profile in profiles}
    if not shape or -1 in shape[1:] or (shape[0] != -1 and only != {(shape[0], shape[0])}):
        raise InputError(
            f"plan tensor '{name}' has shape {shape}; only its first axis, the batch, must be dynamic (-1)"
        )
    return TensorSpec(name, dtype, (-1, *shape[1:]))

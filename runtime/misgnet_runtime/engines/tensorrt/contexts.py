"""Execution contexts of a TensorRT plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from misgnet_runtime.engines.base import TensorSpec
from misgnet_runtime.engines.tensorrt.bindings import OWN_GRAPHS, has
from misgnet_runtime.engines.tensorrt.logger import VendorLog
from misgnet_runtime.errors import MisgnetError, UnavailableError


class Context:
    """One execution context, for one thread at a time; what TensorRT refuses is a MisgnetError."""

    def __init__(self, context: Any, log: VendorLog) -> None:
        self._context = context
        self._log = log

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Where the tensors lie on the device."""
        for name, address in addresses.items():
            self._accept(self._context.set_tensor_address(name, address), f"address of '{name}'")

    def set_batch(self, inputs: Iterable[TensorSpec], batch: int) -> None:
        for spec in inputs:
            shape = (batch, *spec.shape[1:])
            self._accept(self._context.set_input_shape(spec.name, shape), f"shape {shape} of '{spec.name}'")

    def execute(self, stream: int) -> None:
        """Queue the computing of a batch."""
        self._accept(self._context.execute_async_v3(stream), "execution of a batch")

    def _accept(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise MisgnetError(f"TensorRT refused the {what}: {self._log.last_errors()}")


class Contexts:
    """Makes contexts of one plan, for any thread. They share its weights; the memory that they work in is given.

    TensorRT for RTX captures and replays graphs itself where it is told to: it alone knows when the kernels for a
    shape are ready, which it compiles in the background.
    """

    def __init__(self, module: Any, engine: Any, log: VendorLog) -> None:
        self.replay_themselves = has(module, OWN_GRAPHS)
        self.memory_bytes = max(1, int(engine.device_memory_size_v2))  # of one context
        self._engine = engine
        self._log = log
        self._making = Lock()
        self._how: Any = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.replay_themselves:
            strategy, self._how = self._how, engine.create_runtime_config()
            self._how.set_execution_context_allocation_strategy(strategy)
            self._how.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE

    def make(self, memory: int) -> Context:
        """A context that works in ``memory``; contexts that never run at the same time may share it.

        Raises UnavailableError where TensorRT makes none.
        """
        with self._making:
            context = self._engine.create_execution_context(self._how)
        if context is None:
            raise UnavailableError(f"the plan cannot run here: {self._log.last_errors()}")
        context.set_device_memory(memory, self.memory_bytes)
        return Context(context, self._log)

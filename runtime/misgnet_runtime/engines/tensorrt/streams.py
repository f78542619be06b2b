"""Stream contexts of a TensorRT plan: a stream, buffers and an execution context each, and CUDA graphs to replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.engines.base import Arrays, TensorSpec
from misgnet_runtime.engines.cuda import Bytes, CudaDriver, CudaGraphs
from misgnet_runtime.engines.tensorrt.bindings import OWN_GRAPHS, has
from misgnet_runtime.engines.tensorrt.logger import VendorLog
from misgnet_runtime.errors import MisgnetError, UnavailableError

KEPT = 4  # a scene needs two: for its full batches, and for the rest of each row


@dataclass(frozen=True)
class Tensors:
    """A plan's inputs and outputs, and the largest batch that it takes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int


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
        return self.host[: item_bytes(self.spec) * batch]


class ExecutionContext:
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


class ExecutionContexts:
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

    def make(self, memory: int) -> ExecutionContext:
        """A context that works in ``memory``; contexts that never run at the same time may share it.

        Raises UnavailableError where TensorRT makes none.
        """
        with self._making:
            context = self._engine.create_execution_context(self._how)
        if context is None:
            raise UnavailableError(f"the plan cannot run here: {self._log.last_errors()}")
        context.set_device_memory(memory, self.memory_bytes)
        return ExecutionContext(context, self._log)


class GraphReplay:
    """The graphs of one stream; ``note`` says why there are none, where that is so for good."""

    def __init__(self, graphs: CudaGraphs | None, stream: int, note: str | None = None) -> None:
        self.note = note
        self._graphs = graphs
        self._stream = stream
        self._seen: set[int] = set()
        self._kept: dict[int, tuple[int, ExecutionContext]] = {}

    def launch(self, batch: int) -> bool:
        """Queue the whole batch, if its graph is kept."""
        if self._graphs is None or batch not in self._kept:
            return False
        self._graphs.launch(self._kept[batch][0], self._stream)
        return True

    def wants(self, batch: int) -> bool:
        """Whether a batch that just ran is worth a graph: its size came before, and there is room."""
        again = batch in self._seen
        self._seen.add(batch)
        possible = self._graphs is not None and self.note is None
        return possible and again and batch not in self._kept and len(self._kept) < KEPT

    def keep(self, batch: int, context: ExecutionContext, queue: Callable[[], None]) -> None:
        """Capture ``queue``, which runs a batch in ``context``.

        A graph holds the state of its context, which must have run a batch of this size before (TensorRT does what
        a new shape needs when it first runs) and which nothing else may use afterwards.
        Raises MisgnetError where it cannot be captured.
        """
        assert self._graphs is not None  # it was wanted
        self._kept[batch] = self._graphs.capture(self._stream, queue), context

    def give_up(self, note: str) -> None:
        """Capture nothing more; what is kept stays."""
        self.note = note

    def forget(self) -> None:
        """Destroy all graphs, and let their contexts go."""
        while self._graphs is not None and self._kept:
            _, (graph, _) = self._kept.popitem()
            self._graphs.destroy(graph)


class StreamContext:
    """Runs one batch at a time. Each has all for itself, so that one copies while another computes.

    The first batch of a size is queued call by call. After the second its graph is captured, in a context of its
    own, and from the third on the whole batch is one launch.
    """

    def __init__(self, contexts: ExecutionContexts, tensors: Tensors, driver: CudaDriver, taken: ExitStack) -> None:
        """``taken`` gives back what is taken of the device. Raises UnavailableError where there is too little."""
        self._contexts, self._tensors, self._driver = contexts, tensors, driver
        self._stream = driver.create_stream()
        taken.callback(driver.destroy_stream, self._stream)
        self._done = driver.create_event()
        taken.callback(driver.destroy_event, self._done)
        self._memory = driver.allocate(contexts.memory_bytes)
        taken.callback(driver.free, self._memory)
        specs = (*tensors.inputs, *tensors.outputs)
        self._buffers = {spec.name: self._take_buffer(spec, taken) for spec in specs}
        self._replay = _replay(contexts, driver, self._stream)
        taken.callback(self._replay.forget)
        self._context = self._new_context()

    def _take_buffer(self, spec: TensorSpec, taken: ExitStack) -> _Buffer:
        size = item_bytes(spec) * self._tensors.max_batch
        address = self._driver.allocate(size)
        taken.callback(self._driver.free, address)
        host = self._driver.allocate_host(size)
        taken.callback(self._driver.free_host, host)
        return _Buffer(spec, address, host)

    def _new_context(self) -> ExecutionContext:
        """A context over its buffers and memory, which is enough for all: no two run at the same time."""
        context = self._contexts.make(self._memory)
        context.set_addresses({name: buffer.address for name, buffer in self._buffers.items()})
        return context

    @property
    def note(self) -> str | None:
        """Why batches are not replayed as graphs, where that is so for good."""
        return self._replay.note

    def infer(self, arrays: Arrays, batch: int) -> Arrays:
        """Run a batch; the answer is the caller's own. MisgnetError where TensorRT refuses, or CUDA fails."""
        for spec in self._tensors.inputs:
            np.copyto(self._buffers[spec.name].view(batch), arrays[spec.name], casting="equiv")
        with self._settled():
            if not self._replay.launch(batch):
                self._run(self._context, batch)
        # The pinned memory is the context's own and is overwritten by the next batch: hand out copies.
        answer = {spec.name: self._buffers[spec.name].view(batch).copy() for spec in self._tensors.outputs}
        if self._replay.wants(batch):
            self._capture(batch)
        return answer

    def _run(self, context: ExecutionContext, batch: int) -> None:
        context.set_batch(self._tensors.inputs, batch)
        self._queue(context, batch)

    def _queue(self, context: ExecutionContext, batch: int) -> None:
        """Copies to the device, the computing, and copies back; the context knows the batch."""
        for spec in self._tensors.inputs:
            buffer = self._buffers[spec.name]
            self._driver.copy_to_device(buffer.address, buffer.part(batch), self._stream)
        context.execute(self._stream)
        for spec in self._tensors.outputs:
            buffer = self._buffers[spec.name]
            self._driver.copy_to_host(buffer.part(batch), buffer.address, self._stream)

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """However this ends, nothing that was queued within is under way afterwards and still uses the buffers."""
        try:
            yield
            self._driver.record_event(self._done, self._stream)
            self._driver.synchronize_event(self._done)
        except BaseException:
            self._driver.synchronize(self._stream)
            raise

    def _capture(self, batch: int) -> None:
        """Keep the graph of a batch that was answered; where that fails, batches go on as before."""
        try:
            context = self._new_context()
            with self._settled():
                self._run(context, batch)
            self._replay.keep(batch, context, partial(self._queue, context, batch))
        except MisgnetError as error:
            self._replay.give_up(f"batches are not replayed as CUDA graphs: {error}")


def _replay(contexts: ExecutionContexts, driver: CudaDriver, stream: int) -> GraphReplay:
    if contexts.replay_themselves:
        return GraphReplay(None, stream)
    if driver.graphs is None:
        return GraphReplay(None, stream, f"batches are not replayed as CUDA graphs: {driver.library} has none")
    return GraphReplay(driver.graphs, stream)


def item_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize

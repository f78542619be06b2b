"""Runs batches of a TensorRT plan in stream contexts (a stream, buffers, execution contexts and CUDA graphs)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from misgnet_runtime.engines.tensorrt.kernel_cache import KernelCache
from misgnet_runtime.engines.tensorrt.logger import VendorLog
from misgnet_runtime.engines.tensorrt.profiles import Launch, Profile, launches
from misgnet_runtime.errors import MisgnetError, UnavailableError

KEPT = 4  # graphs per stream; a scene needs two: for full batches, and for the remainder of each row


@dataclass(frozen=True)
class Tensors:
    """The inputs and outputs of a plan, and the optimization profiles that are used, by ascending largest batch."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]

    def buffer_bytes(self, profiles: Sequence[Profile]) -> int:
        """Returns the bytes of one stream's buffers for these profiles, on the device; the host holds as many."""
        return max(each.largest for each in profiles) * sum(map(item_bytes, (*self.inputs, *self.outputs)))


@dataclass(frozen=True)
class _Buffer:
    """Memory of one tensor for the largest batch of a launch: on the device, and pinned on the host."""

    spec: TensorSpec
    address: int
    host: Bytes

    def view(self, batch: int) -> NDArray[Any]:
        """Returns a view of the first ``batch`` items on the host, in the tensor's dtype and shape."""
        flat = self.part(batch).view(self.spec.dtype)
        return flat.reshape(batch, *self.spec.shape[1:])

    def part(self, batch: int) -> Bytes:
        return self.host[: item_bytes(self.spec) * batch]


class ExecutionContext:
    """One execution context, for one thread at a time. Raises MisgnetError if TensorRT rejects a call."""

    def __init__(self, context: Any, log: VendorLog) -> None:
        self._context = context
        self._log = log

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Sets the tensors' device addresses."""
        for name, address in addresses.items():
            self._accept(self._context.set_tensor_address(name, address), f"address of '{name}'")

    def set_batch(self, inputs: Iterable[TensorSpec], batch: int) -> None:
        for spec in inputs:
            shape = (batch, *spec.shape[1:])
            self._accept(self._context.set_input_shape(spec.name, shape), f"shape {shape} of '{spec.name}'")

    def execute(self, stream: int) -> None:
        """Queues the computation of a batch."""
        self._accept(self._context.execute_async_v3(stream), "execution of a batch")

    def _accept(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise MisgnetError(f"TensorRT rejected the {what}: {self._log.last_errors()}")


class ExecutionContexts:
    """Creates execution contexts of one plan, from any thread. They share its weights; the caller provides memory.

    ``memory_bytes`` is the device memory that the largest of the used profiles needs; smaller ones use a part of it.

    TensorRT for RTX captures and replays graphs itself if that is enabled: it compiles the kernels for a shape in the
    background, and only it knows when they are ready. ``kernels`` keeps them for later processes.
    """

    def __init__(
        self, module: Any, engine: Any, log: VendorLog, profiles: Sequence[Profile], kernels: KernelCache | None = None
    ) -> None:
        self.replay_themselves = has(module, OWN_GRAPHS)
        self.memory_bytes = context_bytes(profiles)
        self._engine = engine
        self._log = log
        self._making = Lock()
        self._how: Any = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.replay_themselves:
            strategy, self._how = self._how, engine.create_runtime_config()
            self._how.set_execution_context_allocation_strategy(strategy)
            self._how.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if kernels is not None:
                kernels.attach(self._how)

    def make(self, profile: Profile, memory: int, stream: int) -> ExecutionContext:
        """Creates a context for ``profile`` that works in ``memory``, of ``memory_bytes``.

        Contexts that never run at the same time may share it. Selecting the profile may queue copies on ``stream``,
        which the caller must wait for before it uses the context on another stream, or captures it.
        Raises UnavailableError if TensorRT does not create a context.
        """
        with self._making:
            context = self._engine.create_execution_context(self._how)
        # The memory comes last: how much a context needs depends on its profile.
        if context is None or not context.set_optimization_profile_async(profile.index, stream):
            raise UnavailableError(f"the plan cannot run here: {self._log.last_errors()}")
        context.set_device_memory(memory, self.memory_bytes)
        return ExecutionContext(context, self._log)


class GraphReplay:
    """The CUDA graphs of one stream. ``note`` is the reason if batches are never replayed as graphs, else None."""

    def __init__(self, graphs: CudaGraphs | None, stream: int, note: str | None = None) -> None:
        self.note = note
        self._graphs = graphs
        self._stream = stream
        self._observed: set[int] = set()  # batch sizes that ran
        self._kept: dict[int, tuple[int, ExecutionContext]] = {}

    def launch(self, batch: int) -> bool:
        """Queues the whole batch if its graph is kept; returns whether it did."""
        if self._graphs is None or batch not in self._kept:
            return False
        self._graphs.launch(self._kept[batch][0], self._stream)
        return True

    def wants(self, batch: int) -> bool:
        """Returns whether to capture the batch that just ran: its size ran before, and fewer than KEPT are kept."""
        again = batch in self._observed
        self._observed.add(batch)
        possible = self._graphs is not None and self.note is None
        return possible and again and batch not in self._kept and len(self._kept) < KEPT

    def keep(self, batch: int, context: ExecutionContext, queue: Callable[[], None]) -> None:
        """Captures ``queue``, which runs a batch in ``context``.

        A graph holds the state of its context. The context must have run a batch of this size before (TensorRT
        initialises a shape when it first runs), and nothing else may use it afterwards.
        Raises MisgnetError if the work cannot be captured.
        """
        assert self._graphs is not None  # wants() returned True
        self._kept[batch] = self._graphs.capture(self._stream, queue), context

    def give_up(self, note: str) -> None:
        """Stops capturing; kept graphs stay."""
        self.note = note

    def forget(self) -> None:
        """Destroys all graphs and releases their contexts."""
        while self._graphs is not None and self._kept:
            _, (graph, _) = self._kept.popitem()
            self._graphs.destroy(graph)


class StreamContext:
    """Runs one batch at a time. Stream contexts share no buffers, so one can copy while another computes.

    A batch is computed in one or more launches, see :func:`launches`. The first launch of a size is queued call by call
    in the execution context of its profile. After the second one its graph is captured in a separate context, and from
    the third on it is one call.
    """

    def __init__(
        self, contexts: ExecutionContexts, tensors: Tensors, driver: CudaDriver, taken: ExitStack, *, alone: bool
    ) -> None:
        """Allocates everything on the device, to be freed by ``taken``; raises UnavailableError if memory is short.

        ``alone``: whether this is the engine's only stream context; its thread then spins while it waits, which returns
        tens of microseconds sooner than sleeping. With more, spinning threads would take cores from those that prepare
        the next batches.
        """
        self._contexts, self._tensors, self._driver = contexts, tensors, driver
        self._stream = driver.create_stream()
        taken.callback(driver.destroy_stream, self._stream)
        self._done = driver.create_event(blocking=not alone)
        taken.callback(driver.destroy_event, self._done)
        self._memory = driver.allocate(contexts.memory_bytes)
        taken.callback(driver.free, self._memory)
        specs = (*tensors.inputs, *tensors.outputs)
        self._buffers = {spec.name: self._take_buffer(spec, taken) for spec in specs}
        self._replay = _replay(contexts, driver, self._stream)
        taken.callback(self._replay.forget)
        # All of them now: if one cannot be created, another engine can still be chosen.
        self._context_of = {profile: self._new_context(profile) for profile in tensors.profiles}

    def _take_buffer(self, spec: TensorSpec, taken: ExitStack) -> _Buffer:
        size = item_bytes(spec) * max(profile.largest for profile in self._tensors.profiles)
        address = self._driver.allocate(size)
        taken.callback(self._driver.free, address)
        host = self._driver.allocate_host(size)
        taken.callback(self._driver.free_host, host)
        return _Buffer(spec, address, host)

    def _new_context(self, profile: Profile) -> ExecutionContext:
        """Creates an execution context over the shared buffers and memory: no two of them run at the same time."""
        context = self._contexts.make(profile, self._memory, self._stream)
        context.set_addresses({name: buffer.address for name, buffer in self._buffers.items()})
        return context

    @property
    def note(self) -> str | None:
        """The reason if batches are never replayed as graphs, else None."""
        return self._replay.note

    def infer(self, arrays: Arrays, batch: int) -> Arrays:
        """Runs a batch; the returned arrays belong to the caller. Raises MisgnetError if TensorRT or CUDA fails."""
        outputs = {spec.name: np.empty((batch, *spec.shape[1:]), spec.dtype) for spec in self._tensors.outputs}
        for launch in launches(self._tensors.profiles, batch):
            self._launch(launch, arrays, outputs)
        return outputs

    def _launch(self, launch: Launch, arrays: Arrays, outputs: Arrays) -> None:
        """Computes a part of a batch from ``arrays`` into ``outputs``."""
        for spec in self._tensors.inputs:
            self._fill(self._buffers[spec.name].view(launch.batch), arrays[spec.name][launch.items])
        with self._settled():
            if not self._replay.launch(launch.batch):
                self._run(self._context_of[launch.profile], launch.batch)
        # The next launch overwrites the pinned memory: copy the outputs, without those of the padding.
        for name, output in outputs.items():
            part = output[launch.items]
            part[...] = self._buffers[name].view(launch.batch)[: len(part)]
        if self._replay.wants(launch.batch):
            self._capture(launch)

    @staticmethod
    def _fill(buffer: NDArray[Any], items: NDArray[Any]) -> None:
        """Copies the items, and the last one again as padding: values that the network is known to accept."""
        np.copyto(buffer[: len(items)], items, casting="equiv")
        buffer[len(items) :] = items[-1]

    def _run(self, context: ExecutionContext, batch: int) -> None:
        context.set_batch(self._tensors.inputs, batch)
        self._queue(context, batch)

    def _queue(self, context: ExecutionContext, batch: int) -> None:
        """Queues the copies to the device, the computation and the copies back; the context's batch is already set."""
        for spec in self._tensors.inputs:
            buffer = self._buffers[spec.name]
            self._driver.copy_to_device(buffer.address, buffer.part(batch), self._stream)
        context.execute(self._stream)
        for spec in self._tensors.outputs:
            buffer = self._buffers[spec.name]
            self._driver.copy_to_host(buffer.part(batch), buffer.address, self._stream)

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Waits on exit, also after an error, until no queued work uses the buffers any more."""
        try:
            yield
            self._driver.record_event(self._done, self._stream)
            self._driver.synchronize_event(self._done)
        except BaseException:
            self._driver.synchronize(self._stream)
            raise

    def _capture(self, launch: Launch) -> None:
        """Captures the graph of a batch size that ran; if that fails, batches are still queued call by call."""
        try:
            context = self._new_context(launch.profile)
            with self._settled():
                self._run(context, launch.batch)
            self._replay.keep(launch.batch, context, partial(self._queue, context, launch.batch))
        except MisgnetError as error:
            self._replay.give_up(f"batches are not replayed as CUDA graphs: {error}")


def _replay(contexts: ExecutionContexts, driver: CudaDriver, stream: int) -> GraphReplay:
    if contexts.replay_themselves:
        return GraphReplay(None, stream)
    if driver.graphs is None:
        return GraphReplay(
            None, stream, f"batches are not replayed as CUDA graphs: {driver.library} does not support them"
        )
    return GraphReplay(driver.graphs, stream)


def item_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize


def context_bytes(profiles: Sequence[Profile]) -> int:
    """Returns the device memory of an execution context for any of the profiles."""
    return max(1, *(profile.memory_bytes for profile in profiles))

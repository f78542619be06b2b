"""What one batch needs for itself while a TensorRT plan runs it: a stream, buffers, a context, graphs to replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.engines.base import Arrays, TensorSpec
from misgnet_runtime.engines.cuda import Bytes, CudaDriver
from misgnet_runtime.engines.tensorrt.contexts import Context, Contexts
from misgnet_runtime.engines.tensorrt.replay import Replay
from misgnet_runtime.errors import MisgnetError


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


class Lane:
    """Runs one batch at a time. Lanes have all for themselves, so that one copies while another computes.

    The first batch of a size is queued call by call. After the second its graph is captured, in a context of its
    own, and from the third on the whole batch is one launch.
    """

    def __init__(self, contexts: Contexts, tensors: Tensors, driver: CudaDriver, taken: ExitStack) -> None:
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

    def _new_context(self) -> Context:
        """A context over the lane's buffers and memory, which is enough for all: no two run at the same time."""
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
        # The pinned memory is the lane's and is overwritten by the next batch: hand out copies.
        answer = {spec.name: self._buffers[spec.name].view(batch).copy() for spec in self._tensors.outputs}
        if self._replay.wants(batch):
            self._capture(batch)
        return answer

    def _run(self, context: Context, batch: int) -> None:
        context.set_batch(self._tensors.inputs, batch)
        self._queue(context, batch)

    def _queue(self, context: Context, batch: int) -> None:
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


def _replay(contexts: Contexts, driver: CudaDriver, stream: int) -> Replay:
    if contexts.replay_themselves:
        return Replay(None, stream)
    if driver.graphs is None:
        return Replay(None, stream, f"batches are not replayed as CUDA graphs: {driver.library} has none")
    return Replay(driver.graphs, stream)


def item_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize

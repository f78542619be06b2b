"""CUDA graphs of whole batches, kept by the size of the batch."""

from __future__ import annotations

from collections.abc import Callable

from misgnet_runtime.engines.cuda import CudaGraphs
from misgnet_runtime.engines.tensorrt.contexts import Context

KEPT = 4  # a scene needs two: for its full batches, and for the rest of each row


class Replay:
    """The graphs of one stream; ``note`` says why there are none, where that is so for good."""

    def __init__(self, graphs: CudaGraphs | None, stream: int, note: str | None = None) -> None:
        self.note = note
        self._graphs = graphs
        self._stream = stream
        self._seen: set[int] = set()
        self._kept: dict[int, tuple[int, Context]] = {}

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

    def keep(self, batch: int, context: Context, queue: Callable[[], None]) -> None:
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

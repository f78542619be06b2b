"""Defines the engine interface: open, describe inputs and outputs, infer a batch, close.

The public :meth:`Engine.infer` checks shapes and dtypes for all backends. A backend implements only ``_infer`` and
``_release``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import EngineError, InputError, MisgnetError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """Describes one input or output of an engine."""

    name: str
    dtype: str  # NumPy's name
    shape: tuple[int, ...]  # -1 is the batch


class Engine(ABC):
    """One compiled network on one device. Thread-safe: ``streams`` batches run at once, further calls wait."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    device: str

    def __init__(self, contexts: Sequence[Any] = (None,)) -> None:
        """Takes one context per batch that may run at once; a context holds what one running batch needs."""
        self.streams = len(contexts)
        self._free: SimpleQueue[Any] = SimpleQueue()
        self._closed, self._closing = False, Lock()
        for context in contexts:
            self._free.put(context)

    @property
    def notes(self) -> tuple[str, ...]:
        """Optimisations that are unavailable on this machine although the engine runs; they explain a lower speed."""
        return ()

    def infer(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Runs one batch.

        Args:
            arrays: Every input by name, with the dtype and shape of its spec and one common batch of 1 to
                ``max_batch``.

        Returns:
            Every output by name. The arrays belong to the caller.

        Raises:
            InputError: The arrays do not match the specs.
            EngineError: The backend failed; carries its message.
        """
        batch = check_inputs(self.inputs, arrays, self.max_batch)
        contiguous = {spec.name: np.ascontiguousarray(arrays[spec.name]) for spec in self.inputs}
        context = self._free.get()
        try:
            if self._closed:
                raise MisgnetError(f"this engine on {self.device} is closed; open it again")
            return self._infer(context, contiguous, batch)
        except (MisgnetError, MemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise EngineError(f"the engine on {self.device} failed: {reason}") from error
        finally:
            self._free.put(context)

    @abstractmethod
    def _infer(self, context: Any, arrays: Arrays, batch: int) -> Arrays: ...

    def close(self) -> None:
        """Waits until no batch runs, then releases the device's memory. A second call does nothing."""
        with self._closing:
            if self._closed:
                return
            for _ in range(self.streams):
                self._free.get()
            self._closed = True
            self._release()
            self._free.put(None)  # wake blocked callers

    @abstractmethod
    def _release(self) -> None: ...

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_inputs(specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]], max_batch: int) -> int:
    """Returns the common batch size of ``arrays``; raises InputError if an array does not match its spec."""
    expected = [spec.name for spec in specs]
    if sorted(arrays) != sorted(expected):
        raise InputError(f"engine inputs are {expected}, got {sorted(arrays)}")
    batch = arrays[expected[0]].shape[0] if arrays[expected[0]].ndim else 0
    for spec in specs:
        array = arrays[spec.name]
        wanted = (batch, *spec.shape[1:])
        if array.shape != wanted or array.dtype.name != spec.dtype:
            raise InputError(
                f"engine input '{spec.name}' takes {spec.dtype} {wanted}, got {array.dtype.name} {array.shape}"
            )
    if not 1 <= batch <= max_batch:
        raise InputError(f"a batch of {batch} does not fit this engine, which takes 1 to {max_batch}")
    return batch

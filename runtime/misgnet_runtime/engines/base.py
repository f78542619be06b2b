"""The contract of an engine: open, describe inputs and outputs, infer a batch, close.

The public :meth:`Engine.infer` checks shapes and dtypes once for all backends; a backend implements
``_infer`` and ``close``, and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype name and shape of an input or output; -1 stands for the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Engine(ABC):
    """One compiled network on one device. Not thread-safe: one engine per thread."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    device: str

    def infer(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run one batch.

        ``arrays`` holds every input by name, with the dtype and shape of its spec and one common
        batch of 1 to ``max_batch``. The returned arrays belong to the caller.
        Raises InputError where the arrays do not fit.
        """
        batch = check_inputs(self.inputs, arrays, self.max_batch)
        return self._infer({spec.name: np.ascontiguousarray(arrays[spec.name]) for spec in self.inputs}, batch)

    @abstractmethod
    def _infer(self, arrays: Arrays, batch: int) -> Arrays: ...

    @abstractmethod
    def close(self) -> None:
        """Release the device's memory; a closed engine is not used again."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_inputs(specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]], max_batch: int) -> int:
    """The common batch of ``arrays``; InputError names the first one that does not fit its spec."""
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

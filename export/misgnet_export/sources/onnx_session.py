"""Runs a bare network in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.engines.onnxruntime import session_options
from misgnet_runtime.errors import InputError


class Session:
    """A bare network in ONNX Runtime. Threads may share it."""

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[str], output: str, *, streams: int = 1) -> None:
        """Opens ``model`` for ``streams`` calls at once. Raises InputError if ONNX Runtime cannot open it."""
        self.inputs, self.output = tuple(inputs), output
        options = session_options(ExecutionOptions(streams=streams))
        options.log_severity_level = 4  # its errors are raised, too
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base class below Exception
            raise InputError(f"onnxruntime cannot open the network: {_line(error)}") from error

    def run(self, images: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Returns the output for the network's inputs. Raises InputError if ONNX Runtime fails on them."""
        try:
            (found,) = self._session.run([self.output], dict(zip(self.inputs, images, strict=True)))
        except Exception as error:  # as above
            shapes = " and ".join(f"{image.dtype} {image.shape}" for image in images)
            raise InputError(f"the network does not run on {shapes}: {_line(error)}") from error
        return np.asarray(found)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None


def _line(error: Exception) -> str:
    """Returns the first 300 characters of a library's message, on one line."""
    return " ".join(str(error).split())[:300]

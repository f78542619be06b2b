"""Limits the memory of a build: TensorRT's defaults exceed the memory of a small board."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_runtime.engines.tensorrt.compatibility import mebibytes
from misgnet_runtime.errors import UnavailableError, UsageError

LEAST = 512 << 20  # with less, the system would kill the process during the build


@dataclass(frozen=True)
class BuilderMemory:
    """Memory limits of a build."""

    # Workspace of one operator.
    workspace_bytes: int
    # All memory that the builder may use while it times kernels.
    builder_bytes: int


def builder_memory(free: int, asked: int | None = None) -> BuilderMemory:
    """Returns the limits for a machine with ``free`` bytes: a quarter for one operator, three quarters in total.

    Args:
        free: Free memory in bytes.
        asked: Requested workspace of one operator in bytes (default: a quarter of ``free``).

    Raises:
        UnavailableError: Too little memory is free.
        UsageError: The requested workspace exceeds the total limit.
    """
    if free < LEAST:
        raise UnavailableError(
            f"{mebibytes(free)} of memory are free, but a build requires {mebibytes(LEAST)}; stop other programs (a "
            "desktop, a browser), or add swap"
        )
    whole = free // 4 * 3
    if asked is not None and asked > whole:
        raise UsageError(
            f"--workspace is {mebibytes(asked)}, but a build may use at most {mebibytes(whole)} of the "
            f"{mebibytes(free)} that are free"
        )
    return BuilderMemory(free // 4 if asked is None else asked, whole)

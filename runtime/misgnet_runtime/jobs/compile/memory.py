"""How much memory a build may take: what TensorRT takes by default, a small board does not have."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_runtime.engines.tensorrt.compatibility import mebibytes
from misgnet_runtime.errors import UnavailableError, UsageError

LEAST = 512 << 20  # less would be no build but a killed process


@dataclass(frozen=True)
class BuilderMemory:
    """In bytes: the workspace of one operator, and all that the builder takes while it measures."""

    workspace_bytes: int
    builder_bytes: int


def builder_memory(free: int, asked: int | None = None) -> BuilderMemory:
    """Of ``free`` bytes a quarter for an operator, or what was ``asked`` for, and three quarters in all.

    Raises UnavailableError where too little is free, UsageError where more is asked for than is free.
    """
    if free < LEAST:
        raise UnavailableError(
            f"{mebibytes(free)} of memory are free, and a build needs {mebibytes(LEAST)}; end what else runs here (a "
            "desktop, a browser), or add swap"
        )
    whole = free // 4 * 3
    if asked is not None and asked > whole:
        raise UsageError(
            f"--workspace is {mebibytes(asked)}, but of {mebibytes(free)} that are free a build may take "
            f"{mebibytes(whole)}"
        )
    return BuilderMemory(free // 4 if asked is None else asked, whole)

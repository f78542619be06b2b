"""How an engine is run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How an engine is run. None: chosen for the engine."""

    threads: int | None = None  # CPU threads shared by all streams
    streams: int | None = None  # batches in flight at once
    batch: int | None = None  # tiles per inference call


DEFAULT_EXECUTION = ExecutionOptions()

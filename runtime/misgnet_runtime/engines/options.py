"""Options that control how an engine is run: batch, streams, threads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from misgnet_runtime.options import option


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Batch, streams and threads of an engine; None means chosen per engine."""

    batch: int | None = option(
        None, help="Tiles per inference call (default: chosen per engine).", minimum=1, changes_output=True
    )
    streams: int | None = option(None, help="Batches in flight at once (default: chosen per engine).", minimum=1)
    threads: int | None = option(
        None, help="CPU threads shared by all streams (default: all available cores).", minimum=1
    )

    def over(self, default: ExecutionOptions) -> ExecutionOptions:
        """Returns these options, with unset ones taken from ``default``."""
        return replace(default, **{name: value for name, value in vars(self).items() if value is not None})


DEFAULT_EXECUTION = ExecutionOptions()

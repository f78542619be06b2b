"""How an engine is run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from misgnet_runtime.options import option
from misgnet_runtime.storage.schema import Struct


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How an engine is run. None: chosen for the engine."""

    batch: int | None = option(
        None, help="Tiles per inference call (default: chosen per engine).", minimum=1, changes_output=True
    )
    streams: int | None = option(None, help="Batches in flight at once (default: chosen per engine).", minimum=1)
    threads: int | None = option(
        None, help="CPU threads shared by all streams (default: all available cores).", minimum=1
    )

    def over(self, default: ExecutionOptions) -> ExecutionOptions:
        """These options, and those of ``default`` where they are not set."""
        return replace(default, **{name: value for name, value in vars(self).items() if value is not None})


DEFAULT_EXECUTION = ExecutionOptions()


class EngineSettings(Struct, frozen=True):
    """The defaults are what serves most machines; ``misgnet-run tune`` measures what serves this one.

    Of ONNX Runtime on the CPU: ``spinning``: a thread that waits for work looks for it all the time, and is awake when
    it comes; ``arena``: memory is kept from batch to batch. Of OpenVINO: ``pinning``: every thread stays on one core,
    where it may meet those of other processes; ``hyper_threading``: the second thread of a core computes, too.

    Flushing denormals to zero is not among them: ONNX Runtime's first session that does so turns it on for the thread
    that opens it, for good and for all that this thread computes, and later sessions cannot change it (seen on 1.32).
    """

    spinning: bool = True
    arena: bool = True
    pinning: bool = False
    hyper_threading: bool = False

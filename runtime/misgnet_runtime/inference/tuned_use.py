"""How an engine is used: what was asked for comes first, then what was tuned here, then what serves most machines."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import Engine, EngineSettings, ExecutionOptions, open_engine_file, streams_for_scenes
from misgnet_runtime.inference.tuned_settings import Goal, Setting
from misgnet_runtime.inference.tuned_store import kept


@dataclass(frozen=True)
class Use:
    """``words``: what to say of it behind why the engine was taken; empty where nothing was tuned."""

    threads: int | None = None
    streams: int = 1
    batch: int | None = None
    settings: EngineSettings | None = None
    words: str = ""

    def open(self, bundle: Bundle, entry: EngineEntry) -> Engine:
        """An engine of ``bundle``; raises as :func:`open_engine_file`."""
        batch = bundle.manifest.interface.max_batch
        execution = ExecutionOptions(threads=self.threads, streams=self.streams)
        return open_engine_file(entry, bundle.files, batch, execution, settings=self.settings)


@dataclass(frozen=True)
class Wish:
    """What an engine is opened for, and what was asked for; without a ``goal`` nothing that was tuned is looked for."""

    goal: Goal | None
    execution: ExecutionOptions

    def use_of(self, bundle: Bundle, entry: EngineEntry) -> Use:
        """Raises UnavailableError where the library of the engine is missing."""
        tuning = kept(bundle, entry) if self.goal else None
        asked_for = self.execution
        if self.goal is None or tuning is None:
            return Use(asked_for.threads, asked_for.streams or streams_for_scenes(entry), asked_for.batch)
        tuned = tuning.setting(self.goal)
        found = Setting(
            asked_for.threads or tuned.threads, asked_for.streams or tuned.streams, asked_for.batch or tuned.batch,
            tuned.engine,
        )  # fmt: skip
        asked = "" if found == tuned else " with what was asked for"
        return Use(found.threads, found.streams, found.batch, found.engine, f"; tuned here{asked}: {found.words()}")

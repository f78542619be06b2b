"""What is worth trying of an engine on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from msgspec.structs import replace

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.engines import MOST_STREAMS, batch_for_scenes, is_on_cpu, streams_for_scenes, streams_on_cpu
from misgnet_runtime.inference.tuned_settings import Goal, Setting
from misgnet_runtime.machine import ROOT, read_int, usable_cores

Change = Callable[[Setting], Setting]  # the same setting where the change means nothing there


def default_setting(entry: EngineEntry, goal: Goal, max_batch: int) -> Setting:
    """How the engine is used where nothing was tuned."""
    threads = usable_cores() if is_on_cpu(entry) else None
    if goal == "latency":
        return Setting(threads, 1, 1)
    return Setting(threads, streams_for_scenes(entry), min(batch_for_scenes(entry), max_batch))


def changes(entry: EngineEntry, goal: Goal, max_batch: int) -> list[Change]:
    """In the order in which they are tried, each on the best that was found before; what takes longest comes last."""
    found: list[Change] = []
    if goal == "throughput":
        most = streams_on_cpu(usable_cores()) if is_on_cpu(entry) else MOST_STREAMS
        found += [partial(replace, streams=streams) for streams in range(1, most + 1)]
    if is_on_cpu(entry):
        found += [partial(_on_threads, threads=threads) for threads in _fewer_threads(usable_cores())]
    found += _switches(entry)
    if goal == "throughput":
        batches = (1, 2, 4) if is_on_cpu(entry) else (1, 2, 4, 8, 16)
        found += [partial(replace, batch=batch) for batch in batches if batch <= max_batch]
    return found


def _fewer_threads(cores: int) -> Iterable[int]:
    """One a core where cores count twice, and all but one, which is left to the rest of the machine."""
    return sorted({max(1, cores // 2), max(1, cores - 1)})


def _on_threads(setting: Setting, threads: int) -> Setting:
    return replace(setting, threads=threads) if threads >= setting.streams else setting


def _switches(entry: EngineEntry) -> Iterable[Change]:
    if entry.kind == "onnxruntime":
        yield _without_spinning
        yield partial(_with, arena=False)
    if entry.kind == "openvino":
        yield partial(_with, pinning=True)
        if read_int(ROOT / "sys/devices/system/cpu/smt/active"):
            yield partial(_with, hyper_threading=True)


def _without_spinning(setting: Setting) -> Setting:
    """A session without threads of its own, beside those that call it, has none that could wait."""
    return setting if setting.threads == setting.streams else _with(setting, spinning=False)


def _with(setting: Setting, **switches: Any) -> Setting:
    return replace(setting, engine=replace(setting.engine, **switches))

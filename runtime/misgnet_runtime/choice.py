"""Which engine of a bundle runs here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from misgnet_runtime.bundle import Bundle
from misgnet_runtime.detector import ChangeDetector
from misgnet_runtime.engines import Engine, open_engine_file
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.manifest import EngineEntry

# Kinds of engine, each with INT8 or without, the fastest first: plans for a GPU, INT8 on the CPU, float on the CPU.
_FASTEST_FIRST = (
    ("tensorrt", True), ("tensorrt", False), ("rtx", True), ("rtx", False),
    ("openvino", True), ("onnxruntime", True), ("openvino", False), ("onnxruntime", False),
)  # fmt: skip


@contextmanager
def open_detector(bundle: Bundle, engine: str = "auto") -> Iterator[tuple[ChangeDetector, EngineEntry, str]]:
    """The detector of the engine called ``engine``, its entry, and why it was taken.

    "auto" takes the first of :func:`ranked` that opens. Raises UnavailableError with
    the reason of each engine where none opens, UsageError for an unknown name.
    """
    entries = ranked(bundle.manifest.engines) if engine == "auto" else [bundle.engine_entry(engine)]
    opened, entry, reason = _first_that_opens(bundle, entries, engine)
    with ChangeDetector(opened, bundle.manifest.interface) as detector:
        yield detector, entry, reason


def ranked(entries: list[EngineEntry]) -> list[EngineEntry]:
    """Fastest kind first; of one kind what was made for certain processors before what any will run."""
    return sorted(entries, key=lambda e: (_FASTEST_FIRST.index((e.kind, "int8" in e.precision)), not e.needs))


def _first_that_opens(bundle: Bundle, entries: list[EngineEntry], asked: str) -> tuple[Engine, EngineEntry, str]:
    refused: list[tuple[str, UnavailableError]] = []
    for entry in entries:
        try:
            engine = open_engine_file(entry, bundle.path, bundle.manifest.interface.max_batch)
        except UnavailableError as error:
            refused.append((entry.name, error))
            continue
        if asked != "auto":
            return engine, entry, "as asked"
        reasons = "".join(f"; {name} does not run: {error}" for name, error in refused)
        return engine, entry, f"fastest that runs here{reasons}"
    if len(refused) == 1:
        raise refused[0][1]
    raise UnavailableError("no engine runs here: " + "; ".join(f"{name}: {error}" for name, error in refused))

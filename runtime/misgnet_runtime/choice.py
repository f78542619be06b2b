"""Which engine of a bundle runs here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from misgnet_runtime.bundle import Bundle
from misgnet_runtime.detector import ChangeDetector
from misgnet_runtime.engines import Engine, open_engine_file
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.manifest import EngineEntry

# A plan for the GPU before INT8 on the CPU before float32 on the CPU.
_RANK = {"tensorrt": 0, "rtx": 1, "onnxruntime": 2}


@contextmanager
def open_detector(bundle: Bundle, engine: str = "auto") -> Iterator[tuple[ChangeDetector, EngineEntry, str]]:
    """The detector of the engine called ``engine``, its entry, and why it was taken.

    "auto" takes the first that opens: a plan for a GPU, then INT8, then float32. Raises UnavailableError with
    the reason of each engine where none opens, UsageError for an unknown name.
    """
    entries = ranked(bundle.manifest.engines) if engine == "auto" else [bundle.engine_entry(engine)]
    opened, entry, reason = _first_that_opens(bundle, entries, engine)
    with ChangeDetector(opened, bundle.manifest.interface) as detector:
        yield detector, entry, reason


def ranked(entries: list[EngineEntry]) -> list[EngineEntry]:
    """Fastest kind first, quantized before float."""
    return sorted(entries, key=lambda e: (_RANK[e.kind], e.precision == "float32"))


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

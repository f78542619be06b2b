"""Manages the work folders of pairs and detects crashes.

``OUT/.working/KEY/`` holds the results of a pair until all are complete. While a process works on the pair, the folder
also contains ``running``; every exit except a crash removes it, which works even on a full disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from misgnet_runtime.formatting import now
from misgnet_runtime.jobs.journal import finished_units
from misgnet_runtime.jobs.watch.journal import Unclean, Unfinished
from misgnet_runtime.storage.atomic import remove, resumable_errors

WORKING = ".working"
_RUNNING = "running"


def work_folder(output: Path, pair: str) -> Path:
    """Returns the work folder of a pair; its name is a hash, because a pair's name may be as long as a file name."""
    return output / WORKING / hashlib.sha256(pair.encode()).hexdigest()[:16]


@contextmanager
def running(output: Path, pair: str) -> Iterator[Path]:
    """Yields the work folder of a pair, marked as running until the block ends. Only a crash leaves the mark."""
    folder = work_folder(output, pair)
    marker = folder / _RUNNING
    with resumable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    try:
        yield folder
    finally:
        with suppress(OSError):
            marker.unlink()


def crashed(output: Path, pair: str) -> bool:
    """Returns whether a process crashed while it worked on the pair."""
    return (work_folder(output, pair) / _RUNNING).exists()


def forget_crash(output: Path, pair: str) -> None:
    with suppress(OSError):
        (work_folder(output, pair) / _RUNNING).unlink()


def count_crash(pair: Unfinished, output: Path) -> Unclean:
    """Returns the journal entry for a crash. It counts as an attempt if no raster row was finished since the last."""
    name = pair.start.pair
    rows = finished_units(work_folder(output, name) / f"{name}_change.tif")
    before = pair.unclean or Unclean(pair.start.time, name, 0, 0)
    return Unclean(now(), name, before.attempts + (rows <= before.rows), rows)


def clear(output: Path, keep: Iterable[str] = ()) -> None:
    """Removes the work folders of all pairs except those in ``keep``."""
    kept = {work_folder(output, pair).name for pair in keep}
    for path in _list(output / WORKING):
        if path.name not in kept:
            remove(path)
    if not kept:
        with suppress(OSError):
            (output / WORKING).rmdir()


def clear_pair(output: Path, pair: str) -> None:
    remove(work_folder(output, pair))
    with suppress(OSError):  # other pairs still have work folders
        (output / WORKING).rmdir()


def start_over(folder: Path) -> None:
    """Removes the files of earlier attempts from the work folder of the current pair."""
    for path in _list(folder):
        if path.name != _RUNNING:
            remove(path)


def _list(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []

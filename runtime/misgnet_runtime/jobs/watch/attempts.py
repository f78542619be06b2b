"""The folders that pairs are worked on in, and what is found of a process that ended in mid-pair.

``OUT/.working/KEY/`` holds the results of a pair until all are whole. While a process works there it holds ``running``
too, which goes at every end that is no crash: a disk without room does not prevent that.
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
    """Of the pair called ``pair``, whose name may be as long as a folder's can be."""
    return output / WORKING / hashlib.sha256(pair.encode()).hexdigest()[:16]


@contextmanager
def running(output: Path, pair: str) -> Iterator[Path]:
    """The folder of a pair; marked until the block ends, however it does, but for the end of the process."""
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
    """Whether a process ended while it worked on the pair, and neither it nor its user wanted that."""
    return (work_folder(output, pair) / _RUNNING).exists()


def forget_crash(output: Path, pair: str) -> None:
    with suppress(OSError):
        (work_folder(output, pair) / _RUNNING).unlink()


def count_crash(pair: Unfinished, output: Path) -> Unclean:
    """The journal's entry on a crash: it counts where no row of the map was finished since the last one."""
    name = pair.begun.pair
    rows = finished_units(work_folder(output, name) / f"{name}_change.tif")
    before = pair.unclean or Unclean(pair.begun.time, name, 0, 0)
    return Unclean(now(), name, before.attempts + (rows <= before.rows), rows)


def clear(output: Path, keep: Iterable[str] = ()) -> None:
    """Remove what lies in the folders of all pairs but those of ``keep``."""
    kept = {work_folder(output, pair).name for pair in keep}
    for path in _list(output / WORKING):
        if path.name not in kept:
            remove(path)
    if not kept:
        with suppress(OSError):
            (output / WORKING).rmdir()


def clear_pair(output: Path, pair: str) -> None:
    remove(work_folder(output, pair))
    with suppress(OSError):  # others are still worked on
        (output / WORKING).rmdir()


def start_over(folder: Path) -> None:
    """Remove what an earlier attempt left in the folder of a pair that is worked on."""
    for path in _list(folder):
        if path.name != _RUNNING:
            remove(path)


def _list(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []

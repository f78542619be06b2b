"""Detects whether a file is completely written, as far as another process can know."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from misgnet_runtime.jobs.watch.pairing import File, FilePair

_PROC = Path("/proc")
_WRITING = 0o3  # of a descriptor's flags: 1 for writing, 2 for both


class Settling:
    """Tracks how long files have been unchanged, by the local clock; the clock of a network disk may differ."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Path, tuple[File, float]] = {}

    def settled(self, pairs: Iterable[FilePair], now: float) -> list[FilePair]:
        """Returns the pairs whose files have not changed for the settling time and are not open for writing here.

        Args:
            pairs: All pairs in the folder.
            now: Seconds of a monotonic clock.
        """
        pairs = list(pairs)
        since: dict[Path, tuple[File, float]] = {}
        for file in (file for pair in pairs for file in pair.files):
            known = self._since.get(file.path)
            since[file.path] = known if known is not None and known[0] == file else (file, now)
        self._since = since
        quiet = [pair for pair in pairs if all(now - since[file.path][1] >= self._seconds for file in pair.files)]
        written = open_for_writing(file for pair in quiet for file in pair.files)
        return [pair for pair in quiet if not written & set(pair.files)]


def open_for_writing(files: Iterable[File]) -> set[File]:
    """Returns the files that a process has open for writing. /proc shows this user's processes, or all to root."""
    wanted = {(file.path.name, file.device, file.inode): file for file in files}
    names = {name for name, _, _ in wanted}
    found = set()
    for descriptor in _descriptors() if wanted else ():
        with suppress(OSError):  # the file was closed, or its process has ended
            name = descriptor.readlink().name
            if name in names:  # do not access other files: their disk may not respond
                state = descriptor.stat()
                file = wanted.get((name, state.st_dev, state.st_ino))
                if file is not None and _flags(descriptor) & _WRITING:
                    found.add(file)
    return found


def _descriptors() -> Iterator[Path]:
    """Yields ``/proc/PID/fd/N`` of all readable processes, which may exit at any moment."""
    for process in _names(_PROC):
        if process.isdigit():
            folder = _PROC / process / "fd"
            yield from (folder / descriptor for descriptor in _names(folder))


def _names(folder: Path) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208 - pathlib raises if a process exits during the listing
    return []


def _flags(descriptor: Path) -> int:
    """Returns the flags that a file was opened with, from /proc/PID/fdinfo/N."""
    for line in (descriptor.parents[1] / "fdinfo" / descriptor.name).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0

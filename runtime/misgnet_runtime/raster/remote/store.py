"""Keeps the fetched bytes of a file, so that none is fetched twice; pure arithmetic on byte ranges."""

from __future__ import annotations

import tempfile
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Lock

from misgnet_runtime.storage.atomic import resumable_errors

_IN_MEMORY = 32 << 20  # bytes; more of them are kept in an unnamed file in the temporary folder
_WASTE = 1 / 8  # share of bytes that may be fetched in vain to save requests
_MOST_GAP = 1 << 16  # bytes between two ranges that are fetched together
Range = tuple[int, int]  # first byte, and the one after the last


def merged(ranges: Iterable[Range], most: int) -> list[Range]:
    """Merges ranges that overlap or almost touch, and splits those of more than ``most`` bytes.

    The bytes between merged ranges are at most an eighth of those that were asked for.
    """
    found: list[list[int]] = []
    wanted = 0  # bytes of the last range in ``found`` that were asked for
    for start, stop in sorted(ranges):
        if stop <= start:
            continue
        length = stop - start
        if found:
            last = found[-1]
            gap = start - last[1]
            wasted = last[1] - last[0] - wanted + max(gap, 0)
            if gap <= _MOST_GAP and wasted <= _WASTE * (wanted + length):
                wanted += max(0, stop - max(start, last[1]))
                last[1] = max(last[1], stop)
                continue
        found.append([start, stop])
        wanted = length
    return [part for start, stop in found for part in _split(start, stop, most)]


def _split(start: int, stop: int, most: int) -> Iterator[Range]:
    """Yields equal parts of a range, of at most ``most`` bytes."""
    count = -(-(stop - start) // most)
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return pairwise(edges)


class Store:
    """The bytes of a file that were fetched. Several threads may use it at once."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by close()
        self._parts: list[tuple[int, int, int]] = []  # start and stop in the fetched file, and position in this one
        self._end = 0
        self._lock = Lock()

    def close(self) -> None:
        self._file.close()

    def missing(self, start: int, stop: int) -> list[Range]:
        """Returns the parts of a range that are not kept."""
        with self._lock:
            return self._missing(start, stop)

    def add(self, start: int, content: bytes) -> None:
        """Keeps the bytes at ``start`` that are not kept yet; raises StorageError if the disk is full."""
        with self._lock, resumable_errors(Path(tempfile.gettempdir())):
            for first, stop in self._missing(start, start + len(content)):
                self._file.seek(self._end)
                self._file.write(memoryview(content)[first - start : stop - start])
                insort(self._parts, (first, stop, self._end))
                self._end += stop - first

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a range that is kept."""
        found = []
        with self._lock, resumable_errors(Path(tempfile.gettempdir())):
            for first, end, at in self._overlapping(start, stop):
                begin = max(first, start)
                self._file.seek(at + begin - first)
                found.append(self._file.read(min(end, stop) - begin))
        return b"".join(found)

    def _missing(self, start: int, stop: int) -> list[Range]:
        found, at = [], start
        for first, end, _ in self._overlapping(start, stop):
            if first > at:
                found.append((at, first))
            at = end
        return [*found, (at, stop)] if at < stop else found

    def _overlapping(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        index = max(0, bisect_right(self._parts, (start, 1 << 63, 0)) - 1)
        while index < len(self._parts) and self._parts[index][0] < stop:
            if self._parts[index][1] > start:
                yield self._parts[index]
            index += 1

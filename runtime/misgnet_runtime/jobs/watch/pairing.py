"""Which files of a folder are a pair: NAME_before.EXT and NAME_after.EXT."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from stat import S_ISREG
from typing import Literal

from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import option

Kind = Literal["scene", "image"]
KINDS: Mapping[str, Kind] = {".tif": "scene", ".tiff": "scene", ".png": "image", ".jpg": "image", ".jpeg": "image"}


@dataclass(frozen=True, kw_only=True)
class File:
    """A file as a look at the folder finds it: size in bytes, times of the last write and of the last change in ns."""

    path: Path
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int = field(compare=False)  # the system's own numbers: some network disks give others at every look
    inode: int = field(compare=False)

    @classmethod
    def of(cls, path: Path) -> File | None:
        """None where there is no regular file; a link counts as none."""
        with suppress(OSError):
            found = path.lstat()
            if S_ISREG(found.st_mode):
                return cls(
                    path=path, size=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns,
                    device=found.st_dev, inode=found.st_ino,
                )  # fmt: skip
        return None


@dataclass(frozen=True)
class FilePair:
    """Two dates of a place that are both there. ``marked``: when a marker was made, in ns; None without one."""

    name: str
    kind: Kind
    before: File
    after: File
    marked: int | None

    @property
    def files(self) -> tuple[File, File]:
        return self.before, self.after

    @property
    def arrived(self) -> int:
        """When the last of its files was written or got its name, or the marker was made; ns by the files' clock."""
        return max(self.before.ctime_ns, self.after.ctime_ns, self.marked or 0)

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """What a journal knows both files by."""
        return tuple((file.path.name, file.size, file.mtime_ns) for file in self.files)

    def is_as_found(self) -> bool:
        """Whether both files still are what they were when the folder was looked at."""
        return all(File.of(file.path) == file for file in self.files)


@dataclass(frozen=True)
class Naming:
    """How a pair's names end before their extension, and how its marker's name ends, where there must be one."""

    before: str = option("_before", name="before-suffix", help="How names of the earlier date end, before .EXT.")
    after: str = option("_after", name="after-suffix", help="How names of the later date end, before .EXT.")
    marker: str | None = option(None, help=".done: take pairs that have NAME.done, or FILE.done of both.")

    def check(self) -> None:
        """UsageError for suffixes that do not tell a before from an after, or a marker from an image."""
        if not self.before or not self.after or self.before.endswith(self.after) or self.after.endswith(self.before):
            raise UsageError(
                f"--before-suffix is '{self.before}' and --after-suffix '{self.after}'; choose two of which neither is "
                "the end of the other"
            )
        if self.marker is not None and (not self.marker or PurePath(f"x{self.marker}").suffix.lower() in KINDS):
            raise UsageError(f"--marker is '{self.marker}'; it is the end of a name that no image has, like .done")

    def pairs(self, folder: Path, names: Iterable[str]) -> tuple[list[FilePair], list[str]]:
        """The pairs among a folder's files, by name, and a remark on each that is not clear.

        Names that begin with a dot, or have another extension than an image's (.part, .tmp, .crdownload), are those
        of files that are being written: they are never taken.
        """
        everything = set(names)
        dates: tuple[dict[str, list[str]], ...] = ({}, {})
        for file in sorted(everything):
            stem = file.rpartition(".")[0]
            if not file.startswith(".") and _kind(file) is not None:
                for found, end in zip(dates, (self.before, self.after), strict=True):
                    if stem.endswith(end) and stem != end:
                        found.setdefault(stem.removesuffix(end), []).append(file)
        pairs, remarks = [], []
        for name in sorted(dates[0].keys() & dates[1].keys()):
            files = dates[0][name] + dates[1][name]
            if remark := _unclear(files):
                remarks.append(remark)
            elif pair := self._pair(name, folder, files, everything):
                pairs.append(pair)
            elif links := [file for file in files if _is_link(folder / file)]:
                remarks.append(
                    f"{', '.join(map(ascii, links))}: links are not followed; move the files themselves here"
                )
        return pairs, remarks

    def _pair(self, name: str, folder: Path, files: list[str], everything: set[str]) -> FilePair | None:
        kind, before, after = _kind(files[0]), *(File.of(folder / file) for file in files)
        if kind is None or before is None or after is None:  # gone since
            return None
        return FilePair(name, kind, before, after, self._marked(name, folder, files, everything))

    def _marked(self, name: str, folder: Path, files: list[str], everything: set[str]) -> int | None:
        """When the pair's marker was made, or the later one of both files' markers."""
        if self.marker is None:
            return None
        for markers in ([name + self.marker], [file + self.marker for file in files]):
            found = [File.of(folder / marker) for marker in markers if marker in everything]
            times = [file.ctime_ns for file in found if file is not None]
            if len(times) == len(markers):
                return max(times)
        return None


def _is_link(path: Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114 - it raises nothing, whatever the folder's rights are


def _kind(file: str) -> Kind | None:
    """By its extension; None for what is no image."""
    return KINDS.get(f".{file.rpartition('.')[2].lower()}")


def _unclear(files: list[str]) -> str | None:
    """Why files of one name are no pair; None where they are one."""
    listed = ", ".join(map(ascii, files))
    if len(files) > 2:
        return f"{listed} have one name; which are the pair is not clear, and none is taken"
    if len(set(map(_kind, files))) > 1:
        return f"{listed} are a GeoTIFF and another image; they are not taken for a pair"
    try:
        os.fsencode("".join(files)).decode()
    except UnicodeDecodeError:
        return f"{listed} have names that are not UTF-8; rename them"
    return None

"""Finds the pairs in a folder: NAME_before.EXT and NAME_after.EXT."""

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
    """State of a file when the folder was scanned."""

    path: Path
    # In bytes.
    size: int
    # Modification and status change times in ns.
    mtime_ns: int
    ctime_ns: int
    # Not compared: some network disks report other numbers at every scan.
    device: int = field(compare=False)
    inode: int = field(compare=False)

    @classmethod
    def of(cls, path: Path) -> File | None:
        """Returns the state of a file; None unless it is a regular file. A link is not one."""
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
    """Two files that form a pair."""

    name: str
    kind: Kind
    before: File
    after: File
    # When the marker file was made, in ns; None if there is none.
    marked: int | None

    @property
    def files(self) -> tuple[File, File]:
        return self.before, self.after

    @property
    def arrived(self) -> int:
        """Returns when the last file was written or renamed, or the marker was made; ns by the files' clock."""
        return max(self.before.ctime_ns, self.after.ctime_ns, self.marked or 0)

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Returns name, size and modification time of both files, as the journal stores them."""
        return tuple((file.path.name, file.size, file.mtime_ns) for file in self.files)

    def is_as_found(self) -> bool:
        """Returns whether both files are unchanged since the folder was scanned."""
        return all(File.of(file.path) == file for file in self.files)


@dataclass(frozen=True)
class Naming:
    """Suffixes of the file names of pairs and of their markers."""

    before: str = option(
        "_before", name="before-suffix", help="Suffix of the earlier date's file names, before the extension."
    )
    after: str = option(
        "_after", name="after-suffix", help="Suffix of the later date's file names, before the extension."
    )
    marker: str | None = option(
        None, help="Suffix of marker files, such as .done: process a pair once NAME.done, or both FILE.done, exist "
        "(default: use --settle).",
    )  # fmt: skip

    def check(self) -> None:
        """Raises UsageError if the suffixes are ambiguous, or the marker could be an image."""
        if not self.before or not self.after or self.before.endswith(self.after) or self.after.endswith(self.before):
            raise UsageError(
                f"--before-suffix is '{self.before}' and --after-suffix is '{self.after}'; neither may be empty or end "
                "with the other"
            )
        if self.marker is not None and (not self.marker or PurePath(f"x{self.marker}").suffix.lower() in KINDS):
            raise UsageError(f"--marker is '{self.marker}'; expected a suffix that no image has, such as .done")

    def pairs(self, folder: Path, names: Iterable[str]) -> tuple[list[FilePair], list[str]]:
        """Returns the pairs in a folder, sorted by name, and a remark for each ambiguous one.

        Files whose names start with a dot or lack an image extension (.part, .tmp, .crdownload) are ignored: they may
        still be being written.

        Args:
            folder: The folder.
            names: The names of its files.
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
                remarks.append(f"{', '.join(map(ascii, links))}: links are not followed; move the actual files here")
        return pairs, remarks

    def _pair(self, name: str, folder: Path, files: list[str], everything: set[str]) -> FilePair | None:
        kind, before, after = _kind(files[0]), *(File.of(folder / file) for file in files)
        if kind is None or before is None or after is None:  # removed since the scan
            return None
        return FilePair(name, kind, before, after, self._marked(name, folder, files, everything))

    def _marked(self, name: str, folder: Path, files: list[str], everything: set[str]) -> int | None:
        """Returns when the pair's marker was made, or the later of both files' markers; None if there is none."""
        if self.marker is None:
            return None
        for markers in ([name + self.marker], [file + self.marker for file in files]):
            found = [File.of(folder / marker) for marker in markers if marker in everything]
            times = [file.ctime_ns for file in found if file is not None]
            if len(times) == len(markers):
                return max(times)
        return None


def _is_link(path: Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114 - unlike pathlib, it does not raise if permission is denied


def _kind(file: str) -> Kind | None:
    """Returns the kind of a file by its extension; None unless it is an image."""
    return KINDS.get(f".{file.rpartition('.')[2].lower()}")


def _unclear(files: list[str]) -> str | None:
    """Returns why files of the same name are not a pair; None if they are one."""
    listed = ", ".join(map(ascii, files))
    if len(files) > 2:
        return f"{listed}: more than two files of one name; remove one to make the pair unambiguous"
    if len(set(map(_kind, files))) > 1:
        return f"{listed}: not a pair, because only one is a GeoTIFF"
    try:
        os.fsencode("".join(files)).decode()
    except UnicodeDecodeError:
        return f"{listed}: the names are not UTF-8; rename the files"
    return None

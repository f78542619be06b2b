"""The files of a bundle's folder as they were checked: a later read gives the same bytes or fails."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from misgnet_runtime.bundle.manifest import FileEntry
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.files import OpenFolder

_PART = 1 << 20
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class CheckedFiles:
    """A folder that stays open, so that it may be renamed or replaced meanwhile, and the digests of its files.

    Reading compares the very bytes that it returns, so that files may also be overwritten.
    Raises InputError where the folder cannot be opened.
    """

    manifest_sha256: str | None = None  # identifies the bundle; None while it is being built

    def __init__(self, root: Path, name: Path | None = None) -> None:
        """``name``: how the user calls it. Until :meth:`expect` was called nothing is compared."""
        self.root, self.name = root, name or root
        self._entries: dict[str, FileEntry] | None = None
        try:
            self._folder = OpenFolder(root)
        except OSError as error:
            raise InputError(f"bundle {self.name} cannot be read: {error.strerror}") from error

    def expect(self, entries: Iterable[FileEntry], manifest_sha256: str) -> None:
        """From now on reading compares with ``entries``, those of the manifest."""
        self._entries = {entry.path: entry for entry in entries}
        self.manifest_sha256 = manifest_sha256

    def read(self, relative: str) -> bytes:
        """Return the bytes of a file.

        Raises InputError where they are not those that were checked, or the manifest lists no such file.
        """
        if self._entries is None:
            return self.head(relative)
        entry = self._entries.get(relative)
        if entry is None:
            raise InputError(f"bundle {self.name} does not list the file '{relative}'")
        data = self.head(relative, entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise InputError(
                f"bundle {self.name}: '{relative}' has changed since the bundle was checked; run the command again"
            )
        return data

    def head(self, relative: str, limit: int = -2) -> bytes:
        """The bytes of a file without a check: at most ``limit`` and one more, all of them by default."""
        with self._opened(relative) as handle, os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(limit + 1)

    def matches(self, entry: FileEntry) -> bool:
        """Whether a file of any size has the size and the digest of ``entry``."""
        total, left = hashlib.sha256(), entry.size + 1
        with self._opened(entry.path) as handle:
            while left > 0 and (part := os.read(handle, min(left, _PART))):
                total.update(part)
                left -= len(part)
        return left == 1 and total.hexdigest() == entry.sha256

    @contextmanager
    def _opened(self, relative: str) -> Iterator[int]:
        """A regular file below the folder, none of whose parts is a link."""
        try:
            with ExitStack() as opened:
                handle = self._folder.open_file(relative)
                opened.callback(os.close, handle)
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise FileNotFoundError(errno.ENOENT, "not a regular file")
                yield handle
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            if getattr(error, "errno", None) in _NO_FILE:
                problem = f"lacks the file '{relative}', or has a link in its place"
            else:
                problem = f"'{relative}' cannot be read: {error}"
            raise InputError(f"bundle {self.name}: {problem}") from error

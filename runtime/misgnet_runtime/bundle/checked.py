"""Reads a bundle's files after they were checked: each read returns the checked bytes or fails."""

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
    """An open folder and the digests of its files.

    The folder stays open, so it may be renamed or replaced meanwhile. Each read compares the bytes that it returns with
    their digest, so files may also be overwritten: then the read fails.
    """

    manifest_sha256: str | None = None  # identifies the bundle; None while it is being built

    def __init__(self, root: Path, name: Path | None = None) -> None:
        """Opens the folder; reads are not compared with digests until :meth:`expect` is called.

        Args:
            root: The folder.
            name: The path that the user gave, for messages; default: ``root``.

        Raises:
            InputError: The folder cannot be opened.
        """
        self.root, self.name = root, name or root
        self._entries: dict[str, FileEntry] | None = None
        try:
            self._folder = OpenFolder(root)
        except OSError as error:
            raise InputError(f"bundle {self.name} cannot be read: {error.strerror}") from error

    def expect(self, entries: Iterable[FileEntry], manifest_sha256: str) -> None:
        """Makes all later reads compare with ``entries`` of the manifest."""
        self._entries = {entry.path: entry for entry in entries}
        self.manifest_sha256 = manifest_sha256

    def read(self, relative: str) -> bytes:
        """Returns the bytes of a file.

        Raises:
            InputError: The file has changed since it was checked, or the manifest does not list it.
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
        """Returns at most ``limit + 1`` bytes of a file without a check; default: all bytes."""
        with self._opened(relative) as handle, os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(limit + 1)

    def matches(self, entry: FileEntry) -> bool:
        """Returns whether a file has the size and digest of ``entry``; reads it in parts."""
        total, left = hashlib.sha256(), entry.size + 1
        with self._opened(entry.path) as handle:
            while left > 0 and (part := os.read(handle, min(left, _PART))):
                total.update(part)
                left -= len(part)
        return left == 1 and total.hexdigest() == entry.sha256

    @contextmanager
    def _opened(self, relative: str) -> Iterator[int]:
        """Opens a regular file below the folder; refuses links in any part of its path."""
        try:
            with ExitStack() as opened:
                handle = self._folder.open_file(relative)
                opened.callback(os.close, handle)
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise FileNotFoundError(errno.ENOENT, "not a regular file")
                yield handle
        except (OSError, ValueError) as error:  # ValueError: an invalid file name
            if getattr(error, "errno", None) in _NO_FILE:
                problem = f"the file '{relative}' is missing, a link, or not a regular file"
            else:
                problem = f"'{relative}' cannot be read: {error}"
            raise InputError(f"bundle {self.name}: {problem}") from error

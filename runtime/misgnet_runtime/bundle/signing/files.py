"""Compares a bundle's folder with its signed digests, and copies it if other users could change it afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from misgnet_runtime.bundle.fields import SIGNATURE
from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.limits import BUNDLE_BYTES, BUNDLE_FILES, SIGNATURE_BYTES
from misgnet_runtime.storage.atomic import resumable_errors
from misgnet_runtime.storage.files import open_unlinked
from misgnet_runtime.storage.permissions import exchangeable, only_ours

_PART = 1 << 20


def read_signature(root: Path) -> bytes:
    """Returns the signature file's bytes. Raises InputError if it is missing, not a regular file, or too large."""
    parts: list[bytes] = []
    try:
        _read(root / SIGNATURE, SIGNATURE_BYTES, parts.append)
    except FileNotFoundError as error:
        raise InputError(f"it is not signed: it has no {SIGNATURE}; misgnet-export sign writes it") from error
    return b"".join(parts)


def check_names(root: Path, digests: Mapping[str, str]) -> None:
    """Raises InputError unless ``root`` holds exactly the files of ``digests`` and the signature, and no links."""
    missing = {*digests, SIGNATURE}
    size = 0
    for number, (name, entry) in enumerate(_entries(root)):
        if number >= BUNDLE_FILES:
            raise InputError(f"it holds more than {BUNDLE_FILES} files and folders, which is the limit")
        if entry.is_symlink():
            raise InputError(f"{name!r} is a link, which bundles must not contain")
        if entry.is_dir(follow_symlinks=False):
            continue
        if name not in missing:
            raise InputError(f"it holds {name!r}, which was not signed")
        missing.remove(name)
        size += entry.stat(follow_symlinks=False).st_size
        if size > BUNDLE_BYTES:
            raise InputError(f"its files have more than {BUNDLE_BYTES} bytes, which is the limit")
    if missing:
        raise InputError(f"it lacks {min(missing)!r}, which was signed")


def is_settled(root: Path, state: Path) -> bool:
    """Returns whether only this user and root can change files of ``root`` from now on.

    Returns False for files on another disk than ``state``: such a disk may be removable or remote, and then its
    permissions may be changed elsewhere.
    """
    try:
        paths = [root, *(root / name for name, _ in _entries(root))]
        device = state.stat().st_dev
        here = all(path.lstat().st_dev == device for path in paths)
        return here and only_ours(paths) and exchangeable(root) is None
    except OSError:
        return False


def check_digests(root: Path, digests: Mapping[str, str]) -> None:
    """Raises InputError if a file does not match its signed digest."""
    for name, digest in digests.items():
        _check(name, digest, hash_file(root / name))


def copy_checked(root: Path, digests: Mapping[str, str], target: Path) -> None:
    """Copies the files below ``root`` to ``target`` and compares the copied bytes with the signed digests.

    Each file is read only once.

    Raises:
        InputError: A file does not match its signed digest.
        StorageError: The disk of ``target`` is full.
    """
    sizes = {name: (root / name).lstat().st_size for name in digests}
    room = shutil.disk_usage(target).free
    if sum(sizes.values()) > room:
        raise StorageError(
            f"other users could change it in its folder, so it is copied to {target.parent} first; that needs "
            f"{sum(sizes.values())} bytes, but only {room} are free"
        )
    for name, digest in digests.items():
        path = target / name
        with resumable_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                _check(name, digest, hash_file(root / name, sizes[name], file.write))


def read_checked(path: Path, digest: str, limit: int) -> bytes:
    """Returns the bytes of a file. Raises InputError if they do not match the signed digest."""
    parts: list[bytes] = []
    _check(path.name, digest, hash_file(path, limit, parts.append))
    return b"".join(parts)


def hash_file(path: Path, limit: int | None = None, take: Callable[[bytes], object] | None = None) -> str:
    """Returns the SHA-256 of a file, and passes its bytes to ``take`` in parts.

    Raises:
        InputError: The file is missing, a link, not a regular file, or larger than ``limit``.
    """
    total = hashlib.sha256()

    def both(part: bytes) -> None:
        total.update(part)
        if take:
            take(part)

    try:
        _read(path, limit, both)
    except FileNotFoundError as error:
        raise InputError(f"it lacks {path.name!r}, which was signed") from error
    return total.hexdigest()


def _check(name: str, expected: str, found: str) -> None:
    if found != expected:
        raise InputError(f"{name!r} does not match its signed digest")


def _read(path: Path, limit: int | None, take: Callable[[bytes], object]) -> None:
    """Raises FileNotFoundError; InputError for a link, a file over ``limit`` bytes, or anything but a regular file."""
    try:
        handle = open_unlinked(path)  # a link could point to a file that someone else chose
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path.name!r} cannot be read, or is a link: {error.strerror}") from error
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InputError(f"{path.name!r} is not a regular file")
        done = 0
        while part := file.read(_PART):
            done += len(part)
            if limit is not None and done > limit:
                raise InputError(f"{path.name!r} is larger than {limit} bytes, or grew while it was read")
            take(part)


def _entries(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yields everything below ``root`` with its relative path; does not follow links."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as found:
                for entry in found:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    yield name, entry
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(name)
        except OSError as error:
            raise InputError(f"folder {folder or '.'!r} cannot be read: {error.strerror}") from error

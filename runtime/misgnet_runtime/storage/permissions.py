"""Checks whether other users could change a file or folder; private folders and policy files depend on this.

Root always can. On Windows, Python cannot read owners and modes, so nothing is checked; a user's profile is protected
by its own access control lists.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from misgnet_runtime.storage.files import READ

OWNERS = hasattr(os, "geteuid")


def is_mine(status: os.stat_result) -> bool:
    """Returns whether this user owns the file with ``status``."""
    return not OWNERS or status.st_uid == os.geteuid()


def only_ours(paths: Iterable[Path]) -> bool:
    """Returns whether no user except this one and root can write any of ``paths``. Raises OSError."""
    return all(_is_ours(path.lstat()) for path in paths)


def exchangeable(path: Path) -> Path | None:
    """Returns the first part of ``path`` (parents first, links included) that another user could replace, or None."""
    return next((entry for entry, status in _way_to(path) if not _is_ours(status, may_be_shared=True)), None)


def read_protected(path: Path, limit: int) -> bytes:
    """Reads a regular file if only this user and root can change or replace it or any part of its path.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file is not regular, too large, or can be changed by another user.
    """
    handle = os.open(path, READ)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if not _is_ours(status):
            raise ValueError(f"another user could change it; run: chown root {path} && chmod 644 {path}")
        if entry := exchangeable(path):
            raise ValueError(f"another user could replace it: {entry} belongs to them or is writable by them")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    return data


def _is_ours(status: os.stat_result, may_be_shared: bool = False) -> bool:
    """Returns whether only this user and root can write.

    ``may_be_shared`` also accepts a folder like /tmp, in which users can replace only their own entries.
    """
    if not OWNERS:
        return True
    if status.st_uid not in (0, os.geteuid()):
        return False
    if may_be_shared and status.st_mode & stat.S_ISVTX:
        return True
    others = status.st_mode & stat.S_IWOTH
    group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    return not others and not group


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields every folder and link that the system follows to open ``path``, which must not have circular links.

    A link's mode is ignored: its owner, and users who can write in its folder, may change it.
    """
    first, *pending = path.absolute().parts
    current = Path(first)
    yield current, current.stat()
    while pending:
        part = pending.pop(0)
        entry = current.parent if part == ".." else current / part
        status = entry.lstat()
        if stat.S_ISLNK(status.st_mode):
            yield entry, os.stat_result((stat.S_IFLNK | 0o644, *status[1:10]))
            target = entry.readlink()
            pending = [*target.parts[bool(target.anchor) :], *pending]
            current = Path(target.anchor) if target.is_absolute() else current
        else:
            yield entry, status
            current = entry


@cache
def _is_own_group(gid: int) -> bool:
    """Returns whether a group is root's or this user's own (most distributions create one), without other members."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid in (0, user.pw_gid) and group.gr_name in ("root", user.pw_name) and set(group.gr_mem) <= {user.pw_name}

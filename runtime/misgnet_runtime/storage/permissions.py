"""Who else could change a file or a folder: what the promises of private folders and policy files rest on.

Root can, always. Windows states neither owners nor modes where Python looks for them: there nothing is checked, and
what lies in a user's profile is closed to others by lists of its own.
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
    """Whether this user owns what has that status."""
    return not OWNERS or status.st_uid == os.geteuid()


def only_ours(paths: Iterable[Path]) -> bool:
    """Whether none of ``paths`` can be written by another user; root can, always. Raises OSError."""
    return all(_is_ours(path.lstat()) for path in paths)


def exchangeable(path: Path) -> Path | None:
    """Return the first of what leads to ``path``, itself included, that another user could exchange; None for none."""
    return next((entry for entry, status in _way_to(path) if not _is_ours(status, may_be_shared=True)), None)


def read_protected(path: Path, limit: int) -> bytes:
    """Read a regular file that only this user and root can change or replace, or anything on the way to it.

    Raises OSError where the system refuses, and ValueError that says what is wrong with the file.
    """
    handle = os.open(path, READ)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if not _is_ours(status):
            raise ValueError(f"another user may change it; run: chown root {path} && chmod 644 {path}")
        if entry := exchangeable(path):
            raise ValueError(f"another user may replace it: {entry} is theirs, or open to them")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    return data


def _is_ours(status: os.stat_result, may_be_shared: bool = False) -> bool:
    """``may_be_shared``: a folder like /tmp, in which each user's entries are their own, will do."""
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
    """Yield every folder and every link that the system follows to open ``path``, which has no endless links.

    A link has no rights of its own: who may change it is who owns it, or who may write in its folder.
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
    """Whether a group has no member but this user, as most distributions give each; or is root's."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid in (0, user.pw_gid) and group.gr_name in ("root", user.pw_name) and set(group.gr_mem) <= {user.pw_name}

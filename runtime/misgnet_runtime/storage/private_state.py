"""Who else could write here: what the promises of a folder rest on."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


def unsafe_ancestor(folder: Path) -> Path | None:
    """The nearest folder above ``folder``, an absolute path without links, in which another user could replace it."""
    return next((parent for parent in folder.parents if not _is_ours(parent.stat(), may_be_shared=True)), None)


def only_ours(paths: Iterable[Path]) -> bool:
    """Whether none of ``paths`` can be written by another user; root can, always. Raises OSError."""
    return all(_is_ours(path.lstat()) for path in paths)


def _is_ours(status: os.stat_result, may_be_shared: bool = False) -> bool:
    """``may_be_shared``: a folder like /tmp, in which each user's entries are their own, will do."""
    if status.st_uid not in (0, os.geteuid()):
        return False
    if may_be_shared and status.st_mode & stat.S_ISVTX:
        return True
    others = status.st_mode & stat.S_IWOTH
    group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    return not others and not group


def read_protected(path: Path, limit: int) -> bytes:
    """Read a regular file that only this user and root can change or replace, or anything on the way to it.

    Raises OSError where the system refuses, and ValueError that says what is wrong with the file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not blocking: a named pipe would wait for ever
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if not _is_ours(status):
            raise ValueError(f"another user may change it; run: chown root {path} && chmod 644 {path}")
        for entry, entry_status in _way_to(path):
            if not _is_ours(entry_status, may_be_shared=True):
                raise ValueError(f"another user may replace it: {entry} is theirs, or open to them")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    return data


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every folder and every link that the system follows to open ``path``, which has no endless links.

    A link has no rights of its own: who may change it is who owns it, or who may write in its folder.
    """
    current, pending = Path("/"), list(path.absolute().parts[1:])
    yield current, current.stat()
    while pending:
        part = pending.pop(0)
        entry = current.parent if part == ".." else current / part
        status = entry.lstat()
        if stat.S_ISLNK(status.st_mode):
            yield entry, os.stat_result((stat.S_IFLNK | 0o644, *status[1:10]))
            target = entry.readlink()
            pending = [*(part for part in target.parts if part != "/"), *pending]
            current = Path("/") if target.is_absolute() else current
        else:
            yield entry, status
            current = entry


@cache
def _is_own_group(gid: int) -> bool:
    """Whether a group has no member but this user, as most distributions give each; or is root's."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid in (0, user.pw_gid) and group.gr_name in ("root", user.pw_name) and set(group.gr_mem) <= {user.pw_name}

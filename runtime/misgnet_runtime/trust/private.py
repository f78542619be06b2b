"""Who else could write here: what the promises of a folder rest on."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
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


@cache
def _is_own_group(gid: int) -> bool:
    """Whether a group has no member but this user, as most distributions give each; or is root's."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid in (0, user.pw_gid) and group.gr_name in ("root", user.pw_name) and set(group.gr_mem) <= {user.pw_name}

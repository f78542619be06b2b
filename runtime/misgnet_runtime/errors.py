"""What can go wrong, and the exit code that each kind gives a command.

MisgnetError            1  a bug, unless it is one of the kinds below
├── UsageError          2  the command was called wrongly (an output exists, an unknown target)
├── GateFailed          3  the numbers are outside what was allowed
├── InputError          4  a file or folder is not what it must be
│   ├── StorageError    4  the disk of a result has no room, or refuses
│   ├── LockTimeoutError 4  another process holds a lock for longer than --lock-timeout
│   └── UnreadableError 4  more of a date's raster is unreadable than is allowed
├── UnavailableError    5  a device, driver or library is missing on this machine
│   └── EngineError     5  an engine that was open failed in the middle of its work
└── ScenesFailed        6  some of many scenes failed, and all others are done

A message says what was asked, what was found, and what to do next, on one line.
"""

from __future__ import annotations


class MisgnetError(Exception):
    """Base of every error that a user may meet; ``exit_code`` is what a command ends with."""

    exit_code = 1


class UsageError(MisgnetError):
    exit_code = 2


class GateFailed(MisgnetError):  # noqa: N818 - not every one is a bug
    exit_code = 3


class InputError(MisgnetError):
    exit_code = 4


class StorageError(InputError):
    """Nothing is wrong with what was read: the same call may succeed later."""


class LockTimeoutError(InputError):
    """Another process held a lock for longer than ``--lock-timeout``: the same call may succeed later."""


class UnreadableError(InputError):
    """A date's raster is truncated, unfinished or damaged beyond ``--max-unreadable``."""


class UnavailableError(MisgnetError):
    exit_code = 5


class EngineError(UnavailableError):
    """Nothing is known to be wrong with what the engine was given: opened again, it may work."""


class ScenesFailed(MisgnetError):  # noqa: N818 - the others are done
    exit_code = 6

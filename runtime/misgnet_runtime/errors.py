"""Defines the errors that this project raises on purpose, and the exit code of each.

MisgnetError            1  a bug, unless it is one of the classes below
├── UsageError          2  the command was called incorrectly (an output exists, an unknown target)
├── GateFailed          3  a measured value is outside the allowed limit
├── InputError          4  a file or folder is missing, damaged or invalid
│   ├── StorageError    4  a result cannot be written: the disk is full or refuses access
│   ├── NetworkError    4  a server cannot be reached, or has a temporary error, after all retries
│   ├── LockTimeoutError 4  another process held a lock for longer than --lock-timeout
│   └── UnreadableError 4  more of one date's raster is unreadable than --max-unreadable allows
├── UnavailableError    5  a device, driver or library is missing on this machine
│   └── EngineError     5  an open engine failed during inference
└── ScenesFailed        6  some scenes of a batch failed; all others are finished

Each message is one line: what was asked, what was found, and what to do next.
"""

from __future__ import annotations


class MisgnetError(Exception):
    """Base class of all errors that this project raises on purpose."""

    # The exit code of a command that ends with this error.
    exit_code = 1


class UsageError(MisgnetError):
    """Reports an incorrect call: an unknown name, an invalid value, or an output that already exists."""

    exit_code = 2


class GateFailed(MisgnetError):  # noqa: N818 - a result outside its limit is not always a bug
    """Reports a measured value outside its allowed limit, or an output that is NaN or Inf."""

    exit_code = 3


class InputError(MisgnetError):
    """Reports a file or folder that is missing, damaged or invalid."""

    exit_code = 4


class StorageError(InputError):
    """Reports a disk that is full or refuses access. The inputs are valid: the same call may succeed later."""


class NetworkError(InputError):
    """Reports a server that cannot be reached or has a temporary error. The same call may succeed later."""


class LockTimeoutError(InputError):
    """Reports a lock that another process held for longer than ``--lock-timeout``. The same call may succeed later."""


class UnreadableError(InputError):
    """Reports that one date's raster is truncated, unfinished or damaged beyond ``--max-unreadable``."""


class UnavailableError(MisgnetError):
    """Reports a device, driver or library that is missing on this machine.

    Attributes:
        short: The reason in a few words, for lists: "no NVIDIA driver" (default: the message's first clause).
    """

    exit_code = 5

    def __init__(self, message: str = "", *, short: str = "") -> None:
        super().__init__(message)
        self.short = short or message.partition(";")[0].partition(": ")[0]


class EngineError(UnavailableError):
    """Reports an open engine that failed. Its inputs are not known to be wrong: reopened, the engine may work."""


class ScenesFailed(MisgnetError):  # noqa: N818 - all other scenes are finished
    """Reports that some scenes of a batch failed; all others are finished."""

    exit_code = 6

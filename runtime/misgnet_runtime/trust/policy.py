"""What the operator requires of every bundle that this process reads. Cheap to import."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UsageError

VARIABLE = "MISGNET_REQUIRE_SIGNATURE"


@dataclass(frozen=True)
class Trust:
    """``key``: a PEM file of public keys, certificates or both, any of which may have signed.

    ``allow_older``: also a bundle that is older than the newest accepted here, or expired.
    """

    key: Path
    allow_older: bool = False


@dataclass
class _CommandLine:
    key: Path | None = None
    allow_older: bool = False


_command_line = _CommandLine()  # of the process, not of a context: threads must not read a bundle without it


def use_key(key: Path | None) -> Path | None:
    """The callback of ``--require-signature``."""
    _command_line.key = key
    return key


def use_allow_older(allow_older: bool) -> bool:
    """The callback of ``--allow-older``."""
    _command_line.allow_older = allow_older
    return allow_older


def required(key: str | os.PathLike[str] | None = None, allow_older: bool = False) -> Trust | None:
    """What a bundle must meet: ``key`` of a call, else of the command line, else of $MISGNET_REQUIRE_SIGNATURE.

    None where nothing is required. Raises UsageError where an older bundle is allowed, but no key is there.
    """
    given = _command_line.key if key is None else key  # an empty name is refused as no key, not taken for none asked
    found = os.environ.get(VARIABLE) or None if given is None else given
    older = allow_older or _command_line.allow_older
    if found is not None:
        return Trust(Path(found), older)
    if older:
        raise UsageError(f"older bundles are refused only where a signature is required; give a key, or set {VARIABLE}")
    return None


def required_elsewhere() -> Trust | None:
    """As :func:`required`, for a process that knows neither this one's command line nor its folder."""
    found = required()
    return None if found is None else Trust(found.key.absolute(), found.allow_older)

"""Determines the signature that this process requires of every bundle. Importing this module is cheap.

A key comes from a call, the command line or the environment; policy files come from /etc and from $MISGNET_POLICY
(``policy_file``). A bundle must satisfy every source, so a command line can only tighten a policy file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UsageError

VARIABLE = "MISGNET_REQUIRE_SIGNATURE"
POLICY_VARIABLE = "MISGNET_POLICY"
SYSTEM_POLICY = Path("/etc/misgnet/policy.toml")  # no option or variable changes this path


@dataclass(frozen=True)
class Trust:
    """The required signature, in addition to the policy files of the machine that checks it."""

    key: Path | None  # PEM of public keys and certificates, any of which may have signed; None: policy files only
    allow_older: bool = False  # also accept an expired or older bundle, if every policy file permits that
    policy: Path | None = None  # an additional policy file, for a process without this one's environment


@dataclass
class _CommandLine:
    key: Path | None = None
    allow_older: bool = False


_command_line = _CommandLine()  # of the process, not of a context: it must apply in all threads


def use_key(key: Path | None) -> Path | None:
    """Sets the key of this process; the callback of ``--require-signature``."""
    _command_line.key = key
    return key


def use_allow_older(allow_older: bool) -> bool:
    """Sets whether this process accepts older bundles; the callback of ``--allow-older``."""
    _command_line.allow_older = allow_older
    return allow_older


def required(key: str | os.PathLike[str] | None = None, allow_older: bool = False) -> Trust | None:
    """Returns the required signature, or None if there is neither a key nor a policy file.

    Args:
        key: The key file; default: that of the command line, else of $MISGNET_REQUIRE_SIGNATURE.
        allow_older: Also accept an expired or older bundle.

    Raises:
        UsageError: A variable is set but empty, or older bundles are allowed although no signature is required.
    """
    given = _command_line.key if key is None else key  # an empty name is refused as a key, not read as no requirement
    found = _named(VARIABLE, "a key file") if given is None else Path(given)
    older = allow_older or _command_line.allow_older
    if found is not None or policy_files():
        return Trust(found, older)
    if older:
        raise UsageError(f"--allow-older needs a required signature: add --require-signature KEY, or set {VARIABLE}")
    return None


def required_elsewhere() -> Trust | None:
    """Returns :func:`required` for a process without this one's command line, environment and working directory."""
    found = required()
    if found is None:
        return None
    key, policy = found.key, _named(POLICY_VARIABLE, "a policy file")
    return Trust(key and key.absolute(), found.allow_older, policy and policy.absolute())


def policy_files(further: Path | None = None) -> list[Path]:
    """Returns the policy files that apply: the system's if it exists, and all named ones, even missing ones.

    Raises:
        UsageError: $MISGNET_POLICY is set but empty.
    """
    named = (_named(POLICY_VARIABLE, "a policy file"), further)
    found = [SYSTEM_POLICY] if _may_exist(SYSTEM_POLICY) else []
    return list(dict.fromkeys([*found, *(path for path in named if path is not None)]))


def _named(variable: str, what: str) -> Path | None:
    """Returns the path in a variable. An empty variable is an error: it is more likely a mistake in a script."""
    value = os.environ.get(variable)
    if value is None:
        return None
    if not value.strip():
        raise UsageError(f"{variable} is set, but empty; name {what}, or unset it")
    return Path(value)


def _may_exist(path: Path) -> bool:
    """Returns whether a file may exist. One that cannot be inspected may: reading it then refuses every bundle."""
    try:
        path.lstat()
    except FileNotFoundError:
        return path.parent.is_symlink() and not path.parent.exists()  # it may be on a disk that is not mounted now
    except OSError:
        pass
    return True

"""What the operator requires of every bundle that this process reads. Cheap to import.

A key comes from a call, the command line or the environment; policy files come from /etc and from $MISGNET_POLICY
(``policy_file``). Every source must be satisfied, so a command line can only tighten what a policy file requires.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UsageError

VARIABLE = "MISGNET_REQUIRE_SIGNATURE"
POLICY_VARIABLE = "MISGNET_POLICY"
SYSTEM_POLICY = Path("/etc/misgnet/policy.toml")  # no option or variable moves it


@dataclass(frozen=True)
class Trust:
    """What a bundle must meet, besides the policy files of the machine that checks it."""

    key: Path | None  # PEM of public keys and certificates, any of which may have signed; None: policy files only
    allow_older: bool = False  # accept an expired or older bundle too, where every policy file permits that
    policy: Path | None = None  # a further policy file, for a process that does not have this one's environment


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
    """Return what a bundle must meet: ``key`` of a call, else of the command line, else of $MISGNET_REQUIRE_SIGNATURE.

    Returns None where no key is given and there is no policy file. Raises UsageError for a variable that is set to
    nothing, and where older bundles are allowed although nothing is required.
    """
    given = _command_line.key if key is None else key  # an empty name is refused as a key, not taken for no requirement
    found = _named(VARIABLE, "a key file") if given is None else Path(given)
    older = allow_older or _command_line.allow_older
    if found is not None or policy_files():
        return Trust(found, older)
    if older:
        raise UsageError(f"older bundles are refused only where a signature is required; give a key, or set {VARIABLE}")
    return None


def required_elsewhere() -> Trust | None:
    """As :func:`required`, for a process without this one's command line, environment and working directory."""
    found = required()
    if found is None:
        return None
    key, policy = found.key, _named(POLICY_VARIABLE, "a policy file")
    return Trust(key and key.absolute(), found.allow_older, policy and policy.absolute())


def policy_files(further: Path | None = None) -> list[Path]:
    """Return the policy files that apply: the system's where it exists, and those named, whether they exist or not.

    Raises UsageError where $MISGNET_POLICY is set to nothing.
    """
    named = (_named(POLICY_VARIABLE, "a policy file"), further)
    found = [SYSTEM_POLICY] if _may_exist(SYSTEM_POLICY) else []
    return list(dict.fromkeys([*found, *(path for path in named if path is not None)]))


def _named(variable: str, what: str) -> Path | None:
    """A variable that is set to nothing is more likely a mistake in a script than a wish to require nothing."""
    value = os.environ.get(variable)
    if value is None:
        return None
    if not value.strip():
        raise UsageError(f"{variable} is set, but empty; name {what}, or unset it")
    return Path(value)


def _may_exist(path: Path) -> bool:
    """A file that cannot be inspected counts as existing: reading it then refuses every bundle."""
    try:
        path.lstat()
    except FileNotFoundError:
        return path.parent.is_symlink() and not path.parent.exists()  # a disk that is not there now may hold it
    except OSError:
        pass
    return True

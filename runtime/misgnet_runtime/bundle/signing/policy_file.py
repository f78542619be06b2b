"""Policy files: which keys may sign a product, and how old its bundles may be.

    [[product]]
    name = "survey"          # as sign --product states it; without a name: every product that no other entry names
    key = "survey.pub"       # PEM; an absolute path, or one relative to this file's folder
    minimum_version = 7      # bundles below this version are refused whatever the device remembers; default 0
    allow_older = false      # whether --allow-older has an effect; default false

Where a policy file applies, a bundle needs an entry for its product whose key signed it. A file that cannot be read,
or that another user could change, refuses every bundle.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from misgnet_runtime.bundle.signing.keys import parse_anchors, read_anchors
from misgnet_runtime.bundle.signing.policy import Trust, policy_files
from misgnet_runtime.bundle.signing.requirement import Entry, Requirement
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.limits import KEY_BYTES, POLICY_BYTES, POLICY_LINE, POLICY_NAME
from misgnet_runtime.storage.permissions import read_protected
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Struct


class _Product(Struct, frozen=True):
    key: Annotated[str, Meta(min_length=1, max_length=4096)]
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    minimum_version: Count = 0
    allow_older: bool = False


class _PolicyFile(Struct, frozen=True):
    product: Annotated[list[_Product], Meta(min_length=1)]


def read_requirements(trust: Trust) -> tuple[Requirement, ...]:
    """Return what a bundle must meet: the key of ``trust`` and every policy file that applies here.

    Raises InputError for a key or a policy that cannot be used, UsageError where $MISGNET_POLICY is set to nothing,
    UnavailableError without ``cryptography``.
    """
    found = [] if trust.key is None else [Requirement(str(trust.key), (Entry(read_anchors(trust.key)),))]
    found += [read_policy(path) for path in policy_files(trust.policy)]
    if not found:
        raise InputError("a signature is required, but there is neither a key nor a policy file any more")
    return tuple(found)


def read_policy(path: Path) -> Requirement:
    """Read a policy file and the keys that it names.

    Raises InputError where the file or a key is missing, malformed, too large, or could be changed by another user.
    """
    source = f"policy {path}"
    try:
        found = _decode(read_protected(path, POLICY_BYTES))
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}; every bundle is refused until it can") from error
    except JSON_ERRORS as error:
        raise InputError(f"{source} cannot be used: {error}; every bundle is refused until it is corrected") from error
    return Requirement(source, tuple(_entry(product, path) for product in found.product))


def _decode(data: bytes) -> _PolicyFile:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise UnavailableError(
                "a policy file on Python 3.10 needs tomli; install it with: pip install 'misgnet-export[verify]'"
            ) from error
    for number, line in enumerate(data.split(b"\n"), 1):
        _check_line(line, number)
    return msgspec.convert(tomllib.loads(data.decode()), type=_PolicyFile)


def _check_line(line: bytes, number: int) -> None:
    """Raise ValueError for a long line, or a long name in it: of dotted parts that takes the square of their number.

    A quoted name may hold anything, so a line that begins with one counts as a whole.
    """
    name = line.partition(b"=")[0]
    if b'"' in name or b"'" in name:
        name = line
    if len(line) > POLICY_LINE or (len(name) > POLICY_NAME and not line.lstrip().startswith(b"#")):
        raise ValueError(f"line {number} is too long: at most {POLICY_LINE} bytes, and {POLICY_NAME} of a field's name")


def _entry(product: _Product, policy: Path) -> Entry:
    key = policy.parent / product.key
    try:
        data = read_protected(key, KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"key {key} of policy {policy} cannot be used: {reason}") from error
    return Entry(parse_anchors(key, data), product.name, product.minimum_version, product.allow_older)

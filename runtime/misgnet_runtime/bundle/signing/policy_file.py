"""Reads policy files: which keys may sign a product, and how old its bundles may be.

    [[product]]
    name = "survey"          # the product of sign --product; default: every product that no other entry names
    key = "survey.pub"       # PEM; an absolute path, or one relative to this file's folder
    minimum_version = 7      # lower versions are refused even if the device has accepted none yet; default: 0
    allow_older = false      # whether --allow-older has an effect; default: false

If a policy file applies, a bundle needs an entry for its product whose key signed it. A policy file that cannot be
read, or that another user could change, refuses every bundle.
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
    """Returns the requirements for a bundle: the key of ``trust`` and every policy file that applies.

    Raises:
        InputError: A key or a policy file cannot be used.
        UsageError: $MISGNET_POLICY is set but empty.
        UnavailableError: ``cryptography`` is not installed.
    """
    found = [] if trust.key is None else [Requirement(str(trust.key), (Entry(read_anchors(trust.key)),))]
    found += [read_policy(path) for path in policy_files(trust.policy)]
    if not found:
        raise InputError("a signature is required, but the key or policy file was removed; restore it")
    return tuple(found)


def read_policy(path: Path) -> Requirement:
    """Reads a policy file and the keys that it names.

    Raises:
        InputError: The file or a key is missing, malformed, too large, or can be changed by another user.
    """
    source = f"policy {path}"
    try:
        found = _decode(read_protected(path, POLICY_BYTES))
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}; no bundle is accepted until it can") from error
    except JSON_ERRORS as error:
        raise InputError(f"{source} cannot be used: {error}; no bundle is accepted until it is corrected") from error
    return Requirement(source, tuple(_entry(product, path) for product in found.product))


def _decode(data: bytes) -> _PolicyFile:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise UnavailableError(
                "a policy file on Python 3.10 requires tomli: pip install 'misgnet-export[verify]'"
            ) from error
    for number, line in enumerate(data.split(b"\n"), 1):
        _check_line(line, number)
    return msgspec.convert(tomllib.loads(data.decode()), type=_PolicyFile)


def _check_line(line: bytes, number: int) -> None:
    """Raises ValueError for a line or a name that is too long: parsing takes the square of a name's dotted parts.

    A quoted name may contain any character, so a line that starts with one counts as a name as a whole.
    """
    name = line.partition(b"=")[0]
    if b'"' in name or b"'" in name:
        name = line
    if len(line) > POLICY_LINE or (len(name) > POLICY_NAME and not line.lstrip().startswith(b"#")):
        raise ValueError(
            f"line {number} is too long: the limit is {POLICY_LINE} bytes, and {POLICY_NAME} for a field's name"
        )


def _entry(product: _Product, policy: Path) -> Entry:
    key = policy.parent / product.key
    try:
        data = read_protected(key, KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"key {key} of policy {policy} cannot be used: {reason}") from error
    return Entry(parse_anchors(key, data), product.name, product.minimum_version, product.allow_older)

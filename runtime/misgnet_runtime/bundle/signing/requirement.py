"""Decides, in pure functions, which entries of the requirements a signed bundle meets.

Each source (a key, a policy file) is one :class:`Requirement`. A bundle must meet all of them, so the strictest wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from misgnet_runtime.bundle.signing.envelope import Envelope
from misgnet_runtime.bundle.signing.keys import Anchors, Signer, find_signer
from misgnet_runtime.bundle.signing.release import Issue
from misgnet_runtime.errors import InputError


@dataclass(frozen=True)
class Entry:
    """The keys that may sign a product, and the versions of it that may run."""

    anchors: Anchors
    product: str | None = None  # None: every product that no entry of the same requirement names
    minimum_version: int = 0
    allow_older: bool = True  # whether --allow-older may accept older and expired bundles


@dataclass(frozen=True)
class Requirement:
    """The requirement of one source: an entry for the bundle's product whose key signed it."""

    source: str  # for messages: the key file's path, or "policy PATH"
    entries: tuple[Entry, ...]

    def entries_for(self, product: str) -> tuple[Entry, ...]:
        """Returns the entries that name ``product``, or else those that name no product."""
        named = tuple(entry for entry in self.entries if entry.product == product)
        return named or tuple(entry for entry in self.entries if entry.product is None)


@dataclass(frozen=True)
class Match:
    """An entry, and the one of its keys that signed."""

    requirement: Requirement
    entry: Entry
    signer: Signer


def signed_entries(envelope: Envelope, requirements: Iterable[Requirement]) -> tuple[Match, ...]:
    """Returns all entries whose keys signed ``envelope``, for any product.

    Raises:
        InputError: No key of one of ``requirements`` signed; then nothing may be read from the bundle.
    """
    return tuple(match for requirement in requirements for match in _matches(envelope, requirement))


def keys_for(issue: Issue, requirements: Iterable[Requirement]) -> frozenset[str]:
    """Returns the fingerprints of all keys that may sign the product; accepted versions of all of them count."""
    entries = [entry for requirement in requirements for entry in requirement.entries_for(issue.product)]
    return frozenset[str]().union(*(entry.anchors.fingerprints() for entry in entries))


def _matches(envelope: Envelope, requirement: Requirement) -> list[Match]:
    found, problem = [], None
    for entry in requirement.entries:
        try:
            found.append(Match(requirement, entry, find_signer(envelope, entry.anchors)))
        except InputError as error:
            problem = problem or error
    if not found and problem is not None:
        raise InputError(f"{requirement.source}: {problem}") from problem
    return found


def applicable(issue: Issue, requirements: Iterable[Requirement], signed: Iterable[Match]) -> tuple[Match, ...]:
    """Returns the entries of ``signed`` for the bundle's product, at least one of each requirement.

    Raises:
        InputError: A requirement has no entry for the product, or requires another key for it.
    """
    signed, found = tuple(signed), []
    for requirement in requirements:
        entries = requirement.entries_for(issue.product)
        if not entries:
            known = ", ".join(sorted({str(entry.product) for entry in requirement.entries}))
            raise InputError(f"{_product(issue)} has no entry in {requirement.source}, which lists {known}")
        matches = [m for m in signed if m.requirement is requirement and any(m.entry is e for e in entries)]
        if not matches:
            raise InputError(f"{_product(issue)} must be signed by another key of {requirement.source}")
        found += matches
    return tuple(found)


def below_minimum(issue: Issue, matches: Iterable[Match]) -> str | None:
    """Returns why ``issue`` is below an entry's ``minimum_version``; None if it is not."""
    strictest = max(matches, key=lambda match: match.entry.minimum_version)
    if issue.version.number >= strictest.entry.minimum_version:
        return None
    wanted = f"{strictest.requirement.source} requires version {strictest.entry.minimum_version} or newer"
    return f"it is {issue.version.describe()}, but {wanted}"


def forbids_older(matches: Iterable[Match]) -> str | None:
    """Returns a source that does not permit older bundles, or None."""
    return next((match.requirement.source for match in matches if not match.entry.allow_older), None)


def _product(issue: Issue) -> str:
    return f"product '{issue.product}'" if issue.product else "a bundle without a product name"

"""Which entries of the operator's requirements a signed bundle meets. The decisions are pure.

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
    """Who may sign a product, and which of its bundles may run."""

    anchors: Anchors
    product: str | None = None  # None: every product that no entry of the same requirement names
    minimum_version: int = 0
    allow_older: bool = True  # whether the operator may accept older and expired bundles


@dataclass(frozen=True)
class Requirement:
    """What one source requires: an entry for the bundle's product whose key signed it."""

    source: str  # for messages: the key file's path, or "policy PATH"
    entries: tuple[Entry, ...]

    def entries_for(self, product: str) -> tuple[Entry, ...]:
        """Return the entries that name ``product``, else those that name none."""
        named = tuple(entry for entry in self.entries if entry.product == product)
        return named or tuple(entry for entry in self.entries if entry.product is None)


@dataclass(frozen=True)
class Match:
    """An entry, and which of its keys signed."""

    requirement: Requirement
    entry: Entry
    signer: Signer


def signed_entries(envelope: Envelope, requirements: Iterable[Requirement]) -> tuple[Match, ...]:
    """Return all entries whose keys signed ``envelope``, of any product.

    Raises InputError where no key of one of ``requirements`` did: then nothing of the bundle may be read.
    """
    return tuple(match for requirement in requirements for match in _matches(envelope, requirement))


def keys_for(issue: Issue, requirements: Iterable[Requirement]) -> frozenset[str]:
    """Return the fingerprints of all keys that may sign the bundle's product: what any of them signed counts."""
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
        raise InputError(f"by {requirement.source}, {problem}") from problem
    return found


def applicable(issue: Issue, requirements: Iterable[Requirement], signed: Iterable[Match]) -> tuple[Match, ...]:
    """Return the entries of ``signed`` that are for the bundle's product; at least one of each requirement.

    Raises InputError where a requirement has no entry for the product, or another key must have signed that.
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
    """Return why ``issue`` is below an entry's ``minimum_version``; None where it is not."""
    strictest = max(matches, key=lambda match: match.entry.minimum_version)
    if issue.version.number >= strictest.entry.minimum_version:
        return None
    wanted = f"{strictest.requirement.source} requires version {strictest.entry.minimum_version} or newer"
    return f"it is {issue.version.describe()}, but {wanted}"


def forbids_older(matches: Iterable[Match]) -> str | None:
    """Return the source that does not permit older bundles, if there is one."""
    return next((match.requirement.source for match in matches if not match.entry.allow_older), None)


def _product(issue: Issue) -> str:
    return f"product '{issue.product}'" if issue.product else "a bundle that states no product"

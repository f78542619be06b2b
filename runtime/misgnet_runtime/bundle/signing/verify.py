"""A bundle that is read only after its signature over all of its files was checked."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from misgnet_runtime.bundle.fields import MANIFEST
from misgnet_runtime.bundle.manifest import Manifest, decode_manifest
from misgnet_runtime.bundle.signing.envelope import decode_envelope, signed_digests
from misgnet_runtime.bundle.signing.files import (
    check_digests,
    check_names,
    copy_checked,
    is_settled,
    read_checked,
    read_signature,
)
from misgnet_runtime.bundle.signing.keys import Signer
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.bundle.signing.policy_file import read_requirements
from misgnet_runtime.bundle.signing.release import Issue, read_issue, refusal
from misgnet_runtime.bundle.signing.requirement import (
    Match,
    Requirement,
    applicable,
    below_minimum,
    forbids_older,
    keys_for,
    signed_entries,
)
from misgnet_runtime.bundle.signing.rollback import State, open_state, prepare_state
from misgnet_runtime.errors import InputError, MisgnetError
from misgnet_runtime.formatting import plural
from misgnet_runtime.limits import MANIFEST_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.storage.atomic import locked_folder, remove_stale
from misgnet_runtime.storage.files import OpenFolder


@dataclass(frozen=True)
class Signed:
    """How a bundle was signed: for a person, and its files' SHA-256 by relative path."""

    signer: Signer
    issue: Issue
    digests: Mapping[str, str]

    def describe(self) -> str:
        expiry = "does not expire" if self.issue.expires is None else f"expires {self.issue.expires:%Y-%m-%d %H:%M} UTC"
        name = f"{self.issue.product}, " if self.issue.product else ""
        signer, version = self.signer.description, self.issue.version.describe()
        return f"{plural(len(self.digests), 'file')} signed by {signer}: {name}{version}, {expiry}"


@dataclass(frozen=True)
class Checked:
    """Where a bundle's checked files lie, its manifest, and how it was signed."""

    folder: Folder
    manifest: Manifest
    signed: Signed


class Folder:
    """Where files are opened: in their place, or in a private copy that is removed with the last reference to this."""

    def __init__(self, path: Path, lock: OpenFolder | None = None) -> None:
        self.path = path
        if lock is not None:
            weakref.finalize(self, _remove_copy, path, lock, os.getpid())


def check_signed(path: Path, trust: Trust) -> Checked:
    """Check signature, names, bytes, product, version and expiry of the bundle at ``path``, in this order.

    Its manifest is decoded last, from the bytes that were signed. The state is locked only while the accepted version
    is compared and replaced.
    Raises InputError that says what is wrong, UnavailableError without ``cryptography``, StorageError where the newest
    accepted version cannot be kept, LockTimeoutError where another process keeps the state locked.
    """
    requirements = read_requirements(trust)
    root = Path(os.path.realpath(path))
    if not root.is_dir():
        raise InputError(f"{path} is no bundle: it is no folder")
    state = prepare_state()
    try:
        return _check(root, requirements, trust, state)
    except MisgnetError as error:
        sources = ", ".join(requirement.source for requirement in requirements)
        raise type(error)(f"bundle {path} is refused, signed files are required ({sources}): {error}") from error


def _check(root: Path, requirements: tuple[Requirement, ...], trust: Trust, state: State) -> Checked:
    envelope = decode_envelope(read_signature(root))
    signed = signed_entries(envelope, requirements)
    digests = signed_digests(envelope)
    check_names(root, digests)
    folder = _checked_folder(root, digests, state)
    data = _manifest_bytes(folder.path, digests)
    issue = read_issue(data)
    candidate = _Candidate(issue, applicable(issue, requirements, signed), keys_for(issue, requirements), trust)
    candidate.check(state)
    manifest = decode_manifest(folder.path / MANIFEST, data)
    if problem := difference(manifest, digests):
        raise InputError(problem)
    with open_state() as locked:
        warning = candidate.check(locked)  # another process may have accepted a newer one meanwhile
        candidate.accept(locked)
    if warning:
        current().warning(f"run with --allow-older: {warning}")
    return Checked(folder, manifest, Signed(candidate.matches[0].signer, issue, digests))


@dataclass(frozen=True)
class _Candidate:
    """A bundle whose signature is right: may it run here?"""

    issue: Issue
    matches: tuple[Match, ...]  # the entries that it meets, at least one of each requirement
    keys: frozenset[str]  # fingerprints of all keys that are trusted for its product
    trust: Trust

    def check(self, state: State) -> str | None:
        """Raise InputError where it may not run; return what is wrong with it where the operator accepts that."""
        if problem := below_minimum(self.issue, self.matches):
            raise InputError(f"{problem}; deploy a newer bundle")
        newest = state.newest(self.issue.product, self.keys)
        outside = (_outside(self.issue, match.signer) for match in self.matches)
        problem = refusal(self.issue, newest, datetime.now(timezone.utc)) or next(filter(None, outside), None)
        if problem and (source := forbids_older(self.matches)):
            raise InputError(f"{problem}; deploy a newer bundle: {source} does not permit --allow-older")
        if problem and not self.trust.allow_older:
            raise InputError(f"{problem}; deploy a newer bundle, or run this one on purpose with --allow-older")
        return problem

    def accept(self, state: State) -> None:
        for key in {match.signer.fingerprint for match in self.matches}:
            state.accept(self.issue.product, key, self.issue.version)


def _manifest_bytes(folder: Path, digests: Mapping[str, str]) -> bytes:
    if MANIFEST not in digests:
        raise InputError(f"it is no bundle: it has no {MANIFEST}")
    return read_checked(folder / MANIFEST, digests[MANIFEST], MANIFEST_BYTES)


def _outside(issue: Issue, signer: Signer) -> str | None:
    """A signature that states another time than its certificate allows."""
    if signer.valid is None or not issue.prepared:
        return None
    first, last = signer.valid
    if first <= issue.version.signed <= last:
        return None
    return (
        f"it was signed on {issue.version.signed:%Y-%m-%d %H:%M}, but its signer's certificate is valid from "
        f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
    )


def difference(manifest: Manifest, digests: Mapping[str, str]) -> str | None:
    """Return what the manifest says otherwise than the signature, which is of the same bytes."""
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    signed = {name: digest for name, digest in digests.items() if name != MANIFEST}
    names = [name for name in {*listed, *signed} if listed.get(name) != signed.get(name)]
    return f"manifest and signature differ on {min(names)!r}; sign the bundle that was built" if names else None


def _checked_folder(root: Path, digests: Mapping[str, str], state: State) -> Folder:
    """``root`` itself, or a copy of it in the state's folder where another user could change it after the check."""
    if is_settled(root, state.folder.path):
        check_digests(root, digests)
        return Folder(root)
    place = state.folder.path / "checked"
    remove_stale(place)
    target, lock = locked_folder(place)
    folder = Folder(target, lock)
    copy_checked(root, digests, target)
    return folder


def _remove_copy(path: Path, lock: OpenFolder, process: int) -> None:
    if os.getpid() == process:  # not in a child, which has the same objects
        lock.close()
        shutil.rmtree(path, ignore_errors=True)

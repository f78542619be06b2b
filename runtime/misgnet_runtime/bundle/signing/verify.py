"""Checks a bundle's signature over all of its files before the bundle is read."""

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
    """The signature of a bundle."""

    signer: Signer
    issue: Issue
    digests: Mapping[str, str]  # SHA-256 of each file by relative path

    def describe(self) -> str:
        expiry = "does not expire" if self.issue.expires is None else f"expires {self.issue.expires:%Y-%m-%d %H:%M} UTC"
        name = f"{self.issue.product}, " if self.issue.product else ""
        signer, version = self.signer.description, self.issue.version.describe()
        return f"{plural(len(self.digests), 'file')} signed by {signer}: {name}{version}, {expiry}"


@dataclass(frozen=True)
class Checked:
    """The folder of a bundle's checked files, its manifest and its signature."""

    folder: Folder
    manifest: Manifest
    signed: Signed


class Folder:
    """The folder that files are opened in: the bundle's own, or a private copy, removed with the last reference."""

    def __init__(self, path: Path, lock: OpenFolder | None = None) -> None:
        self.path = path
        if lock is not None:
            weakref.finalize(self, _remove_copy, path, lock, os.getpid())


def check_signed(path: Path, trust: Trust) -> Checked:
    """Checks signature, names, bytes, product, version and expiry of the bundle at ``path``, in this order.

    The manifest is decoded last, from the signed bytes. The state is locked only while the accepted version is compared
    and replaced.

    Raises:
        InputError: A check fails.
        UnavailableError: ``cryptography`` is not installed.
        StorageError: The newest accepted version cannot be stored.
        LockTimeoutError: Another process keeps the state locked.
    """
    requirements = read_requirements(trust)
    root = Path(os.path.realpath(path))
    if not root.is_dir():
        raise InputError(f"{path} is not a bundle: it is not a folder")
    state = prepare_state()
    try:
        return _check(root, requirements, trust, state)
    except MisgnetError as error:
        sources = ", ".join(requirement.source for requirement in requirements)
        raise type(error)(f"bundle {path} is refused (a signature is required by {sources}): {error}") from error


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
        warning = candidate.check(locked)  # again: another process may have accepted a newer version meanwhile
        candidate.accept(locked)
    if warning:
        current().warning(f"accepted because of --allow-older: {warning}")
    return Checked(folder, manifest, Signed(candidate.matches[0].signer, issue, digests))


@dataclass(frozen=True)
class _Candidate:
    """A bundle with a valid signature, whose version and expiry are not checked yet."""

    issue: Issue
    matches: tuple[Match, ...]  # the entries that it meets, at least one of each requirement
    keys: frozenset[str]  # fingerprints of all keys that are trusted for its product
    trust: Trust

    def check(self, state: State) -> str | None:
        """Raises InputError if the bundle may not run; returns a problem that ``--allow-older`` accepts, or None."""
        if problem := below_minimum(self.issue, self.matches):
            raise InputError(f"{problem}; deploy a newer bundle")
        newest = state.newest(self.issue.product, self.keys)
        outside = (_outside(self.issue, match.signer) for match in self.matches)
        problem = refusal(self.issue, newest, datetime.now(timezone.utc)) or next(filter(None, outside), None)
        if problem and (source := forbids_older(self.matches)):
            raise InputError(f"{problem}; deploy a newer bundle: {source} does not permit --allow-older")
        if problem and not self.trust.allow_older:
            raise InputError(f"{problem}; deploy a newer bundle, or accept this one with --allow-older")
        return problem

    def accept(self, state: State) -> None:
        for key in {match.signer.fingerprint for match in self.matches}:
            state.accept(self.issue.product, key, self.issue.version)


def _manifest_bytes(folder: Path, digests: Mapping[str, str]) -> bytes:
    if MANIFEST not in digests:
        raise InputError(f"it is not a bundle: it has no {MANIFEST}")
    return read_checked(folder / MANIFEST, digests[MANIFEST], MANIFEST_BYTES)


def _outside(issue: Issue, signer: Signer) -> str | None:
    """Returns a message if the time of signing is outside the validity of the signer's certificate."""
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
    """Returns a message if the manifest and the signature list different files or digests, or None."""
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    signed = {name: digest for name, digest in digests.items() if name != MANIFEST}
    names = [name for name in {*listed, *signed} if listed.get(name) != signed.get(name)]
    return f"manifest and signature differ on {min(names)!r}; sign the bundle as it was built" if names else None


def _checked_folder(root: Path, digests: Mapping[str, str], state: State) -> Folder:
    """Returns ``root``, or a copy of it in the state folder if another user could change ``root`` after the check."""
    if is_settled(root, state.folder.path):
        check_digests(root, digests)
        return Folder(root)
    checked = state.folder.path / "checked"
    remove_stale(checked)
    target, lock = locked_folder(checked)
    folder = Folder(target, lock)
    copy_checked(root, digests, target)
    return folder


def _remove_copy(path: Path, lock: OpenFolder, process: int) -> None:
    if os.getpid() == process:  # not in a forked child, which has the same objects
        lock.close()
        shutil.rmtree(path, ignore_errors=True)

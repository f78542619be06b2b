"""A bundle that is read only after its signature over all of its files was checked."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from misgnet_runtime.bundle_files import MANIFEST
from misgnet_runtime.errors import InputError, MisgnetError
from misgnet_runtime.log import current
from misgnet_runtime.manifest import Manifest, decode_manifest
from misgnet_runtime.outputs import locked_folder, remove_stale
from misgnet_runtime.trust.envelope import decode_envelope, signed_digests
from misgnet_runtime.trust.files import check_digests, check_names, copy_checked, is_settled, read_signature
from misgnet_runtime.trust.keys import Anchors, Signer, find_signer, read_anchors
from misgnet_runtime.trust.policy import Trust
from misgnet_runtime.trust.release import Issue, Version, read_issue, refusal
from misgnet_runtime.trust.state import State, open_state


@dataclass(frozen=True)
class Signed:
    """How a bundle was signed: for a person, and its files' SHA-256 by relative path."""

    signer: Signer
    issue: Issue
    digests: Mapping[str, str]

    def words(self) -> str:
        expiry = "does not expire" if self.issue.expires is None else f"expires {self.issue.expires:%Y-%m-%d %H:%M} UTC"
        name = f"{self.issue.product}, " if self.issue.product else ""
        return f"{len(self.digests)} files signed by {self.signer.words}: {name}{self.issue.version.words()}, {expiry}"


@dataclass(frozen=True)
class Checked:
    """Where a bundle's checked files lie, its manifest, and how it was signed."""

    folder: Folder
    manifest: Manifest
    signed: Signed


class Folder:
    """Where files are opened: in their place, or in a private copy that is removed with the last reference to this."""

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        if lock is not None:
            weakref.finalize(self, _remove_copy, path, lock, os.getpid())


def check_signed(path: Path, trust: Trust) -> Checked:
    """Check signature, names, bytes, version and expiry of the bundle at ``path``, in this order; read its manifest.

    Raises InputError that says what is wrong, UnavailableError without ``cryptography``, StorageError where the newest
    accepted version cannot be kept.
    """
    anchors = read_anchors(trust.key)
    root = Path(os.path.realpath(path))
    if not root.is_dir():
        raise InputError(f"{path} is no bundle: it is no folder")
    with open_state() as state:
        try:
            return _check(root, anchors, trust, state)
        except MisgnetError as error:
            raise type(error)(f"bundle {path} is refused, signed files are required ({trust.key}): {error}") from error


def _check(root: Path, anchors: Anchors, trust: Trust, state: State) -> Checked:
    envelope = decode_envelope(read_signature(root))
    signer = find_signer(envelope, anchors)
    digests = signed_digests(envelope)
    check_names(root, digests)
    folder = _checked_folder(root, digests, state)
    issue = read_issue(folder.path / MANIFEST)
    _check_issue(issue, signer, state.newest(issue.product, {signer.fingerprint, *anchors.fingerprints()}), trust)
    manifest = decode_manifest(folder.path / MANIFEST)
    if problem := _difference(manifest, digests):
        raise InputError(problem)
    state.accept(issue.product, signer.fingerprint, issue.version)
    return Checked(folder, manifest, Signed(signer, issue, digests))


def _check_issue(issue: Issue, signer: Signer, newest: Version | None, trust: Trust) -> None:
    problem = refusal(issue, newest, datetime.now(timezone.utc)) or _outside(issue, signer)
    if problem and not trust.allow_older:
        raise InputError(f"{problem}; deploy a newer bundle, or run this one on purpose with --allow-older")
    if problem:
        current().warning(f"run with --allow-older: {problem}")


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


def _difference(manifest: Manifest, digests: Mapping[str, str]) -> str | None:
    """What the manifest says otherwise than the signature; the digests of both are of the same bytes then."""
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    signed = {name: digest for name, digest in digests.items() if name != MANIFEST}
    names = [name for name in {*listed, *signed} if listed.get(name) != signed.get(name)]
    return f"manifest and signature differ on {min(names)!r}; sign the bundle that was built" if names else None


def _checked_folder(root: Path, digests: Mapping[str, str], state: State) -> Folder:
    """``root`` itself, or a copy of it in the state's folder where another user could change it after the check."""
    if is_settled(root, state.folder):
        check_digests(root, digests)
        return Folder(root)
    place = state.folder / "checked"
    remove_stale(place)
    target, lock = locked_folder(place)
    folder = Folder(target, lock)
    copy_checked(root, digests, target)
    return folder


def _remove_copy(path: Path, lock: int, process: int) -> None:
    if os.getpid() == process:  # not in a child, which has the same objects
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)

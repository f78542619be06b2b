"""A bundle on disk: its manifest, and its files checked against it before any of them is used."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.fields import MANIFEST, SIGNATURE
from misgnet_runtime.bundle.manifest import EngineEntry, FileEntry, Manifest, decode_manifest, read_manifest_bytes
from misgnet_runtime.bundle.signing.policy import Trust, required
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.limits import BUNDLE_BYTES, MANIFEST_BYTES
from misgnet_runtime.storage.files import file_sha256

if TYPE_CHECKING:
    from misgnet_runtime.bundle.signing.verify import Folder, Signed


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk whose files have the digests that its manifest states; no engine of it is open yet.

    ``path``: where its files are opened, which may be a private copy of the one that was named, ``name``; the copy is
    removed with the last reference to the bundle. ``signed``: how it was signed, where that was required.
    """

    path: Path
    manifest: Manifest
    files: CheckedFiles = field(repr=False, compare=False)
    signed: Signed | None = None
    folder: Folder | None = field(default=None, repr=False, compare=False)
    named: Path | None = None

    @property
    def name(self) -> Path:
        """The path that the user gave."""
        return self.named or self.path

    def digest(self) -> str:
        """SHA-256 of the manifest as it was decoded, which states those of all other files."""
        assert self.files.manifest_sha256
        return self.files.manifest_sha256

    def engine_entry(self, name: str) -> EngineEntry:
        """The engine called ``name``; UsageError lists the others."""
        for entry in self.manifest.engines:
            if entry.name == name:
                return entry
        known = ", ".join(e.name for e in self.manifest.engines)
        raise UsageError(f"bundle {self.name} has no engine '{name}'; it has {known}")

    def file(self, relative: str) -> Path:
        """The path of a file that the manifest lists; for messages, and for who does not mind other bytes there."""
        if relative not in {entry.path for entry in self.manifest.files}:
            raise InputError(f"bundle {self.name} does not list the file '{relative}'")
        return self.path / relative

    def read(self, relative: str) -> bytes:
        """The bytes of a file that the manifest lists, with the digest that it states."""
        return self.files.read(relative)


def read_bundle(path: Path, trust: Trust | None = None) -> Bundle:
    """Open ``path`` and check every file against the manifest.

    With ``trust``, or where the command line or the environment requires a signature, nothing is read of the bundle,
    not even the manifest, before its signature over all files was checked; see :func:`signing.verify.check_signed`.
    Raises InputError where a file is missing, extra, a link, outside the folder, or has other bytes. Folders
    without files do not count, nor does the signature. The folder may be renamed, replaced or overwritten afterwards:
    what is read of the bundle later are the files that were checked, or an InputError.
    """
    if trust := trust or required():
        from misgnet_runtime.bundle.signing.verify import check_signed

        checked = check_signed(path, trust)
        files = CheckedFiles(checked.folder.path, path)
        files.expect(checked.manifest.files, checked.signed.digests[MANIFEST])
        return Bundle(
            path=checked.folder.path, manifest=checked.manifest, files=files, signed=checked.signed,
            folder=checked.folder, named=path,
        )  # fmt: skip
    return read_unsigned(path)


def read_unsigned(path: Path) -> Bundle:
    """The same, whatever is required of signatures: for who is about to sign."""
    if (path / MANIFEST).is_symlink():
        raise InputError(f"bundle {path} has a link in the place of {MANIFEST}")
    read_manifest_bytes(path / MANIFEST)  # says what is wrong where there is none
    files = CheckedFiles(path)
    data = files.head(MANIFEST, MANIFEST_BYTES)  # of the folder that is open now, whatever has its name
    manifest = decode_manifest(path / MANIFEST, data)
    listed = {entry.path: entry for entry in manifest.files}
    if (size := sum(entry.size for entry in listed.values())) > BUNDLE_BYTES:
        raise InputError(f"manifest of {path} lists files of {size} bytes, more than {BUNDLE_BYTES}; that is no bundle")
    for entry in listed.values():
        _check_file(files, entry)
    for found in _all_files(path):
        if found not in listed and found not in (MANIFEST, SIGNATURE):
            raise InputError(f"bundle {path} holds '{found}', which its manifest does not list")
    files.expect(manifest.files, hashlib.sha256(data).hexdigest())
    return Bundle(path=path, manifest=manifest, files=files)


def describe_files(root: Path, roles: dict[str, tuple[str, str | None]]) -> list[FileEntry]:
    """Entries for all files below ``root``; ``roles`` gives role and precision by relative path."""
    names = sorted({*_all_files(root)} - {MANIFEST, SIGNATURE})
    return [_describe(root, name, *roles[name]) for name in names]


def _describe(root: Path, name: str, role: str, precision: str | None) -> FileEntry:
    path = root / name
    return FileEntry(name, file_sha256(path), path.stat().st_size, role, precision)


def _check_file(files: CheckedFiles, entry: FileEntry) -> None:
    if not files.matches(entry):
        raise InputError(
            f"bundle {files.name}: '{entry.path}' does not match the digest in its manifest; fetch or build the bundle "
            "again"
        )


def _all_files(root: Path) -> list[str]:
    """Everything below ``root`` that is no folder, and links to folders, by relative path."""
    found = []
    for parent, folders, names in os.walk(root, onerror=_unreadable):
        links = [n for n in folders if (Path(parent) / n).is_symlink()]
        found += [(Path(parent) / n).relative_to(root).as_posix() for n in [*names, *links]]
    return found


def _unreadable(error: OSError) -> None:
    raise InputError(f"folder {error.filename} cannot be read: {error.strerror}") from error

"""Opens bundles: reads the manifest and compares all files with it before any of them is used."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.fields import MANIFEST, SIGNATURE
from misgnet_runtime.bundle.manifest import EngineEntry, FileEntry, Manifest, decode_manifest, read_manifest_bytes
from misgnet_runtime.bundle.signing.policy import Trust, required
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.limits import BUNDLE_BYTES, MANIFEST_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.storage.files import file_sha256

if TYPE_CHECKING:
    from misgnet_runtime.bundle.signing.verify import Folder, Signed


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk whose files have the digests in its manifest; none of its engines is open yet."""

    # The folder that files are read from: the named one, or a private copy that is removed with the last reference.
    path: Path
    manifest: Manifest
    files: CheckedFiles = field(repr=False, compare=False)
    # The signature, if one was required.
    signed: Signed | None = None
    # Keeps the private copy in place.
    folder: Folder | None = field(default=None, repr=False, compare=False)
    # The path that the user gave, if ``path`` may be another one.
    named: Path | None = None

    @property
    def name(self) -> Path:
        """Returns the path that the user gave."""
        return self.named or self.path

    def digest(self) -> str:
        """Returns the SHA-256 of the manifest's bytes, which contain the digests of all other files."""
        assert self.files.manifest_sha256
        return self.files.manifest_sha256

    def engine_entry(self, name: str) -> EngineEntry:
        """Returns the engine with that name.

        Raises:
            UsageError: There is no such engine; the message lists the names.
        """
        for entry in self.manifest.engines:
            if entry.name == name:
                return entry
        known = ", ".join(e.name for e in self.manifest.engines)
        raise UsageError(f"bundle {self.name} has no engine '{name}'; it has {known}")

    def file(self, relative: str) -> Path:
        """Returns the path of a file that the manifest lists, for messages and for reads that need no check.

        Raises:
            InputError: The manifest does not list the file.
        """
        if relative not in {entry.path for entry in self.manifest.files}:
            raise InputError(f"bundle {self.name} does not list the file '{relative}'")
        return self.path / relative

    def read(self, relative: str) -> bytes:
        """Returns the bytes of a file that the manifest lists.

        Raises:
            InputError: The manifest does not list the file, or its bytes do not have the digest in the manifest.
        """
        return self.files.read(relative)


def read_bundle(path: Path, trust: Trust | None = None) -> Bundle:
    """Opens a bundle and checks every file against the manifest.

    If a signature is required by ``trust``, the command line or the environment, it is checked over all files before
    anything else is read, even the manifest; see :func:`signing.verify.check_signed`. Empty folders and the signature
    file may be present without being listed in the manifest.

    The folder may be renamed, replaced or overwritten afterwards: later reads return the bytes that were checked, or
    raise InputError.

    Args:
        path: The bundle's folder.
        trust: The required signature; default: as the command line and the environment require.

    Raises:
        InputError: A file is missing, not listed, a link, outside the folder or changed, or the signature is refused.
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
    """Reads a bundle without enforcing the signature policy; used by ``sign``.

    Raises:
        InputError: As :func:`read_bundle`.
    """
    started = time.monotonic()
    if (path / MANIFEST).is_symlink():
        raise InputError(f"{path} is not a bundle: its {MANIFEST} is a link")
    read_manifest_bytes(path / MANIFEST)  # raises a precise error if the manifest is missing
    files = CheckedFiles(path)
    data = files.head(MANIFEST, MANIFEST_BYTES)  # from the folder that is open now, even if its name was reused
    manifest = decode_manifest(path / MANIFEST, data)
    listed = {entry.path: entry for entry in manifest.files}
    if (size := sum(entry.size for entry in listed.values())) > BUNDLE_BYTES:
        raise InputError(
            f"{path} is not a bundle: its manifest lists files of {size} bytes; the limit is {BUNDLE_BYTES}"
        )
    for entry in listed.values():
        _check_file(files, entry)
    for found in _all_files(path):
        if found not in listed and found not in (MANIFEST, SIGNATURE):
            raise InputError(f"bundle {path} holds '{found}', which its manifest does not list")
    files.expect(manifest.files, hashlib.sha256(data).hexdigest())
    seconds = time.monotonic() - started
    current().debug(f"read bundle {path} in {seconds:.2f} s: {len(listed)} files, {size / 1e6:.1f} MB", seconds=seconds)
    return Bundle(path=path, manifest=manifest, files=files)


def describe_files(root: Path, roles: dict[str, tuple[str, str | None]]) -> list[FileEntry]:
    """Returns entries for all files below ``root``; ``roles`` holds (role, precision) by relative path."""
    names = sorted({*_all_files(root)} - {MANIFEST, SIGNATURE})
    return [_describe(root, name, *roles[name]) for name in names]


def _describe(root: Path, name: str, role: str, precision: str | None) -> FileEntry:
    path = root / name
    return FileEntry(name, file_sha256(path), path.stat().st_size, role, precision)


def _check_file(files: CheckedFiles, entry: FileEntry) -> None:
    if not files.matches(entry):
        raise InputError(
            f"bundle {files.name}: '{entry.path}' does not match its digest in the manifest; download or build the "
            "bundle again"
        )


def _all_files(root: Path) -> list[str]:
    """Returns the relative paths of everything below ``root`` except folders, but including links to folders."""
    found = []
    for parent, folders, names in os.walk(root, onerror=_unreadable):
        links = [n for n in folders if (Path(parent) / n).is_symlink()]
        found += [(Path(parent) / n).relative_to(root).as_posix() for n in [*names, *links]]
    return found


def _unreadable(error: OSError) -> None:
    raise InputError(f"folder {error.filename} cannot be read: {error.strerror}") from error

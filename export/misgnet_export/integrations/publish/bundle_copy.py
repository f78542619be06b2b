"""Copies a bundle into a published folder, and names it there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from misgnet_runtime.bundle import MANIFEST, SIGNATURE, Bundle
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import MANIFEST_BYTES, SIGNATURE_BYTES

# The folder of the bundle in a published folder: a bundle holds no files that its manifest does not list.
COPY = "bundle"
# The user's line about it.
COPIED = (
    f"{COPY}/: the bundle; it shows images of the evaluation set (golden tiles, report) and names folders of the "
    "build: check that you may publish them"
)


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Writes the bundle's files, its manifest and its signature, if it has one, to ``folder / COPY``.

    Raises:
        InputError: A file has changed since the bundle was checked.
    """
    manifest = bundle.files.head(MANIFEST, MANIFEST_BYTES)
    if hashlib.sha256(manifest).hexdigest() != bundle.digest():
        raise InputError(f"bundle {bundle.name}: its manifest has changed since it was checked; run the command again")
    for entry in bundle.manifest.files:
        path = folder / COPY / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.read(entry.path))
    if (bundle.path / SIGNATURE).exists():
        (folder / COPY / SIGNATURE).write_bytes(bundle.files.head(SIGNATURE, SIGNATURE_BYTES))
    (folder / COPY / MANIFEST).write_bytes(manifest)


def title_of(bundle: Bundle) -> str:
    """Returns the product that ``misgnet-export sign`` stated, or else the name of the bundle's folder."""
    release = bundle.manifest.release
    return release.product if release else bundle.name.resolve().name


def identifier_of(bundle: Bundle) -> str:
    """Returns the title as an identifier: ASCII letters, digits and ``_ . -``, the first a letter, the last no sign."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", title_of(bundle)).strip("_.-")
    return name if re.match(r"[A-Za-z][A-Za-z0-9_.-]+[A-Za-z0-9]$", name) else f"bundle-{name or 'unnamed'}"

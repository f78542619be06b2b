"""Checks for data leakage: no image may be in both the set that decides and the set that evaluates."""

from __future__ import annotations

import hashlib
from pathlib import Path

from misgnet_runtime.callables import Image, Progress
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import Source, TileSet, read_source


def check_disjoint(first: TileSet, second: TileSet, roles: tuple[str, str], progress: Progress | None = None) -> None:
    """Raises InputError if an image is in both sets; ``roles`` names the sets in the message.

    Images are compared by their pixels, so that re-encoded copies are found, too: whole pairs, in either order of the
    dates, and single dates with the same date of the other set. A date of a single colour is compared only in its pair.
    """
    sizes = {source.size() for source in first.sources} & {source.size() for source in second.sources}
    known, other = ([source for source in part.sources if source.size() in sizes] for part in (first, second))
    total = len(known) + len(other)
    images: dict[str, Path] = {}
    for done, source in enumerate(known, 1):
        images |= _identities(source)
        if progress:
            progress(done, total)
    for done, source in enumerate(other, len(known) + 1):
        for digest, path in _identities(source).items():
            if digest in images:
                raise InputError(
                    f"the image {path} of the {roles[1]} set is also in the {roles[0]} set, with the same pixels as "
                    f"{images[digest]}; use different images in each set"
                )
        if progress:
            progress(done, total)


def _identities(source: Source) -> dict[str, Path]:
    """Returns the paths of a pair by identity: the pixels of the pair, and of each date that is not of one colour."""
    before, after, _ = read_source(source)
    if source.observed.dates is None:
        source.observed.dates = _pixels_sha256(before), _pixels_sha256(after)
    found = {" ".join(sorted(source.observed.dates)): source.before}
    for date, path, image, digest in zip(
        ("before", "after"), (source.before, source.after), (before, after), source.observed.dates, strict=True
    ):
        if (image != image[0, 0]).any():
            found[f"{date} {digest}"] = path
    return found


def _pixels_sha256(image: Image) -> str:
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()

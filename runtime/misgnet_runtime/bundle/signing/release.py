"""Determines the version of a signed bundle and decides, in pure functions, whether this device may still run it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import msgspec

from misgnet_runtime.bundle.manifest import Release
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.schema import JSON_ERRORS

CLOCK_TOLERANCE = timedelta(hours=1)  # between the signer's clock and the device's


@dataclass(frozen=True, order=True)
class Version:
    """Orders the bundles of one product by number, then by time of signing (UTC)."""

    number: int
    signed: datetime

    def describe(self) -> str:
        return f"version {self.number} of {self.signed:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True)
class Issue:
    """Product, version and expiry of a signed bundle, as stated in its manifest."""

    product: str  # "" if the bundle is not ``prepared``
    version: Version  # with the time of the build instead of the signature if the bundle is not ``prepared``
    expires: datetime | None = None  # from this time on the bundle is not run
    prepared: bool = True  # whether ``misgnet-export sign`` prepared the bundle


class _Stated(msgspec.Struct):
    bundle_version: int
    created: str
    release: Release | None = None


def read_issue(manifest: bytes) -> Issue:
    """Reads only product, version and expiry of a manifest whose signature was checked.

    Raises:
        InputError: They cannot be read.
    """
    try:
        stated = msgspec.json.decode(manifest, type=_Stated)
        release = stated.release or Release("", stated.created)
        expires = None if release.expires is None else moment(release.expires)
        version = Version(stated.bundle_version, moment(release.signed))
        return Issue(release.product, version, expires, stated.release is not None)
    except JSON_ERRORS as error:
        raise InputError(f"its manifest has no readable version: {error}") from error


def moment(text: str) -> datetime:
    """Parses a date or time in ISO 8601; UTC if it has no zone. Raises ValueError."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    try:
        return found.replace(tzinfo=found.tzinfo or timezone.utc).astimezone(timezone.utc)
    except OverflowError as error:  # within a day of the earliest or latest possible time
        raise ValueError(f"{text} is not a valid time in UTC: {error}") from error


def refusal(issue: Issue, newest: Version | None, now: datetime) -> str | None:
    """Returns why ``issue`` may not be run after ``newest`` was accepted; None if it may.

    A clock that is behind the time of a known signature is wrong, so the expiry cannot be checked. Bundles without an
    expiry do not depend on the clock.
    """
    if newest is not None and issue.version < newest:
        return f"it is {issue.version.describe()}, but {newest.describe()} was accepted here before"
    if issue.expires is None:
        return None
    known = issue.version.signed if newest is None else max(issue.version.signed, newest.signed)
    if now < known - CLOCK_TOLERANCE:
        return (
            f"it expires on {issue.expires:%Y-%m-%d}, but this machine's clock says {now:%Y-%m-%d %H:%M} UTC, which is "
            f"before a signature of {known:%Y-%m-%d %H:%M}; set the clock"
        )
    if now >= issue.expires:
        return f"it expired on {issue.expires:%Y-%m-%d %H:%M} UTC (now: {now:%Y-%m-%d %H:%M})"
    return None

"""Which version a signed bundle is, and whether this device may still run it. The decision is pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import msgspec

from misgnet_runtime.bundle.manifest import Release
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.schema import JSON_ERRORS

CLOCK_TOLERANCE = timedelta(hours=1)  # between the clock of who signs and the device's


@dataclass(frozen=True, order=True)
class Version:
    """Orders the bundles of one product: by number, and of one number by when they were signed (UTC)."""

    number: int
    signed: datetime

    def describe(self) -> str:
        return f"version {self.number} of {self.signed:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True)
class Issue:
    """What a signed manifest states of itself; ``expires`` is the first moment at which it is not run any more.

    A bundle that ``misgnet-export sign`` did not prepare (``prepared``) has no product's name, and in the place of the
    time at which it was signed that at which it was built.
    """

    product: str
    version: Version
    expires: datetime | None = None
    prepared: bool = True


class _Stated(msgspec.Struct):
    bundle_version: int
    created: str
    release: Release | None = None


def read_issue(manifest: bytes) -> Issue:
    """Read nothing else of a manifest whose signature was checked. Raises InputError where that cannot be read."""
    try:
        stated = msgspec.json.decode(manifest, type=_Stated)
        release = stated.release or Release("", stated.created)
        expires = None if release.expires is None else moment(release.expires)
        version = Version(stated.bundle_version, moment(release.signed))
        return Issue(release.product, version, expires, stated.release is not None)
    except JSON_ERRORS as error:
        raise InputError(f"its manifest states no version that can be read: {error}") from error


def moment(text: str) -> datetime:
    """A date or a time in ISO 8601, in UTC where it names no zone. Raises ValueError."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    try:
        return found.replace(tzinfo=found.tzinfo or timezone.utc).astimezone(timezone.utc)
    except OverflowError as error:  # in the first or the last hours that there are
        raise ValueError(f"{text} is no time in UTC: {error}") from error


def refusal(issue: Issue, newest: Version | None, now: datetime) -> str | None:
    """Why ``issue`` may not be run where ``newest`` was accepted before; None where it may.

    A clock that is behind a signature which is already known is wrong, and then nobody knows what has expired.
    Bundles without an expiry do not depend on the clock.
    """
    if newest is not None and issue.version < newest:
        return f"it is {issue.version.describe()}, but {newest.describe()} was accepted here before"
    if issue.expires is None:
        return None
    known = issue.version.signed if newest is None else max(issue.version.signed, newest.signed)
    if now < known - CLOCK_TOLERANCE:
        return (
            f"it expires on {issue.expires:%Y-%m-%d}, but this machine's clock says {now:%Y-%m-%d %H:%M} UTC, before "
            f"a signature of {known:%Y-%m-%d %H:%M}; set the clock"
        )
    if now >= issue.expires:
        return f"it has expired on {issue.expires:%Y-%m-%d %H:%M} UTC (now: {now:%Y-%m-%d %H:%M})"
    return None

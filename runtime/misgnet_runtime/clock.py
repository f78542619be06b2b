"""The time, in UTC."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp() -> str:
    """Now, in ISO 8601 and to the second, as manifests and reports state it."""
    return now().isoformat(timespec="seconds")

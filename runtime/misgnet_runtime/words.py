"""Words for a person."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """``1 tile``, ``2 tiles``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

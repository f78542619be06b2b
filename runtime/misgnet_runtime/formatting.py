"""Formats counts, shares, timestamps (UTC) and untrusted text for messages and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timezone

_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def format_change(share: float | None, valid: float) -> str:
    """Formats the changed share of the valid pixels and the valid share of all pixels.

    Both shares are 0 to 1; ``share`` is None if no pixel is valid.
    """
    if share is None:
        return "no valid pixels"
    return f"{100 * share:.2f} % changed of valid pixels, {format_percent(valid)} valid"


def format_percent(share: float) -> str:
    """Formats a percentage with two decimals; 100 % and 0 % appear only for exactly all and exactly none."""
    text = f"{100 * share:.2f} %"
    if share < 1 and text == "100.00 %":
        return "> 99.99 %"
    return "< 0.01 %" if share > 0 and text == "0.00 %" else text


def plural(count: int, noun: str) -> str:
    """Formats a count with its noun: ``1 tile``, ``2 tiles``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def by_reason(reasons: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Groups (name, reason) by reason; returns (names, reason), the names joined by commas, in order of appearance."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    return [(", ".join(found), reason) for reason, found in names.items()]


def each_reason(reasons: Iterable[tuple[str, str]]) -> str:
    """Formats (name, reason) as one text that states each reason once: ``a, b: reason; c: another reason``."""
    return "; ".join(f"{names}: {reason}" for names, reason in by_reason(reasons))


def not_here(reasons: Iterable[tuple[str, str]]) -> str:
    """Formats the engines that cannot run on this machine, each with a short reason, as one line."""
    return f"not on this machine: {'; '.join(f'{names} ({reason})' for names, reason in by_reason(reasons))}"


def truncated(value: float, digits: int) -> str:
    """Formats a number with ``digits`` decimals, rounded down, so that a value below a limit is not shown as equal."""
    scale = 10.0**digits
    return f"{math.floor(round(value * scale, 6)) / scale:.{digits}f}"


def printable(text: str) -> str:
    """Escapes control characters, format characters, line ends and surrogates, which a terminal obeys or hides."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    """Escapes one character as Python's ``unicode_escape`` codec does, without importing that codec."""
    if character.isprintable():
        return character
    if character in _SHORT:
        return _SHORT[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp() -> str:
    """Returns the current UTC time in ISO 8601, to the second, as manifests and reports state it."""
    return now().isoformat(timespec="seconds")

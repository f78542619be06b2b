"""Text for a person, and the time, in UTC."""

from __future__ import annotations

from datetime import datetime, timezone

_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def changed_words(share: float | None, valid: float) -> str:
    """The changed share of the valid pixels, and the share of the valid ones, both given as 0 to 1.

    ``share`` is None where no pixel is valid.
    """
    if share is None:
        return "no valid pixels"
    return f"{100 * share:.2f} % changed of valid pixels, {_percent(valid)} valid"


def _percent(share: float) -> str:
    """Two decimals; what is not all does not read as 100 %, and what is something not as 0 %."""
    text = f"{100 * share:.2f} %"
    if share < 1 and text == "100.00 %":
        return "> 99.99 %"
    return "< 0.01 %" if share > 0 and text == "0.00 %" else text


def plural(count: int, noun: str) -> str:
    """``1 tile``, ``2 tiles``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """``text`` with what a terminal obeys or hides escaped: control and format characters, line ends, surrogates."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    """As Python's ``unicode_escape`` codec has it, which would be imported for it."""
    if character.isprintable():
        return character
    if character in _SHORT:
        return _SHORT[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp() -> str:
    """Now, in ISO 8601 and to the second, as manifests and reports state it."""
    return now().isoformat(timespec="seconds")

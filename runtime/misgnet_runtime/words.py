"""Text for a person."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """``1 tile``, ``2 tiles``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """``text`` with what a terminal obeys or hides escaped: control and format characters, line ends, surrogates."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()

"""Texts of options to values. A parser raises ValueError with what it takes: "it is a whole number"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

YES = ("yes", "true", "1")
NO = ("", "no", "false", "0")


def numbers(*counts: int, like: str) -> Callable[[str], tuple[float, ...]]:
    """A parser of so many numbers, parted by commas; ``like``: an example."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            found = tuple(float(word) for word in text.split(","))
        except ValueError:
            found = ()
        if len(found) not in counts or not all(abs(number) < 1e30 for number in found):  # NaN fails too
            wanted = " or ".join(map(str, counts))
            raise ValueError(f"it takes {wanted} number{'s' * (counts != (1,))}, like {like}")
        return found

    return parse


def yes_or_no(text: str) -> bool:
    """Return whether a text is yes; ValueError where it is neither yes nor no."""
    if text.lower() not in (*YES, *NO):
        raise ValueError("it is yes or no")
    return text.lower() in YES


def _number(kind: Callable[[str], float], words: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"it is {words}") from None

    return parse


_PARSERS: Mapping[Any, Callable[[str], Any]] = {
    bool: yes_or_no, int: _number(int, "a whole number"), float: _number(float, "a number"), Path: Path,
}  # fmt: skip


def parser_of(kind: Any) -> Callable[[str], Any]:
    """Return the parser of a type; other types than these are texts."""
    return _PARSERS.get(kind, str)

"""Parses the text of options into values. A parser raises ValueError, for example "expected a whole number"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

YES = ("yes", "true", "1")
NO = ("", "no", "false", "0")


def numbers(*counts: int, like: str) -> Callable[[str], tuple[float, ...]]:
    """Returns a parser of comma-separated numbers.

    Args:
        counts: The accepted counts of numbers.
        like: An example for the error message.
    """

    def parse(text: str) -> tuple[float, ...]:
        try:
            found = tuple(float(word) for word in text.split(","))
        except ValueError:
            found = ()
        if len(found) not in counts or not all(abs(number) < 1e30 for number in found):  # NaN fails too
            wanted = " or ".join(map(str, counts)) if len(counts) < 3 else f"{min(counts)} to {max(counts)}"
            raise ValueError(f"expected {wanted} number{'s' * (counts != (1,))}, for example {like}")
        return found

    return parse


def yes_or_no(text: str) -> bool:
    """Returns whether ``text`` means yes. Raises ValueError if it means neither yes nor no."""
    if text.lower() not in (*YES, *NO):
        raise ValueError("expected yes or no")
    return text.lower() in YES


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(kind: Callable[[str], float], expected: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            point = text.replace(",", ".")
            like = f", with a decimal point: {point}" if kind is float and "," in text and _is_number(point) else ""
            raise ValueError(f"expected {expected}{like}") from None

    return parse


_PARSERS: Mapping[Any, Callable[[str], Any]] = {
    bool: yes_or_no, int: _number(int, "a whole number"), float: _number(float, "a number"), Path: Path,
}  # fmt: skip


def parser_of(kind: Any) -> Callable[[str], Any]:
    """Returns the parser of a type; all types except bool, int, float and Path are parsed as text."""
    return _PARSERS.get(kind, str)

"""A vendor logger that keeps warnings and errors and prints nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_SOURCE_PLACE = re.compile(r"[,.]?\s*In \S+ at /\S+?(?=[\s)]|$)")
_LIMIT = 240


@dataclass
class VendorLog:
    """What a vendor said: one shortened line for each warning and each error, in order."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        if severity == "WARNING":
            self.warnings.append(one_line(text))
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(one_line(text))

    def count(self) -> int:
        return len(self.warnings) + len(self.errors)

    def last_errors(self, limit: int = 3) -> str:
        """The last few errors as one line, for the end of an error message."""
        return " | ".join(dict.fromkeys(self.errors[-limit:])) or "the vendor's library gave no reason"


def make_logger(module: Any, log: VendorLog) -> Any:
    """An ``ILogger`` of the vendor module that writes into ``log``; it must outlive what is made with it."""

    class CollectingLogger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 wants the base initialised by name

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

    return CollectingLogger()


def one_line(text: str) -> str:
    """``text`` on one line of at most 240 characters, without the vendor's own source places."""
    lines = (_SOURCE_PLACE.sub("", line.strip()) for line in text.splitlines())
    line = "; ".join(part for part in lines if part)
    return line if len(line) <= _LIMIT else line[: _LIMIT - 3] + "..."


def counted(lines: Iterable[str]) -> tuple[str, ...]:
    """Each different line once, with how often it came: a network repeats one warning per layer."""
    return tuple(line if times == 1 else f"{line} (x{times})" for line, times in Counter(lines).items())

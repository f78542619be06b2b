"""Collects the warnings and errors that TensorRT logs, and the list of the layers that it made; prints nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_SOURCE_POSITION = re.compile(r"[,.]?\s*In \S+ at /\S+?(?=[\s)]|$)")
_LIMIT = 240
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass
class VendorLog:
    """The messages of TensorRT, in order: one shortened line per warning and per error.

    Of its some 20,000 other messages, only what :mod:`layer_list` reads is kept.
    """

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    layers: str = ""  # the list of layers, one a line
    activation_bytes: list[int] = field(default_factory=list)  # of each optimization profile

    def add(self, severity: str, text: str) -> None:
        if severity == "WARNING":
            self.warnings.append(one_line(text))
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(one_line(text))
        elif severity == "VERBOSE" and text.startswith("Layers:"):
            self.layers = text.partition("\n")[2]
        elif found := _ACTIVATIONS.match(text):
            self.activation_bytes.append(int(found[1]))

    def count(self) -> int:
        return len(self.warnings) + len(self.errors)

    def last_errors(self, limit: int = 3) -> str:
        """Returns the last few errors as one line, for the end of an error message."""
        return " | ".join(dict.fromkeys(self.errors[-limit:])) or "the vendor's library gave no reason"


def make_logger(module: Any, log: VendorLog) -> Any:
    """Creates an ``ILogger`` of the vendor module that writes to ``log``; it must outlive the objects that use it."""

    class CollectingLogger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 requires the base to be initialised by name

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

    return CollectingLogger()


def one_line(text: str) -> str:
    """Returns ``text`` on one line of at most 240 characters, without positions in the vendor's source code."""
    lines = (_SOURCE_POSITION.sub("", line.strip()) for line in text.splitlines())
    line = "; ".join(part for part in lines if part)
    return line if len(line) <= _LIMIT else line[: _LIMIT - 3] + "..."


def counted(lines: Iterable[str]) -> tuple[str, ...]:
    """Returns each distinct line once, with its count: a network repeats one warning per layer."""
    return tuple(line if times == 1 else f"{line} (x{times})" for line, times in Counter(lines).items())

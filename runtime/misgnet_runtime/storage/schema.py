"""Defines the strict base class of all stored JSON, and types of numbers and digests in it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1, lt=1 << 31)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]

# Errors of decoding and checking untrusted JSON or TOML; each reader converts them to its own error. msgspec's errors
# are ValueErrors only since its version 0.22.
JSON_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base class of all stored JSON; unknown and missing fields are errors."""


def encode(value: Any) -> bytes:
    """Returns indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"

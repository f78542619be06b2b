"""The strict base of everything that is kept as JSON, and types of numbers and digests in it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1, lt=1 << 31)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]

# What decoding JSON or TOML from outside raises, and a check of what it says; each reader makes its own error of it.
# msgspec's errors are ValueErrors only since its version 0.22.
JSON_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything that is kept as JSON; unknown and missing fields are errors."""


def encode(value: Any) -> bytes:
    """Readable JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"

"""Defines types of manifest fields and the names of a bundle's own files."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # the name that OpenSSF Model Signing uses

# No real text is longer, and the time to lay out a table grows with the square of a cell's length.
MAX_TEXT = 4096
MAX_CONFIG = 1 << 16  # characters of a build's configuration file
Name = Annotated[str, Meta(max_length=200, pattern=r"\A[ -~]*\Z")]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
# Names become parts of paths and of other programs' settings, so only characters that are safe in all of them.
EngineName = Annotated[str, Meta(max_length=200, pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.,+-]*\Z")]
TensorName = Annotated[str, Meta(max_length=200, pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_./:-]*\Z")]
# Relative to the bundle, with slashes; no part is "." or "..".
FilePath = Annotated[
    str, Meta(max_length=1024, pattern=r"\A(?!(?:.*/)?\.{1,2}(?:/|\Z))[A-Za-z0-9_.,+=@~-]+(?:/[A-Za-z0-9_.,+=@~-]+)*\Z")
]

"""Completes values in a shell. It must be quick and silent: a shell runs it at each press of the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import typer

from misgnet_runtime.limits import MANIFEST_BYTES
from misgnet_runtime.storage.files import is_file, read_at_most

# Keys in a context's ``meta``: all arguments as typed; the context of the innermost command, with its arguments.
TYPED, COMMAND = "misgnet.arguments", "misgnet.command"


def engine_names(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Yields the engines of the bundle on the command line that start with ``incomplete``; none without a bundle.

    The manifest is only parsed, not checked: a wrong name is refused when the command runs.
    """
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # no text in the middle of a command line
        manifests = (Path(word) / "manifest.json" for word in context.meta[COMMAND][1])  # params lack it while typing
        path = next(filter(is_file, manifests), None)
        data = path and read_at_most(path, MANIFEST_BYTES)
        names = [str(entry["name"]) for entry in json.loads(data or b"{}")["engines"]]
        yield from (name for name in names if name.startswith(incomplete) and name.isprintable())

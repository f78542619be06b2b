"""Implements ``misgnet-run verify``: checks a bundle's files and its engines. Cheap to import."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from misgnet_runtime.cli.completion import engine_names
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.log import current

_Text = Optional[str]  # noqa: UP045 - typer on 3.10


def verify(
    bundle: BundlePath,
    engine: Annotated[
        _Text,
        typer.Option(
            help="Engine to run on the golden tiles.",
            show_default="all engines that run here",
            autocompletion=engine_names,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Check each file's digest, the signature if one is required, and each engine's output on the golden tiles."""
    from misgnet_runtime.inference.self_test import verify_bundle

    for line in verify_bundle(bundle, engine):
        current().result([line])

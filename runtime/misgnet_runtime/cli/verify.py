"""``misgnet-run verify``. Cheap to import."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.log import current

_Text = Optional[str]  # noqa: UP045 - typer on 3.10


def verify(
    bundle: BundlePath,
    engine: Annotated[_Text, typer.Option(help="One engine.", show_default="all that can run here")] = None,
) -> None:
    """Check every file's digest, and the signature if one is required; then golden tiles on this machine's engines."""
    from misgnet_runtime.inference.self_test import verify_bundle

    for line in verify_bundle(bundle, engine):
        current().result([line])

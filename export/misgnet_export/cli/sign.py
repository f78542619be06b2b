"""``misgnet-export sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.log import current


def sign(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by build; it is exchanged as a whole")],
    key: Annotated[Path, typer.Option(help="private key, PEM, on P-256, P-384 or P-521")],
    *,
    certificate: Annotated[Path | None, typer.Option(help="of this key, PEM; devices then require its root")] = None,
    chain: Annotated[
        list[Path] | None, typer.Option(help="certificates between it and the root, in this order; may be repeated")
    ] = None,
    product: Annotated[
        str | None,
        typer.Option(
            help="Product that devices know the bundle by; required where the bundle records none.",
            show_default="as recorded in the bundle",
        ),
    ] = None,
    bundle_version: Annotated[
        int | None, typer.Option(min=0, help="a number that only grows", show_default="the bundle's")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="date or time (UTC) from which on devices refuse it: 2027-01-01")
    ] = None,
    key_password: Annotated[
        str | None, typer.Option(envvar="MISGNET_KEY_PASSWORD", help="of an encrypted key; better by the environment")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="sign again what is signed")] = False,
) -> None:
    """Sign all files of a bundle with OpenSSF Model Signing; misgnet-run's --require-signature then checks it.

    The signature is model.sig in the bundle's folder. The library's own command verifies it as well: model_signing
    verify key BUNDLE --signature BUNDLE/model.sig --public_key KEY.pub
    """
    from misgnet_export.integrations.signing import SignRequest, sign_bundle

    request = SignRequest(
        bundle=bundle, key=key, certificate=certificate, chain=tuple(chain or ()), product=product,
        version=bundle_version, expires=expires, password=key_password, force=force,
    )  # fmt: skip
    current().result([f"{bundle}: {sign_bundle(request).words()}"])

"""The ``misgnet-export sign`` command."""

from __future__ import annotations

from misgnet_export.integrations.signing import SignRequest, sign_bundle
from misgnet_runtime.cli.options import takes_options
from misgnet_runtime.log import current


@takes_options
def sign(request: SignRequest) -> None:
    """Sign all files of a bundle with OpenSSF Model Signing; `misgnet-run --require-signature` checks the signature.

    The signature is written to model.sig in the bundle. It can also be verified with the library's own command:
    model_signing verify key BUNDLE --signature BUNDLE/model.sig --public_key KEY.pub
    """
    current().result([f"{request.bundle}: {sign_bundle(request).describe()}"])

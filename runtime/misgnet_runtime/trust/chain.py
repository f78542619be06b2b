"""A signer's certificate, led to a trusted one. Nothing is asked of the network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def verify_chain(leaf: Certificate, between: Sequence[Certificate], trusted: Sequence[Certificate]) -> Certificate:
    """The one of ``trusted`` that ``leaf`` leads to, by way of ``between``; ``leaf`` must be made for signing.

    Time is the beginning of ``leaf``, as in Model Signing: without a witness nobody knows when it was used.
    Raises ValueError.
    """
    from cryptography import x509
    from cryptography.x509 import verification

    either = verification.Criticality.AGNOSTIC
    # These replace what web servers need: a name in the certificate, and a use that is a server's or a client's.
    authorities = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(x509.ExtendedKeyUsage, either, None)
    signers = verification.ExtensionPolicy.permit_all()
    builder = verification.PolicyBuilder().store(verification.Store(list(trusted))).time(leaf.not_valid_before_utc)
    verifier = builder.extension_policies(ca_policy=authorities, ee_policy=signers).build_client_verifier()
    try:
        chain = verifier.verify(leaf, list(between)).chain
    except verification.VerificationError as error:
        raise ValueError(f"it does not lead to a trusted one: {error}") from error
    if not _may_sign(leaf):
        raise ValueError("it is not made for signing: it has neither digitalSignature nor codeSigning")
    return chain[-1]


def _may_sign(leaf: Certificate) -> bool:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    with suppress(x509.ExtensionNotFound):
        if leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return True
    with suppress(x509.ExtensionNotFound):
        return ExtendedKeyUsageOID.CODE_SIGNING in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return False

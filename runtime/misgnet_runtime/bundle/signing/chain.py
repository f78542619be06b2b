"""A signer's certificate, led to a trusted one. Nothing is asked of the network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from misgnet_runtime.limits import CERTIFICATE_BYTES, CERTIFICATES

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, ExtendedKeyUsage

MAX_CERTIFICATES = CERTIFICATES  # of the signer and between it and a root
MAX_CHAIN_BYTES = CERTIFICATE_BYTES  # DER of all of them


def check_size(certificates: Sequence[bytes]) -> None:
    """Raise ValueError for a chain that is too large to be parsed."""
    if len(certificates) > MAX_CERTIFICATES:
        raise ValueError(f"its chain has {len(certificates)} certificates, at most {MAX_CERTIFICATES} are read")
    if (size := sum(map(len, certificates))) > MAX_CHAIN_BYTES:
        raise ValueError(f"its chain has {size} bytes, at most {MAX_CHAIN_BYTES} are read")


def verify_chain(leaf: Certificate, between: Sequence[Certificate], trusted: Sequence[Certificate]) -> Certificate:
    """Return the one of ``trusted`` that ``leaf`` leads to by way of ``between``; ``leaf`` must be made for signing.

    Time is the beginning of ``leaf``, as in Model Signing: without a witness nobody knows when it was used.
    Raises ValueError.
    """
    from cryptography import x509
    from cryptography.x509 import verification

    _check_subjects([leaf, *between])
    check_use(leaf)
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
    return chain[-1]


def check_use(leaf: Certificate) -> None:
    """Raise ValueError unless ``leaf`` is made for signing code.

    Extended uses restrict a certificate (RFC 5280, 4.2.1.12): where they are stated, codeSigning must be one of them,
    and anyExtendedKeyUsage does not stand for it. Elsewhere digitalSignature is enough.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    with suppress(x509.ExtensionNotFound):
        uses: ExtendedKeyUsage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CODE_SIGNING not in uses:
            raise ValueError("it is not made for signing: it states extended key usages without codeSigning")
        return
    with suppress(x509.ExtensionNotFound):
        if leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return
    raise ValueError("it is not made for signing: it has neither digitalSignature nor codeSigning")


def _check_subjects(certificates: Sequence[Certificate]) -> None:
    """Refuse two certificates of one subject: with them a verifier tries every order, N ** 8 for N of them."""
    subjects = [certificate.subject.public_bytes() for certificate in certificates]
    for number, subject in enumerate(subjects):
        if subject in subjects[:number]:
            name = certificates[number].subject.rfc4514_string()
            raise ValueError(f"its chain has two certificates of {name!a}; include one")

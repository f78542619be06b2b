"""Reads key files and finds the trusted key or certificate that a signature leads to.

The signature's key hint is ignored: a key either verifies the bytes or does not. Curves and hashes are those of Model
Signing: ECDSA on P-256, P-384 and P-521 with SHA-256, SHA-384 and SHA-512. No check uses the network.
"""

from __future__ import annotations

import codecs
import datetime
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from misgnet_runtime.bundle.signing.envelope import Envelope
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.limits import CERTIFICATE_BYTES, CERTIFICATES, KEY_BYTES
from misgnet_runtime.storage.files import read_at_most

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.x509 import Certificate, ExtendedKeyUsage

_PEM_LINE = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,64})-----")
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


@dataclass(frozen=True)
class Anchors:
    """Trusted public keys, and trusted certificates that signers' certificates may lead to."""

    keys: tuple[EllipticCurvePublicKey, ...]
    certificates: tuple[Certificate, ...]

    def fingerprints(self) -> frozenset[str]:
        """Returns the fingerprints of all keys and certificates; see :class:`Signer`."""
        found = (*self.keys, *(certificate.public_key() for certificate in self.certificates))
        return frozenset(map(fingerprint, found))


@dataclass(frozen=True)
class Signer:
    """The trusted key or certificate that a signature leads to."""

    fingerprint: str  # SHA-256 of its public key (SubjectPublicKeyInfo, DER)
    description: str  # for messages
    valid: tuple[datetime.datetime, datetime.datetime] | None = None  # validity of the signer's certificate, if any


def read_anchors(path: Path) -> Anchors:
    """Reads the public keys and certificates of a PEM file.

    Raises:
        InputError: The file has no public key or certificate, or a key of another kind.
        UnavailableError: ``cryptography`` is not installed.
    """
    try:
        if not path.is_file():  # opening a named pipe would wait forever
            raise InputError(f"key {path} is missing or not a regular file")
        data = read_at_most(path, KEY_BYTES)
    except OSError as error:
        raise InputError(f"key {path} cannot be read: {error.strerror}") from error
    if data is None:
        raise InputError(f"key {path} is larger than {KEY_BYTES} bytes; pass a PEM file of public keys")
    return parse_anchors(path, data)


def parse_anchors(path: Path, data: bytes) -> Anchors:
    """Parses the bytes of a PEM file; ``path`` is used in messages. Raises as :func:`read_anchors`."""
    try:
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise UnavailableError(
            "checking a signature requires cryptography: pip install 'misgnet-export[verify]'"
        ) from error
    blocks = _pem_blocks(path, data)
    try:
        keys = tuple(_curve_key(load_pem_public_key(block), path) for kind, block in blocks if kind == b"PUBLIC KEY")
        certificates = tuple(x509.load_pem_x509_certificate(block) for kind, block in blocks if kind == b"CERTIFICATE")
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InputError(f"key {path} cannot be read: {error}") from error
    return Anchors(keys, certificates)


def fingerprint(key: PublicKeyTypes) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def find_signer(envelope: Envelope, anchors: Anchors) -> Signer:
    """Returns who signed ``envelope``. Raises InputError if it was none of ``anchors``, or the signature is damaged."""
    for key in anchors.keys:
        if _verifies(key, envelope):
            found = fingerprint(key)
            return Signer(found, f"key {found[:16]}")
    if envelope.certificates and anchors.certificates:
        return _find_by_certificate(envelope, anchors)
    raise InputError("its signature is damaged, or made by another key than required")


def _find_by_certificate(envelope: Envelope, anchors: Anchors) -> Signer:
    """Finds the signer by certificate; as in Model Signing, the chain is verified at the start of its validity."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    unreadable = (UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)

    try:
        encoded = list(dict.fromkeys(envelope.certificates))  # a chain's file often repeats the signer's
        check_size(encoded)
        leaf, *between = map(x509.load_der_x509_certificate, encoded)
        root = verify_chain(leaf, between, anchors.certificates)
        key = leaf.public_key()
    except (ValueError, *unreadable) as error:
        raise InputError(f"its signer's certificate is not accepted: {error}") from error
    if not _verifies(_curve_key(key, Path("the signer's certificate")), envelope):
        raise InputError("its signature is damaged, or made by another key than the certificate's")
    found = fingerprint(root.public_key())
    description = f"{leaf.subject.rfc4514_string()}, certified under {found[:16]}"
    return Signer(found, description, (leaf.not_valid_before_utc, leaf.not_valid_after_utc))


def check_size(certificates: Sequence[bytes]) -> None:
    """Raises ValueError for a chain that is too large to parse."""
    if len(certificates) > CERTIFICATES:
        raise ValueError(f"its chain has {len(certificates)} certificates, at most {CERTIFICATES} are read")
    if (size := sum(map(len, certificates))) > CERTIFICATE_BYTES:
        raise ValueError(f"its chain has {size} bytes, at most {CERTIFICATE_BYTES} are read")


def verify_chain(leaf: Certificate, between: Sequence[Certificate], trusted: Sequence[Certificate]) -> Certificate:
    """Returns the certificate of ``trusted`` that ``leaf`` leads to through ``between``.

    ``leaf`` must be intended for signing. The chain is verified at the start of its validity, as in Model Signing:
    without a trusted timestamp, the time of signing is not known.

    Raises:
        ValueError: The chain does not lead to a trusted certificate.
    """
    from cryptography import x509
    from cryptography.x509 import verification

    _check_subjects([leaf, *between])
    check_use(leaf)
    either = verification.Criticality.AGNOSTIC
    # These replace the requirements of the web: a name in the certificate, and a use as a server or a client.
    authorities = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(x509.ExtendedKeyUsage, either, None)
    signers = verification.ExtensionPolicy.permit_all()
    builder = verification.PolicyBuilder().store(verification.Store(list(trusted))).time(leaf.not_valid_before_utc)
    verifier = builder.extension_policies(ca_policy=authorities, ee_policy=signers).build_client_verifier()
    try:
        chain = verifier.verify(leaf, list(between)).chain
    except verification.VerificationError as error:
        raise ValueError(f"it does not lead to a trusted certificate: {error}") from error
    return chain[-1]


def check_use(leaf: Certificate) -> None:
    """Raises ValueError unless ``leaf`` is intended for code signing.

    Extended key usages restrict a certificate (RFC 5280, 4.2.1.12): if there are any, codeSigning must be among them;
    anyExtendedKeyUsage does not replace it. If there are none, digitalSignature is sufficient.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    with suppress(x509.ExtensionNotFound):
        uses: ExtendedKeyUsage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CODE_SIGNING not in uses:
            raise ValueError("it is not intended for signing: it has extended key usages without codeSigning")
        return
    with suppress(x509.ExtensionNotFound):
        if leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return
    raise ValueError("it is not intended for signing: it has neither digitalSignature nor codeSigning")


def _check_subjects(certificates: Sequence[Certificate]) -> None:
    """Raises ValueError for two certificates with one subject: verifiers try all orders, N ** 8 for N of them."""
    subjects = [certificate.subject.public_bytes() for certificate in certificates]
    for number, subject in enumerate(subjects):
        if subject in subjects[:number]:
            name = certificates[number].subject.rfc4514_string()
            raise ValueError(f"its chain has two certificates of {name!a}; include only one")


def _verifies(key: EllipticCurvePublicKey, envelope: Envelope) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

    name = _HASHES[key.curve.name]
    try:
        key.verify(envelope.signature, envelope.digest(name), ECDSA(Prehashed(getattr(hashes, name)())))
    except InvalidSignature:
        return False
    return True


def _curve_key(key: PublicKeyTypes, path: Path) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise InputError(f"{path} holds a key that Model Signing does not use; use an EC key on P-256, P-384 or P-521")
    return key


def _pem_blocks(path: Path, data: bytes) -> list[tuple[bytes, bytes]]:
    """Returns label and text of each block. Raises InputError for a private key, or if there is no public key."""
    try:
        blocks = list(_split_pem(data))
    except ValueError as error:
        raise InputError(f"key {path} cannot be read: {error}") from error
    if any(b"PRIVATE" in kind for kind, _ in blocks):
        raise InputError(f"key {path} is a private key, for signing only; pass the public key or certificate")
    if not any(kind in (b"PUBLIC KEY", b"CERTIFICATE") for kind, _ in blocks):
        raise InputError(f"key {path} holds no public key or certificate in PEM; write one with openssl ec -pubout")
    return blocks


def _split_pem(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields label and text of each block, in one pass over the lines.

    A block without its end is an error: a truncated file must not be read as a file with fewer keys.
    """
    label, lines = b"", list[bytes]()
    for line in map(bytes.strip, data.removeprefix(codecs.BOM_UTF8).splitlines()):
        mark = _PEM_LINE.fullmatch(line)
        if label:
            lines.append(line)
        if mark is None:
            continue
        if mark[1] == b"BEGIN" and not label:
            label, lines = mark[2], [line]
        elif mark[1] == b"END" and mark[2] == label:
            yield label, b"\n".join(lines) + b"\n"
            label = b""
        else:
            raise ValueError(f"a PEM block is not complete: {line.decode()} has no counterpart")
    if label:
        raise ValueError(f"a PEM block is not complete: {label.decode()} has no END line")

"""Parses a signature file of OpenSSF Model Signing.

It is a Sigstore bundle in JSON (media type below), which holds a DSSE envelope
(https://github.com/secure-systems-lab/dsse), whose payload is an in-toto statement
(https://github.com/in-toto/attestation/tree/main/spec/v1) with the predicate https://model_signing/signature/v1.0: the
SHA-256 of every file. Only the outermost JSON is read before the signature is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from misgnet_runtime.bundle.fields import SIGNATURE
from misgnet_runtime.bundle.signing.names import folded, path_problem
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.limits import BUNDLE_FILES, SIGNED_NAME
from misgnet_runtime.storage.schema import JSON_ERRORS

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"


class _Json(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the parsed structures. Unknown fields are ignored, as the formats require; bytes are base64."""


class _Certificate(_Json, frozen=True):
    raw_bytes: bytes


class _Chain(_Json, frozen=True):
    certificates: list[_Certificate]


class _Material(_Json, frozen=True):
    x509_certificate_chain: _Chain | None = None


class _Signature(_Json, frozen=True):
    sig: bytes


class _Dsse(_Json, frozen=True):
    payload: bytes
    payload_type: str
    signatures: list[_Signature]


class _SignatureFile(_Json, frozen=True):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Dsse


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]


class _Serialization(msgspec.Struct, frozen=True):
    method: str
    hash_type: str


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(msgspec.Struct, frozen=True):
    type: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    subject: list[_Subject]
    predicate: _Predicate


@dataclass(frozen=True)
class Envelope:
    """The signed payload, its signature and the certificates that came with it."""

    payload: bytes
    signature: bytes
    certificates: tuple[bytes, ...]  # DER: the signer's first, then those between it and a root
    _digests: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def digest(self, name: str) -> bytes:
        """Returns the digest of the signed bytes by the hash ``name``; computed only once for all keys."""
        if name not in self._digests:
            self._digests[name] = hashlib.new(name, self.signed_bytes()).digest()
        return self._digests[name]

    def signed_bytes(self) -> bytes:
        """Returns DSSE's pre-authentication encoding (PAE) of the payload."""
        head = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(self.payload)} "
        return head.encode() + self.payload


def decode_envelope(data: bytes) -> Envelope:
    """Parses the bytes of a signature file. Raises InputError for any other format."""
    try:
        found = msgspec.json.decode(data, type=_SignatureFile)
    except JSON_ERRORS as error:
        raise InputError(f"{SIGNATURE} cannot be read: {error}") from error
    dsse, chain = found.dsse_envelope, found.verification_material.x509_certificate_chain
    if found.media_type != _MEDIA_TYPE or dsse.payload_type != _PAYLOAD_TYPE or len(dsse.signatures) != 1:
        raise InputError(
            f"{SIGNATURE} is '{found.media_type}' of '{dsse.payload_type}' with "
            f"{plural(len(dsse.signatures), 'signature')}; this version reads '{_MEDIA_TYPE}' of '{_PAYLOAD_TYPE}' "
            "with 1 signature, as written by model-signing 1.x"
        )
    certificates = tuple(certificate.raw_bytes for certificate in chain.certificates) if chain else ()
    return Envelope(dsse.payload, dsse.signatures[0].sig, certificates)


def signed_digests(envelope: Envelope) -> Mapping[str, str]:
    """Returns the SHA-256 (hexadecimal) of all signed files by relative path, from a verified envelope.

    The statement's list of ignored paths has no effect: the folder must hold exactly these files.

    Raises:
        InputError: The statement is of another kind, a name is not a plain relative path, or two names differ only by
            case or by the Unicode form of a character.
    """
    try:
        statement = msgspec.json.decode(envelope.payload, type=_Statement)
        _check_kind(statement)
        digests = {r.name: bytes.fromhex(r.digest) for r in statement.predicate.resources}
    except JSON_ERRORS as error:
        raise InputError(f"the signed statement cannot be read: {error}") from error
    if problem := _problem(statement, digests):
        raise InputError(f"the signed statement {problem}; sign the bundle again")
    return {name: digest.hex() for name, digest in digests.items()}


def _check_kind(statement: _Statement) -> None:
    how = statement.predicate.serialization
    found = (statement.type, statement.predicate_type, how.method, how.hash_type)
    wanted = (_STATEMENT_TYPE, _PREDICATE_TYPE, "files", "sha256")
    if found != wanted or any(r.algorithm != "sha256" for r in statement.predicate.resources):
        raise ValueError(f"it is {', '.join(found)}; this version reads {', '.join(wanted)}")


def _problem(statement: _Statement, digests: Mapping[str, bytes]) -> str | None:
    total = hashlib.sha256(b"".join(digests.values())).hexdigest()
    if len(statement.predicate.resources) > BUNDLE_FILES:
        return f"names more than {BUNDLE_FILES} files"
    for name in digests:
        if problem := path_problem(name):
            return f"names {name[:SIGNED_NAME]!a}, which is not a plain relative path: {problem}"
    if any(len(digest) != 32 for digest in digests.values()):
        return "contains digests that are not SHA-256"
    if len(set(map(folded, digests))) < len(statement.predicate.resources):
        return "names a file twice"
    if [subject.digest.get("sha256") for subject in statement.subject] != [total]:
        return "contradicts its own digest"
    return None

"""Signs bundles in the format of OpenSSF Model Signing, without the library, following the format's specification.

test_signing.py tests the real library; data/signed holds bundles that it signed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from support.bundles import edit

SIGNATURE = "model.sig"
Key = ec.EllipticCurvePrivateKey
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_HASHES = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}


def make_key(number: int = 1, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> Key:
    """Returns a key that depends only on ``number``."""
    return ec.derive_private_key(1_000_003 * number, curve())


def write_public(path: Path, *keys: Key) -> Path:
    path.write_bytes(
        b"".join(k.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for k in keys)
    )
    return path


def write_private(path: Path, key: Key) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def prepare(root: Path, version: int = 1, signed: str = "2026-06-01T00:00:00+00:00", **more: Any) -> Path:
    """Writes version and release into the manifest; ``more``: product, expires."""
    release = {"product": "survey", "signed": signed, **more}
    return edit(root, lambda m: m.update(bundle_version=version, release=release))


def digests_of(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != SIGNATURE)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sign_folder(
    root: Path,
    key: Key,
    certificates: Sequence[x509.Certificate] = (),
    digests: Sequence[tuple[str, str]] | None = None,
    change: Callable[[dict[str, Any]], object] = lambda statement: None,
) -> Path:
    """Writes ``root``/model.sig over its files, or over ``digests``; ``change`` edits the statement before signing."""
    found = list(digests_of(root).items()) if digests is None else list(digests)
    statement = _statement(root.name, found)
    change(statement)
    payload = json.dumps(statement).encode()
    signature = key.sign(_encoded(payload), ec.ECDSA(_HASHES[key.curve.key_size]()))
    envelope = {"payload": _base64(payload), "payloadType": _PAYLOAD_TYPE, "signatures": [{"sig": _base64(signature)}]}
    chain = [{"rawBytes": _base64(certificate.public_bytes(Encoding.DER))} for certificate in certificates]
    material = {"x509CertificateChain": {"certificates": chain}} if chain else {"publicKey": {"hint": "a test"}}
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }
    (root / SIGNATURE).write_text(json.dumps(bundle))
    return root


def certify(
    subject: str,
    key: Key,
    issuer: tuple[str, Key],
    *,
    authority: bool = False,
    signing: bool = True,
    first: datetime | None = None,
    days: int = 365,
) -> x509.Certificate:
    """Returns a certificate of ``key`` issued by ``issuer``, like one of an organisation's own authority."""
    first = first or datetime(2026, 1, 1, tzinfo=timezone.utc)
    usage = x509.KeyUsage(signing and not authority, False, False, False, not signing, authority, False, False, False)
    issuer_key = issuer[1].public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer[0]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(first + timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), False)
    )
    return builder.sign(issuer[1], hashes.SHA256())


def write_certificates(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates))
    return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _statement(name: str, digests: list[tuple[str, str]]) -> dict[str, Any]:
    total = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in digests)).hexdigest()
    resources = [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests]
    how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": total}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": how, "resources": resources},
    }


def _encoded(payload: bytes) -> bytes:
    return b" ".join(
        [b"DSSEv1", str(len(_PAYLOAD_TYPE)).encode(), _PAYLOAD_TYPE.encode(), str(len(payload)).encode(), payload]
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

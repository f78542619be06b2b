"""Signs a bundle with OpenSSF Model Signing; devices verify the signature with ``misgnet_runtime.bundle.signing``."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from misgnet_runtime.bundle import MANIFEST, SIGNATURE, Manifest, Release, read_unsigned
from misgnet_runtime.bundle.signing.envelope import decode_envelope, signed_digests
from misgnet_runtime.bundle.signing.files import check_digests, check_names, read_signature
from misgnet_runtime.bundle.signing.keys import Anchors, check_size, check_use, find_signer, verify_chain
from misgnet_runtime.bundle.signing.names import text_problem
from misgnet_runtime.bundle.signing.release import moment, read_issue
from misgnet_runtime.bundle.signing.verify import Signed, difference
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from misgnet_runtime.options import check, option
from misgnet_runtime.storage.atomic import refuse_existing, replace_folder
from misgnet_runtime.storage.schema import encode

MAX_PRODUCT = 200  # characters that a manifest allows
_STAGE = ".signing"


@dataclass(frozen=True, kw_only=True)
class SignRequest:
    """Options of ``misgnet-export sign``: what to sign and with which key. Omitted options keep the bundle's values."""

    bundle: Path = option(help="Bundle made by misgnet-export build; it is replaced as a whole.", positional=True)
    key: Path = option(help="Private key in PEM, on P-256, P-384 or P-521.")
    certificate: Path | None = option(
        None, help="Certificate of the key in PEM; devices then need its root (default: sign with the key alone)."
    )
    chain: tuple[Path, ...] = option(
        (),
        help="Certificate between --certificate and its root; may be repeated, in that order (default: none).",
        show_default="",
    )
    product: str | None = option(
        None, help="Product that devices know the bundle by; required if the bundle does not record one.",
        show_default="as recorded in the bundle",
    )  # fmt: skip
    version: int | None = option(
        None, name="bundle-version", help="Version of the bundle; devices refuse older versions.", minimum=0,
        show_default="as recorded in the bundle",
    )  # fmt: skip
    expires: str | None = option(
        None, help="Date or time (UTC) from which devices refuse the bundle, such as 2027-01-01.",
        show_default="as recorded in the bundle, or never",
    )  # fmt: skip
    password: str | None = option(
        None, name="key-password", envvar="MISGNET_KEY_PASSWORD",
        help="Password of an encrypted key; prefer the environment variable (default: none).",
    )  # fmt: skip
    force: bool = option(False, help="Replace an existing signature.")


def sign_bundle(request: SignRequest) -> Signed:
    """Writes product, version, time and expiry into the manifest, signs all files, and replaces the bundle as a whole.

    If anything fails, the bundle stays unchanged.

    Raises:
        UsageError: The bundle is signed already and ``force`` is not set, or an option is invalid.
        InputError: The bundle is damaged, or the key or certificate cannot be used.
        UnavailableError: The library model-signing is missing.
    """
    library = _library()
    check(request)
    if request.chain and request.certificate is None:
        raise UsageError("--chain lists certificates between --certificate and its root; give --certificate as well")
    bundle = read_unsigned(request.bundle)
    refuse_existing(request.bundle / SIGNATURE, request.force)
    manifest = _prepared(bundle.manifest, request, datetime.now(timezone.utc))
    anchors = _own_anchors(request)
    path = Path(os.path.realpath(request.bundle))
    with replace_folder(path) as temporary:
        refuse_existing(request.bundle / SIGNATURE, request.force)  # another process may have signed it meanwhile
        staged = temporary / _STAGE / path.name  # the library stores the folder's name in the signature, for display
        staged.mkdir(parents=True)
        for entry in manifest.files:  # one by one: for a whole folder, shutil does not report the cause of a disk error
            _link(path / entry.path, staged / entry.path)
        (staged / MANIFEST).write_bytes(encode(manifest))
        _write_signature(library, staged, request)
        signed = _check(staged, manifest, anchors)
        for child in staged.iterdir():
            child.rename(temporary / child.name)
        shutil.rmtree(temporary / _STAGE)
    return signed


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise UnavailableError(
            f"`misgnet-export sign` requires {error.name}: pip install 'misgnet-export[sign]'"
        ) from error
    return model_signing


def _prepared(manifest: Manifest, request: SignRequest, now: datetime) -> Manifest:
    """Returns the manifest with the release information that devices check."""
    before = manifest.release
    product = _product(request, before.product if before else "")
    expires = _expiry(request.expires, now) if request.expires else before.expires if before else None
    release = Release(product, now.isoformat(timespec="seconds"), expires)
    version = manifest.bundle_version if request.version is None else request.version
    return replace(manifest, bundle_version=version, release=release)


def _product(request: SignRequest, before: str) -> str:
    """Returns the product's name; devices compare it exactly as it is spelt."""
    product = before if request.product is None else request.product
    if not product:
        raise UsageError(
            f"bundle {request.bundle} does not record a product; name it with --product (devices remember the newest "
            "version of each product, and the folder's name does not identify one)"
        )
    if len(product) > MAX_PRODUCT:
        raise UsageError(f"--product has {len(product)} characters; at most {MAX_PRODUCT} are allowed")
    if problem := text_problem(product):
        raise UsageError(f"--product is {product!a}: {problem}; devices compare it character by character")
    return product


def _expiry(text: str, now: datetime) -> str:
    try:
        found = moment(text)
    except ValueError:
        raise UsageError(
            f"--expires is '{text}'; it must be a date (2027-01-01) or a time (2027-01-01T12:00+01:00)"
        ) from None
    if found <= now:
        raise UsageError(f"--expires is '{text}', which is in the past; give a date in the future")
    return found.isoformat()


def _own_anchors(request: SignRequest) -> Anchors:
    """Returns the public key of the signing key. Raises InputError if key or certificate cannot be used."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(request.key.read_bytes(), _password(request))
        if not isinstance(private, EllipticCurvePrivateKey):
            raise ValueError("it must be on P-256, P-384 or P-521")
        if request.certificate:
            _check_certificate(request.certificate, request.chain)
    except (OSError, TypeError, ValueError) as error:  # TypeError: a password is missing or not needed
        raise InputError(f"key {request.key} or its certificate cannot be used: {error}") from error
    return Anchors((private.public_key(),), ())


def _password(request: SignRequest) -> bytes | None:
    return request.password.encode() if request.password else None


def _check_certificate(path: Path, chain_paths: tuple[Path, ...]) -> None:
    """Raises ValueError for a certificate that devices would refuse."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    leaf = x509.load_pem_x509_certificate(path.read_bytes())
    chain = [found for other in chain_paths for found in x509.load_pem_x509_certificates(other.read_bytes())]
    if not leaf.not_valid_before_utc <= datetime.now(timezone.utc) <= leaf.not_valid_after_utc:
        raise ValueError(f"the certificate is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}")
    check_use(leaf)
    check_size([found.public_bytes(Encoding.DER) for found in (leaf, *chain)])
    if chain:
        verify_chain(leaf, chain[:-1], chain[-1:])


def _write_signature(library: Any, folder: Path, request: SignRequest) -> None:
    """Signs as ``model_signing sign`` does, but excludes nothing except the signature itself."""
    hashing = library.hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)
    config = library.signing.Config().set_hashing_config(hashing)
    try:
        if request.certificate is None:
            config.use_elliptic_key_signer(private_key=request.key, password=_password(request))
        else:
            config.use_certificate_signer(
                private_key=request.key, signing_certificate=request.certificate, certificate_chain=request.chain
            )
        config.sign(folder, folder / SIGNATURE)
    except (TypeError, ValueError) as error:
        raise InputError(f"key {request.key} or its certificate cannot be used: {error}") from error


def _check(folder: Path, manifest: Manifest, anchors: Anchors) -> Signed:
    """Verifies the signature as a device does. Raises InputError."""
    envelope = decode_envelope(read_signature(folder))
    signer, digests = find_signer(envelope, anchors), signed_digests(envelope)
    check_names(folder, digests)
    check_digests(folder, digests)
    if problem := difference(manifest, digests):  # a file was replaced after the bundle had been checked
        raise InputError(problem)
    return Signed(signer, read_issue(encode(manifest)), digests)


def _link(source: Path, target: Path) -> None:
    """Creates a hard link, or a copy on file systems that do not support hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

"""Tests that hostile signatures, certificates and key files are refused within limits of processor time and memory."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="needs cryptography: pip install 'misgnet-export[verify]'")

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.errors import InputError
from support.bundles import make_bundle
from support.commands import exit_code
from support.signatures import (
    SIGNATURE,
    certify,
    digests_of,
    make_key,
    prepare,
    sign_folder,
    write_certificates,
    write_private,
    write_public,
)

KEY, ROOT, LEAF = make_key(), make_key(11), make_key(13)
SECONDS = 5.0  # of processor time for a refusal; most take milliseconds
MIB = 1 << 20


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return prepare(make_bundle(tmp_path / "bundle"))


@pytest.fixture
def root(tmp_path: Path) -> Trust:
    certificate = certify("root", ROOT, ("root", ROOT), authority=True)
    return Trust(write_certificates(tmp_path / "root.pem", certificate))


def refused(bundle: Path, trust: Trust) -> str:
    """Returns why the bundle is refused; the refusal must not take longer than allowed."""
    start = time.process_time()
    with pytest.raises(InputError) as error:
        read_bundle(bundle, trust)
    assert time.process_time() - start < SECONDS
    return str(error.value)


# Chains


def _one_name_one_key(count: int) -> list[x509.Certificate]:
    """Returns certificates that certify each other: a verifier that tries all orders takes ``count`` ** 8 steps."""
    key = make_key(20)
    return [certify("x", key, ("x", key), authority=True) for _ in range(count)]


def _one_name(count: int) -> list[x509.Certificate]:
    keys = [make_key(20 + number) for number in range(count)]
    return [certify("x", keys[n], ("x", keys[(n + 1) % count]), authority=True) for n in range(count)]


def _two_names(count: int) -> list[x509.Certificate]:
    keys = {"x": make_key(20), "y": make_key(21)}
    pairs = [("x", "y"), ("y", "x")] * count
    return [certify(name, keys[name], (other, keys[other]), authority=True) for name, other in pairs]


@pytest.mark.parametrize("family", [_one_name_one_key, _one_name, _two_names], ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("count", [2, 3])
def test_certificates_that_certify_each_other_are_refused_without_verification(
    bundle: Path, root: Trust, family: Callable[[int], list[x509.Certificate]], count: int
) -> None:
    sign_folder(bundle, LEAF, [certify("signer", LEAF, ("x", make_key(20))), *family(count)])
    assert "its chain has two certificates of 'CN=" in refused(bundle, root)


@pytest.mark.parametrize("count", [9, 1000])
def test_long_chains_are_refused_before_they_are_parsed(bundle: Path, root: Trust, count: int) -> None:
    key = make_key(20)
    one = certify("x", key, ("x", key), authority=True)
    sign_folder(bundle, LEAF, [certify("signer", LEAF, ("x", key)), *[one] * 7])
    whole = json.loads((bundle / SIGNATURE).read_bytes())
    entries = [{"rawBytes": base64.b64encode(b"%d" % number).decode()} for number in range(count)]
    whole["verificationMaterial"]["x509CertificateChain"]["certificates"] = entries
    (bundle / SIGNATURE).write_text(json.dumps(whole))
    assert f"its chain has {count} certificates, at most 8 are read" in refused(bundle, root)


def test_large_certificates_are_refused_before_they_are_parsed(bundle: Path, root: Trust) -> None:
    large = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(64 << 10))
    sign_folder(bundle, LEAF, [_leaf(large)])
    assert "bytes, at most 65536 are read" in refused(bundle, root)


def test_longest_allowed_chain_is_accepted(tmp_path: Path, bundle: Path, root: Trust) -> None:
    """The certificates may be in any order, and some may appear twice."""
    names = ["root", *(f"n{number}" for number in range(7))]
    keys = [ROOT, *(make_key(20 + number) for number in range(7))]
    between = [certify(names[n], keys[n], (names[n - 1], keys[n - 1]), authority=True) for n in range(1, 8)]
    leaf = certify("signer", LEAF, (names[-1], keys[-1]))
    for chain in ([leaf, *between], [leaf, *reversed(between)], [leaf, leaf, *between, between[0]]):
        sign_folder(bundle, LEAF, chain)
        assert read_bundle(bundle, root).signed is not None


# Uses


def _leaf(*extensions: x509.ExtensionType, signing: bool = True) -> x509.Certificate:
    """Returns a signer's certificate issued by the root, with additional extensions."""
    plain = certify("signer", LEAF, ("root", ROOT), signing=signing)
    builder = x509.CertificateBuilder(
        plain.issuer, plain.subject, plain.public_key(), plain.serial_number, plain.not_valid_before_utc,
        plain.not_valid_after_utc, list(plain.extensions),
    )  # fmt: skip
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    return builder.sign(ROOT, hashes.SHA256())


_USES = ExtendedKeyUsageOID


@pytest.mark.parametrize(
    ("uses", "accepted"),
    [
        ([_USES.CODE_SIGNING], True),
        ([_USES.EMAIL_PROTECTION, _USES.CODE_SIGNING], True),
        ([_USES.SERVER_AUTH], False),
        ([_USES.CLIENT_AUTH, _USES.EMAIL_PROTECTION], False),
        ([_USES.ANY_EXTENDED_KEY_USAGE], False),
        ([_USES.TIME_STAMPING], False),
    ],
)
@pytest.mark.parametrize("signing", [True, False])
def test_signer_with_extended_key_usages_needs_code_signing(
    bundle: Path, root: Trust, uses: list[x509.ObjectIdentifier], accepted: bool, signing: bool
) -> None:
    """A web server's certificate also has digitalSignature, but its key is stored on a web server."""
    sign_folder(bundle, LEAF, [_leaf(x509.ExtendedKeyUsage(uses), signing=signing)])
    if accepted:
        assert read_bundle(bundle, root).signed is not None
    else:
        assert "it has extended key usages without codeSigning" in refused(bundle, root)


def test_sign_refuses_a_certificate_that_devices_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The certificate is also checked if no chain is given."""
    pytest.importorskip("model_signing", reason="signing needs model-signing: pip install 'misgnet-export[sign]'")
    from misgnet_export.cli import main as cli

    certificate = write_certificates(tmp_path / "leaf.pem", _leaf(x509.ExtendedKeyUsage([_USES.SERVER_AUTH])))
    words = ["--key", write_private(tmp_path / "leaf.key", LEAF), "--certificate", certificate, "--product", "survey"]
    code = exit_code(cli.main, "misgnet-export", "sign", make_bundle(tmp_path / "bundle"), *words)
    assert code == 4 and "codeSigning" in capsys.readouterr().err


# Signature files


def _edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    whole = json.loads((sign_folder(bundle, KEY) / SIGNATURE).read_bytes())
    change(whole)
    (bundle / SIGNATURE).write_text(json.dumps(whole))


@pytest.mark.parametrize(
    "text",
    [
        "[" * (8 * MIB - 1),
        '{"a":' * (MIB + MIB // 2),
        '{"mediaType":"' + "\\u0041" * MIB,
        '{"verificationMaterial":{"x509CertificateChain":{"certificates":[' + '{"rawBytes":""},' * (MIB // 4),
        '{"x":' + "9" * (8 * MIB - 10) + "}",
    ],
    ids=["lists", "objects", "escapes", "certificates", "digits"],
)
def test_hostile_signature_files_of_the_largest_size_are_refused(bundle: Path, root: Trust, text: str) -> None:
    (bundle / SIGNATURE).write_text(text)
    assert "is refused" in refused(bundle, root)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("f{}", 30_000, "names more than 10000 files"),
        ("\u0316\u0301" * 500_000 + "{}", 1, "more than 1024 characters"),  # two classes, which normalising sorts
        ("a/" * 500 + "{}", 5_000, "lacks"),
    ],
)
def test_statements_of_many_or_long_names_are_refused(
    tmp_path: Path, bundle: Path, name: str, count: int, message: str
) -> None:
    """Even a bundle signed by a trusted key must not keep a device busy for minutes."""
    digests = [*digests_of(bundle).items(), *((name.format(number), "0" * 64) for number in range(count))]
    sign_folder(bundle, KEY, digests=digests)
    assert message in refused(bundle, Trust(write_public(tmp_path / "key.pub", KEY)))


# Key files

PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
FAMILIES: dict[str, Callable[[], bytes]] = {
    "begins": lambda: b"-----BEGIN A-----\n" * (MIB // 18),
    "begins of keys": lambda: b"-----BEGIN PUBLIC KEY-----\n" * (MIB // 27),
    "ends of others": lambda: b"-----BEGIN A-----\n-----END B-----\n" * (MIB // 34),
    "a long label": lambda: b"-----BEGIN " + b"A" * (MIB - 20),
    "labels that do not end": lambda: b"-----BEGIN AAAAAAAAAAAAAAAAAAAA" * (MIB // 31),
    "dashes": lambda: b"-" * MIB,
    "one block": lambda: b"-----BEGIN PUBLIC KEY-----\n" + b"A" * (MIB - 60) + b"\n-----END PUBLIC KEY-----\n",
    "lines": lambda: b"\n" * MIB,
    "carriage returns": lambda: b"-----BEGIN A-----\r" * (MIB // 18),
    "keys": lambda: PEM * (MIB // len(PEM)),
    "a certificate that is none": lambda: (
        b"-----BEGIN CERTIFICATE-----\n" + b"QUFB\n" * (MIB // 6) + b"-----END CERTIFICATE-----\n"
    ),
}
READ = """
import resource, sys
from pathlib import Path
from misgnet_runtime.errors import InputError
from misgnet_runtime.bundle.signing.keys import read_anchors

resource.setrlimit(resource.RLIMIT_CPU, (15, 15))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    print("keys", len(read_anchors(Path(sys.argv[1])).keys))
except InputError as error:
    print("refused", error)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_key_files_of_the_largest_size_are_refused(tmp_path: Path, family: str) -> None:
    """The child process is limited to 15 s of processor time and 1 GiB; lines that begin blocks once took hours."""
    path = tmp_path / "key.pub"
    path.write_bytes(FAMILIES[family]())
    assert MIB // 2 < path.stat().st_size <= MIB
    found = subprocess.run([sys.executable, "-c", READ, path], text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("keys" if family == "keys" else "refused"), found.stdout[:200]


@pytest.mark.parametrize("change", [lambda pem: pem[:-2], lambda pem: pem[: len(pem) // 2], lambda pem: pem[30:]])
def test_truncated_key_file_is_refused(tmp_path: Path, bundle: Path, change: Callable[[bytes], bytes]) -> None:
    """Otherwise fewer keys would be trusted than the operator believes."""
    sign_folder(bundle, KEY)
    other = write_public(tmp_path / "other.pub", make_key(2)).read_bytes()
    (tmp_path / "key.pub").write_bytes(PEM + change(other))
    assert "a PEM block is not complete" in refused(bundle, Trust(tmp_path / "key.pub"))


def test_usual_variants_of_key_files_are_accepted(tmp_path: Path, bundle: Path) -> None:
    """Key files may have text between the blocks, indentation and other line ends."""
    sign_folder(bundle, KEY)
    lines = PEM.splitlines()
    for text in (
        b"# the key of 2026\n" + PEM,
        b"\xef\xbb\xbf" + PEM,
        b"\r\n".join(lines),
        b"\r".join(lines) + b"\r",
        b"\n".join(b"  " + line + b" " for line in lines),
    ):
        (tmp_path / "key.pub").write_bytes(text)
        assert read_bundle(bundle, Trust(tmp_path / "key.pub")).signed is not None

"""Tests ``misgnet-export sign`` together with the real library: each accepts the other's signatures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

model_signing = pytest.importorskip(
    "model_signing", reason="signing needs model-signing: pip install 'misgnet-export[sign]'"
)

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from misgnet_export.cli import main as cli
from misgnet_export.integrations import signing
from misgnet_runtime.bundle.reader import read_bundle, read_unsigned
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.errors import InputError
from support.bundles import make_bundle
from support.commands import exit_code
from support.signatures import SIGNATURE, certify, digests_of, make_key, write_certificates, write_private, write_public

KEY = make_key()
ROOT, BETWEEN, LEAF = make_key(11), make_key(12), make_key(13)
Sign = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "demo")


@pytest.fixture
def sign(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> Sign:
    """Runs the command with the bundle; returns exit code, output and error.

    Unless others are given, it adds the test's key and, for an unsigned bundle, a product.
    """
    key = write_private(tmp_path / "key.pem", KEY)

    def call(*words: object) -> tuple[int, str, str]:
        given = words if "--key" in words else ("--key", key, *words)
        if "--product" not in words and not (bundle / SIGNATURE).exists():
            given = (*given, "--product", "demo")
        return exit_code(cli.main, "misgnet-export", "sign", bundle, *given), *capsys.readouterr()

    return call


def command(*words: object) -> int:
    """Runs the library's own command and returns its exit code."""
    line = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(line, capture_output=True, check=False).returncode


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_runtime_and_library_accept_signature_by_key(
    tmp_path: Path, bundle: Path, sign: Sign, curve: type[ec.EllipticCurve]
) -> None:
    key = make_key(4, curve)
    code, out, error = sign("--key", write_private(tmp_path / "k.pem", key), "--expires", "2999-01-01")
    assert (code, error) == (0, "") and "6 files signed by key " in out and "expires 2999-01-01 00:00 UTC" in out
    public = write_public(tmp_path / "k.pub", key)
    renamed = bundle.rename(tmp_path / "renamed")
    signed = read_bundle(renamed, Trust(public)).signed
    assert signed is not None and signed.digests == digests_of(renamed) and signed.issue.product == "demo"
    library = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    library.verify(renamed, renamed / SIGNATURE)
    (renamed / "evidence/report.html").write_text("changed")
    with pytest.raises(ValueError, match=r"report\.html"):
        library.verify(renamed, renamed / SIGNATURE)


def test_command_of_library_accepts_signature(tmp_path: Path, bundle: Path, sign: Sign) -> None:
    assert sign()[0] == 0
    public = write_public(tmp_path / "k.pub", KEY)
    assert command("verify", "key", bundle, "--signature", bundle / SIGNATURE, "--public_key", public) == 0


def _certificates(tmp_path: Path) -> tuple[Path, Path, Path, Path]:
    """Writes a private key, its certificate, an intermediate certificate and the root; returns their paths."""
    now = datetime.now(timezone.utc) - timedelta(hours=1)
    root = certify("root", ROOT, ("root", ROOT), authority=True, first=now)
    between = certify("between", BETWEEN, ("root", ROOT), authority=True, first=now)
    leaf = certify("signer", LEAF, ("between", BETWEEN), first=now)
    private = write_private(tmp_path / "leaf.key", LEAF)
    return private, *(
        write_certificates(tmp_path / f"{n}.pem", c) for n, c in (("leaf", leaf), ("between", between), ("root", root))
    )  # type: ignore[return-value]


def test_runtime_and_library_accept_signature_by_certificate(tmp_path: Path, bundle: Path, sign: Sign) -> None:
    private, leaf, between, root = _certificates(tmp_path)
    code, out, error = sign("--key", private, "--certificate", leaf, "--chain", between)
    assert code == 0, (out, error)
    signed = read_bundle(bundle, Trust(root)).signed
    assert signed is not None and "CN=signer, certified under" in signed.signer.description
    library = model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[root])
    library.verify(bundle, bundle / SIGNATURE)


def test_runtime_accepts_signatures_of_the_library(tmp_path: Path, bundle: Path) -> None:
    private, leaf, between, root = _certificates(tmp_path)
    common = [bundle, "--signature", bundle / SIGNATURE, "--private_key"]
    assert command("sign", "key", *common, write_private(tmp_path / "k", KEY)) == 0
    assert read_bundle(bundle, Trust(write_public(tmp_path / "k.pub", KEY))).signed is not None
    more = ["--signing_certificate", leaf, "--certificate_chain", between]
    assert command("sign", "certificate", *common, private, *more) == 0
    assert read_bundle(bundle, Trust(root)).signed is not None


def test_runtime_rejects_files_that_the_library_ignored(tmp_path: Path, bundle: Path) -> None:
    """A statement may omit files, but a device accepts only signed files."""
    key = write_private(tmp_path / "k", KEY)
    ignored = ["--ignore-paths", bundle / "evidence"]
    assert command("sign", "key", bundle, "--signature", bundle / SIGNATURE, "--private_key", key, *ignored) == 0
    with pytest.raises(InputError, match=r"holds 'evidence/report.html', which was not signed"):
        read_bundle(bundle, Trust(write_public(tmp_path / "k.pub", KEY)))


def test_versions_products_and_expiries_are_kept_or_replaced(bundle: Path, sign: Sign) -> None:
    assert sign("--product", "survey", "--bundle-version", 7, "--expires", "2999-01-01")[0] == 0
    code, _, error = sign()
    assert code == 2 and "--force" in error
    assert sign("--force")[0] == 0
    found = read_unsigned(bundle).manifest
    assert found.release is not None and found.bundle_version == 7
    assert (found.release.product, found.release.expires) == ("survey", "2999-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--expires", "soon"], 2, "it must be a date"),
        (["--expires", "2020-01-01"], 2, "which is in the past"),
        (["--chain", "x"], 2, "give --certificate as well"),
        (["--key", "nowhere"], 4, "cannot be used"),
        (["--bundle-version", "-1"], 2, "0"),
    ],
)
def test_invalid_options_leave_the_bundle_unchanged(
    bundle: Path, sign: Sign, words: list[str], code: int, message: str
) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    found, _, error = sign(*words)
    assert found == code and message in error
    assert before == {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_certificates_that_devices_would_refuse_are_rejected(tmp_path: Path, bundle: Path, sign: Sign) -> None:
    private, leaf, between, _ = _certificates(tmp_path)
    old = certify("signer", LEAF, ("between", BETWEEN), first=datetime(2020, 1, 1, tzinfo=timezone.utc))
    expired = write_certificates(tmp_path / "old.pem", old)
    strange = write_certificates(tmp_path / "x.pem", certify("between", KEY, ("between", KEY), authority=True))
    for key, certificate, chain, message in (
        (private, expired, between, "valid from 2020"),
        (private, leaf, strange, "does not lead to a trusted certificate"),
        (write_private(tmp_path / "other", KEY), leaf, between, "does not match"),
    ):
        code, _, error = sign("--key", key, "--certificate", certificate, "--chain", chain)
        assert code == 4 and message in error and not (bundle / SIGNATURE).exists()


def test_encrypted_key_needs_its_password(
    tmp_path: Path, bundle: Path, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypted = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    key = tmp_path / "encrypted.pem"
    key.write_bytes(encrypted)
    code, _, error = sign("--key", key)
    assert code == 4 and "encrypted" in error
    monkeypatch.setenv("MISGNET_KEY_PASSWORD", "secret")
    assert sign("--key", key)[0] == 0
    assert read_bundle(bundle, Trust(write_public(tmp_path / "k.pub", KEY))).signed is not None


def test_damaged_bundle_is_not_signed(bundle: Path, sign: Sign) -> None:
    (bundle / "graphs/float.onnx").write_bytes(b"other")
    code, _, error = sign()
    assert code == 4 and "does not match its digest" in error and not (bundle / SIGNATURE).exists()


def test_failure_leaves_the_bundle_unchanged(
    tmp_path: Path, bundle: Path, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new manifest must not be written through the hard links that the new folder consists of."""
    before = digests_of(bundle)
    monkeypatch.setattr(signing, "find_signer", lambda *_: (_ for _ in ()).throw(InputError("as a test")))
    assert sign()[0] == 4
    assert digests_of(bundle) == before and not (bundle / SIGNATURE).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "key.pem"]


def test_bundle_is_signed_on_a_file_system_without_hard_links(
    tmp_path: Path, bundle: Path, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "not here")))
    assert sign()[0] == 0
    assert read_bundle(bundle, Trust(write_public(tmp_path / "k.pub", KEY))).signed is not None


def test_bundle_is_signed_through_a_link_while_signatures_are_required(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signer's machine may require signatures as devices do, although the bundle has none yet."""
    public = write_public(tmp_path / "k.pub", KEY)
    monkeypatch.setenv("MISGNET_REQUIRE_SIGNATURE", str(public))
    link = tmp_path / "current"
    link.symlink_to(bundle)
    key = write_private(tmp_path / "k.pem", KEY)
    assert exit_code(cli.main, "misgnet-export", "sign", link, "--key", key, "--product", "demo") == 0
    assert link.is_symlink() and read_bundle(link).name == link
    assert read_bundle(shutil.copytree(bundle, tmp_path / "copy")).signed is not None


def test_missing_library_prints_install_command(bundle: Path, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(model_signing=None); from misgnet_export.cli.main import main; main()"
    key = write_private(tmp_path / "k.pem", KEY)
    line = [sys.executable, "-c", blocked, "sign", str(bundle), "--key", str(key)]
    found = subprocess.run(line, text=True, capture_output=True, check=False)
    assert found.returncode == 5 and "pip install 'misgnet-export[sign]'" in found.stderr

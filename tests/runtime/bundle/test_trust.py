"""Tests the parts of a signature check: keys, certificate chains, versions, and accepted versions."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography: pip install 'misgnet-export[verify]'")

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.envelope import decode_envelope, signed_digests
from misgnet_runtime.bundle.signing.keys import read_anchors
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.bundle.signing.release import CLOCK_TOLERANCE, Issue, Version, moment, refusal
from misgnet_runtime.bundle.signing.rollback import open_state
from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.storage import permissions
from support.bundles import make_bundle
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

KEY = make_key()
ROOT, BETWEEN, LEAF = make_key(11), make_key(12, ec.SECP384R1), make_key(13, ec.SECP521R1)
NOW = datetime(2026, 11, 26, tzinfo=timezone.utc)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return prepare(make_bundle(tmp_path / "bundle"))


# Keys and certificates


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_any_of_several_keys_is_accepted(tmp_path: Path, bundle: Path, curve: type[ec.EllipticCurve]) -> None:
    key = make_key(3, curve)
    sign_folder(bundle, key)
    both = Trust(write_public(tmp_path / "both.pub", KEY, key))
    assert read_bundle(bundle, both).signed is not None
    with pytest.raises(InputError, match="by another key than required"):
        read_bundle(bundle, Trust(write_public(tmp_path / "one.pub", KEY)))


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("case", ["missing", "a folder", "empty", "large", "private", "rsa", "another curve", "broken"])
def test_invalid_key_file_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "key"
    contents = {
        "empty": lambda: b"",
        "large": lambda: b" " * (1 << 20) + _pem(KEY),
        "private": lambda: write_private(path, KEY).read_bytes() + _pem(KEY),
        "rsa": lambda: _pem(rsa.generate_private_key(65537, 2048)),
        "another curve": lambda: _pem(ec.derive_private_key(7, ec.SECP256K1())),
        "broken": lambda: _pem(KEY).replace(b"MF", b"MA", 1),
    }
    if case == "a folder":
        path.mkdir()
    elif case in contents:
        path.write_bytes(contents[case]())
    with pytest.raises(InputError, match="key") as refused:
        read_anchors(path)
    assert str(path) in str(refused.value)


def _signed_by_certificate(bundle: Path, **leaf: object) -> Path:
    between = certify("between", BETWEEN, ("root", ROOT), authority=True)
    return sign_folder(bundle, LEAF, [certify("signer", LEAF, ("between", BETWEEN), **leaf), between])  # type: ignore[arg-type]


def _root(path: Path) -> Trust:
    return Trust(write_certificates(path / "root.pem", certify("root", ROOT, ("root", ROOT), authority=True)))


def test_certificate_chain_leads_to_its_root(tmp_path: Path, bundle: Path) -> None:
    _signed_by_certificate(bundle)
    found = read_bundle(bundle, _root(tmp_path)).signed
    assert found is not None and found.signer.description.startswith("CN=signer, certified under ")
    other = certify("root", make_key(14), ("root", make_key(14)), authority=True)
    for trust in (write_certificates(tmp_path / "other.pem", other), write_public(tmp_path / "key.pub", KEY)):
        with pytest.raises(InputError, match=r"signer's certificate is not accepted|by another key"):
            read_bundle(bundle, Trust(trust))


def test_invalid_certificate_chains_are_refused(tmp_path: Path, bundle: Path) -> None:
    root, between = ("root", ROOT), ("between", BETWEEN)
    leaf = certify("signer", LEAF, between)
    authority = certify("between", BETWEEN, root, authority=True)
    chains = {
        "no link to the root": [leaf],
        "issued by a certificate that is not an authority": [leaf, certify("between", BETWEEN, root)],
        "not for signing": [certify("signer", LEAF, between, signing=False), authority],
        "before its authority": [
            certify("signer", LEAF, between, first=datetime(2020, 1, 1, tzinfo=timezone.utc)), authority,
        ],
        "of another key": [certify("signer", KEY, between), authority],
        "by a forged authority": [leaf, certify("between", BETWEEN, ("root", KEY), authority=True)],
    }  # fmt: skip
    for name, chain in chains.items():
        sign_folder(bundle, LEAF, chain)
        with pytest.raises(InputError, match="is refused"):
            read_bundle(bundle, _root(tmp_path))
            pytest.fail(name)


def test_signature_outside_its_certificates_validity_is_refused(tmp_path: Path, bundle: Path) -> None:
    _signed_by_certificate(bundle, days=30)
    with pytest.raises(
        InputError, match="signed on 2026-06-01 00:00, but its signer's certificate is valid from 2026-01"
    ):
        read_bundle(bundle, _root(tmp_path))


def test_damaged_certificates_are_refused(tmp_path: Path, bundle: Path) -> None:
    """Any damage of the chain raises InputError, and no other error."""
    trust = _root(tmp_path)
    whole = json.loads((_signed_by_certificate(bundle) / SIGNATURE).read_bytes())
    chance = random.Random(1)
    for _ in range(300):
        damaged = json.loads(json.dumps(whole))
        entry = chance.choice(damaged["verificationMaterial"]["x509CertificateChain"]["certificates"])
        at = chance.randrange(len(entry["rawBytes"]))
        entry["rawBytes"] = entry["rawBytes"][:at] + chance.choice("AZaz09+/") + entry["rawBytes"][at + 1 :]
        if damaged != whole:
            (bundle / SIGNATURE).write_text(json.dumps(damaged))
            with pytest.raises(InputError):
                read_bundle(bundle, trust)


@settings(max_examples=50)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_random_bytes_are_refused_as_a_signature(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_envelope(data)


@pytest.mark.parametrize(
    "change", [{"mediaType": "x"}, {"dsseEnvelope": {"payload": "", "payloadType": "", "signatures": []}}]
)
def test_other_signature_formats_are_refused(bundle: Path, change: dict[str, object]) -> None:
    whole = json.loads((sign_folder(bundle, KEY) / SIGNATURE).read_bytes())
    with pytest.raises(InputError, match=r"as written by model-signing 1\.x"):
        decode_envelope(json.dumps({**whole, **change}).encode())


_TRICKS = [
    "../x",
    "/x",
    "a/../x",
    "./x",
    "a//x",
    "a/",
    "",
    "a\\x",
    "c:x",
    "a\nx",
    "a\u200bx",
    "a\u0308x",
    "\u212a",
    SIGNATURE,
]


@pytest.mark.parametrize("name", _TRICKS, ids=ascii)
def test_names_that_are_not_plain_paths_are_refused(bundle: Path, name: str) -> None:
    """The name is refused even if it was signed: its meaning must not depend on the system."""
    sign_folder(bundle, KEY, digests=[*digests_of(bundle).items(), (name, "0" * 64)])
    with pytest.raises(InputError, match="which is not a plain relative path"):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


@pytest.mark.parametrize("twin", ["Manifest.json", "manifest.json", "graphs/float.ONNX", "graphs/\ufb02oat.onnx"])
def test_names_that_other_disks_do_not_distinguish_are_refused(bundle: Path, twin: str) -> None:
    """They differ by case, as on macOS and FAT disks, or by a ligature."""
    sign_folder(bundle, KEY, digests=[*digests_of(bundle).items(), (twin, "0" * 64)])
    with pytest.raises(InputError, match="names a file twice"):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


@pytest.mark.parametrize(("digest", "message"), [("00" * 31, "are not SHA-256"), ("x" * 64, "cannot be read")])
def test_invalid_digests_are_refused(bundle: Path, digest: str, message: str) -> None:
    sign_folder(bundle, KEY, change=lambda s: s["predicate"]["resources"][0].update(digest=digest))
    with pytest.raises(InputError, match=message):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


def test_statement_that_contradicts_its_digest_is_refused(bundle: Path) -> None:
    sign_folder(bundle, KEY, change=lambda s: s["subject"][0]["digest"].update(sha256="0" * 64))
    with pytest.raises(InputError, match="contradicts its own digest"):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


# Versions and the clock

VERSIONS = st.builds(Version, st.integers(0, 5), st.datetimes(timezones=st.just(timezone.utc)))


@given(st.lists(VERSIONS, max_size=20))
def test_accepted_version_never_decreases(versions: list[Version]) -> None:
    newest: Version | None = None
    for version in versions:
        if refusal(Issue("p", version), newest, NOW) is None:
            assert newest is None or version >= newest
            newest = version
        else:
            assert newest is not None and version < newest
    assert newest == max(versions, default=None)


@pytest.mark.parametrize(
    ("expires", "now", "newest", "message"),
    [
        (None, NOW - 9999 * DAY, None, None),  # without an expiry the clock does not matter
        (NOW + DAY, NOW, None, None),
        (NOW, NOW, None, "it expired on 2026-11-26 00:00 UTC"),
        (NOW + DAY, NOW - 30 * DAY, None, "set the clock"),  # before this bundle was signed
        (NOW + DAY, NOW - 10 * DAY - CLOCK_TOLERANCE, None, None),
        (NOW + DAY, NOW - 5 * DAY, NOW - 2 * DAY, "set the clock"),  # before another one was, with a smaller number
    ],
)
def test_expired_bundles_and_wrong_clocks_are_refused(
    expires: datetime | None, now: datetime, newest: datetime | None, message: str | None
) -> None:
    issue = Issue("p", Version(2, NOW - 10 * DAY), expires)
    found = refusal(issue, None if newest is None else Version(1, newest), now)
    assert (found is None) if message is None else (found is not None and message in found)


@pytest.mark.parametrize("text", ["2027-01-01", "2027-01-01T00:00Z", "2027-01-01T02:00+02:00"])
def test_times_are_converted_to_utc(text: str) -> None:
    assert moment(text) == datetime(2027, 1, 1, tzinfo=timezone.utc)


def test_bundle_signed_only_by_the_library_is_accepted(tmp_path: Path) -> None:
    """Without a release, its version is the manifest's number and the time of the build."""
    bundle = sign_folder(make_bundle(tmp_path / "bundle"), KEY)
    found = read_bundle(bundle, Trust(write_public(tmp_path / "key.pub", KEY))).signed
    assert found is not None and found.issue.version == Version(1, moment("2026-01-01"))


@pytest.mark.parametrize("signed", ["yesterday", "", "2026-13-01"])
def test_invalid_time_of_signing_is_refused(tmp_path: Path, bundle: Path, signed: str) -> None:
    sign_folder(prepare(bundle, signed=signed), KEY)
    with pytest.raises(InputError, match="has no readable version"):
        read_bundle(bundle, Trust(write_public(tmp_path / "key.pub", KEY)))


# Accepted versions


def test_accepted_versions_are_kept_per_product_and_group_of_trusted_keys(tmp_path: Path, bundle: Path) -> None:
    old, new = KEY, make_key(2)
    only_old, only_new = (Trust(write_public(tmp_path / f"{n}.pub", k)) for n, k in (("old", old), ("new", new)))
    both = Trust(write_public(tmp_path / "both.pub", old, new))
    read_bundle(sign_folder(prepare(bundle, 7), new), only_new)
    read_bundle(sign_folder(prepare(bundle, 3, product="another"), new), only_new)
    sign_folder(prepare(bundle, 3), old)
    with pytest.raises(InputError, match="but version 7 of"):  # a retiring key cannot bring back older versions
        read_bundle(bundle, both)
    read_bundle(bundle, only_old)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_state_that_others_could_read_or_write_is_refused(state: Path, mode: int) -> None:
    state.mkdir()
    state.chmod(mode)
    with pytest.raises(InputError, match=f"chmod 700 {state}"), open_state():
        pass


def test_state_that_others_could_replace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("MISGNET_STATE", str(shared / "state"))
    with pytest.raises(InputError, match=f"can be replaced by other users: {shared} belongs to them"), open_state():
        pass
    shared.chmod(0o1777)
    with open_state():
        assert (shared / "state").stat().st_mode & 0o777 == 0o700


def test_state_of_another_user_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: state.stat().st_uid + 1)
    with pytest.raises(InputError, match=r"belongs to user \d+, not to this user"), open_state():
        pass


def test_write_access_of_the_users_own_group_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask 002 of many distributions makes folders writable for the user's own group."""
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o775)
    for own in (True, False):
        monkeypatch.setattr(permissions, "_is_own_group", lambda _, own=own: own)
        assert permissions.only_ours([folder]) is own


def test_state_behind_a_link_is_accepted_if_nobody_else_could_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd creates such links for DynamicUser=; a user who could replace one could remove accepted versions."""
    (tmp_path / "private").mkdir(mode=0o700)
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "state").symlink_to(tmp_path / "private")
    monkeypatch.setenv("MISGNET_STATE", str(shared / "state"))
    with open_state() as state:
        state.accept("p", "k", Version(1, moment("2026-01-01")))
    assert len(list((tmp_path / "private" / "accepted").iterdir())) == 1
    shared.chmod(0o777)
    with pytest.raises(InputError, match=f"can be replaced by other users: {shared} belongs to them"), open_state():
        pass


def test_state_that_cannot_be_created_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "file" / "state"))
    with pytest.raises(StorageError, match="set MISGNET_STATE to another folder"), open_state():
        pass


def test_state_of_an_earlier_version_is_read(state: Path) -> None:
    """The earlier version created ``accepted`` with the umask's mode, within the private folder."""
    state.mkdir(mode=0o700)
    (state / "accepted").mkdir(mode=0o755)
    name = hashlib.sha256(b"k p").hexdigest()[:32]
    record = {"format": 1, "key": "k", "product": "p", "version": 7, "signed": "2026-01-01T00:00:00+00:00"}
    (state / "accepted" / f"{name}.json").write_text(json.dumps(record))
    with open_state() as found:
        assert found.newest("p", ["k"]) == Version(7, moment("2026-01-01"))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"format":9,"key":"","product":"","version":1,"signed":""}']
)
def test_damaged_record_refuses_every_version(tmp_path: Path, bundle: Path, state: Path, content: bytes) -> None:
    trust = Trust(write_public(tmp_path / "key.pub", KEY))
    read_bundle(sign_folder(bundle, KEY), trust)
    (record,) = state.rglob("*.json")
    record.write_bytes(content)
    with pytest.raises(InputError, match="delete this file to accept any version"):
        read_bundle(bundle, trust)
    assert record.read_bytes() == content


def test_concurrent_processes_keep_the_newest_version(state: Path) -> None:
    script = """
import sys
from misgnet_runtime.bundle.signing.rollback import Version, open_state, moment
for number in map(int, sys.argv[1:]):
    with open_state() as state:
        state.accept("p", "k", Version(number, moment("2026-01-01")))
"""
    counts = [str(n) for n in range(40)]
    children = [
        subprocess.Popen([sys.executable, "-c", script, *part]) for part in (counts[::2], counts[::-1], counts[1::2])
    ]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    with open_state() as found:
        assert found.newest("p", ["k"]) == Version(39, moment("2026-01-01"))
    assert len(list(state.rglob("*.json"))) == 1

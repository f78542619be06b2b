"""The parts of a signature's check: whose key, which chain, which version, and what a device remembers."""

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
def test_any_of_several_keys(tmp_path: Path, bundle: Path, curve: type[ec.EllipticCurve]) -> None:
    key = make_key(3, curve)
    sign_folder(bundle, key)
    both = Trust(write_public(tmp_path / "both.pub", KEY, key))
    assert read_bundle(bundle, both).signed is not None
    with pytest.raises(InputError, match="by another key than required"):
        read_bundle(bundle, Trust(write_public(tmp_path / "one.pub", KEY)))


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("case", ["missing", "a folder", "empty", "large", "private", "rsa", "another curve", "broken"])
def test_a_key_file_that_is_none(tmp_path: Path, case: str) -> None:
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


def test_a_certificate_leads_to_its_root(tmp_path: Path, bundle: Path) -> None:
    _signed_by_certificate(bundle)
    found = read_bundle(bundle, _root(tmp_path)).signed
    assert found is not None and found.signer.description.startswith("CN=signer, certified under ")
    other = certify("root", make_key(14), ("root", make_key(14)), authority=True)
    for trust in (write_certificates(tmp_path / "other.pem", other), write_public(tmp_path / "key.pub", KEY)):
        with pytest.raises(InputError, match=r"signer's certificate is not accepted|by another key"):
            read_bundle(bundle, Trust(trust))


def test_certificates_that_prove_nothing(tmp_path: Path, bundle: Path) -> None:
    root, between = ("root", ROOT), ("between", BETWEEN)
    leaf = certify("signer", LEAF, between)
    authority = certify("between", BETWEEN, root, authority=True)
    chains = {
        "no link to the root": [leaf],
        "made by what is no authority": [leaf, certify("between", BETWEEN, root)],
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


def test_a_signature_from_outside_its_certificates_time(tmp_path: Path, bundle: Path) -> None:
    _signed_by_certificate(bundle, days=30)
    with pytest.raises(
        InputError, match="signed on 2026-06-01 00:00, but its signer's certificate is valid from 2026-01"
    ):
        read_bundle(bundle, _root(tmp_path))


def test_damaged_certificates(tmp_path: Path, bundle: Path) -> None:
    """Whatever stands in the chain, the answer is a refusal and no other error."""
    trust = _root(tmp_path)
    whole = json.loads((_signed_by_certificate(bundle) / SIGNATURE).read_bytes())
    chance = random.Random(1)
    for _ in range(300):
        damaged = json.loads(json.dumps(whole))
        entry = chance.choice(damaged["verificationMaterial"]["x509CertificateChain"]["certificates"])
        place = chance.randrange(len(entry["rawBytes"]))
        entry["rawBytes"] = entry["rawBytes"][:place] + chance.choice("AZaz09+/") + entry["rawBytes"][place + 1 :]
        if damaged != whole:
            (bundle / SIGNATURE).write_text(json.dumps(damaged))
            with pytest.raises(InputError):
                read_bundle(bundle, trust)


@settings(max_examples=50)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_no_bytes_are_a_signature(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_envelope(data)


@pytest.mark.parametrize(
    "change", [{"mediaType": "x"}, {"dsseEnvelope": {"payload": "", "payloadType": "", "signatures": []}}]
)
def test_another_format(bundle: Path, change: dict[str, object]) -> None:
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
def test_names_that_are_no_plain_paths(bundle: Path, name: str) -> None:
    """Even where such a file is there and was signed: what a name means must not depend on who reads it."""
    sign_folder(bundle, KEY, digests=[*digests_of(bundle).items(), (name, "0" * 64)])
    with pytest.raises(InputError, match="which is not a plain relative path"):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


@pytest.mark.parametrize("twin", ["Manifest.json", "manifest.json", "graphs/float.ONNX", "graphs/\ufb02oat.onnx"])
def test_names_that_are_one_on_other_disks(bundle: Path, twin: str) -> None:
    """By case, as on macOS and on sticks, or by a ligature."""
    sign_folder(bundle, KEY, digests=[*digests_of(bundle).items(), (twin, "0" * 64)])
    with pytest.raises(InputError, match="names a file twice"):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


@pytest.mark.parametrize(("digest", "said"), [("00" * 31, "are not SHA-256"), ("x" * 64, "cannot be read")])
def test_digests_that_are_none(bundle: Path, digest: str, said: str) -> None:
    sign_folder(bundle, KEY, change=lambda s: s["predicate"]["resources"][0].update(digest=digest))
    with pytest.raises(InputError, match=said):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


def test_a_statement_that_contradicts_itself(bundle: Path) -> None:
    sign_folder(bundle, KEY, change=lambda s: s["subject"][0]["digest"].update(sha256="0" * 64))
    with pytest.raises(InputError, match="contradicts its own digest"):
        signed_digests(decode_envelope((bundle / SIGNATURE).read_bytes()))


# Versions and the clock

VERSIONS = st.builds(Version, st.integers(0, 5), st.datetimes(timezones=st.just(timezone.utc)))


@given(st.lists(VERSIONS, max_size=20))
def test_accepted_versions_never_fall(versions: list[Version]) -> None:
    newest: Version | None = None
    for version in versions:
        if refusal(Issue("p", version), newest, NOW) is None:
            assert newest is None or version >= newest
            newest = version
        else:
            assert newest is not None and version < newest
    assert newest == max(versions, default=None)


@pytest.mark.parametrize(
    ("expires", "now", "newest", "said"),
    [
        (None, NOW - 9999 * DAY, None, None),  # without an expiry the clock does not matter
        (NOW + DAY, NOW, None, None),
        (NOW, NOW, None, "it expired on 2026-11-26 00:00 UTC"),
        (NOW + DAY, NOW - 30 * DAY, None, "set the clock"),  # before this bundle was signed
        (NOW + DAY, NOW - 10 * DAY - CLOCK_TOLERANCE, None, None),
        (NOW + DAY, NOW - 5 * DAY, NOW - 2 * DAY, "set the clock"),  # before another one was, with a smaller number
    ],
)
def test_expiry_and_a_wrong_clock(
    expires: datetime | None, now: datetime, newest: datetime | None, said: str | None
) -> None:
    issue = Issue("p", Version(2, NOW - 10 * DAY), expires)
    found = refusal(issue, None if newest is None else Version(1, newest), now)
    assert (found is None) if said is None else (found is not None and said in found)


@pytest.mark.parametrize("text", ["2027-01-01", "2027-01-01T00:00Z", "2027-01-01T02:00+02:00"])
def test_moments_are_utc(text: str) -> None:
    assert moment(text) == datetime(2027, 1, 1, tzinfo=timezone.utc)


def test_a_bundle_that_only_the_library_signed(tmp_path: Path) -> None:
    """Without a release its version is the manifest's number, and the time at which it was built."""
    bundle = sign_folder(make_bundle(tmp_path / "bundle"), KEY)
    found = read_bundle(bundle, Trust(write_public(tmp_path / "key.pub", KEY))).signed
    assert found is not None and found.issue.version == Version(1, moment("2026-01-01"))


@pytest.mark.parametrize("signed", ["yesterday", "", "2026-13-01"])
def test_a_time_that_is_none(tmp_path: Path, bundle: Path, signed: str) -> None:
    sign_folder(prepare(bundle, signed=signed), KEY)
    with pytest.raises(InputError, match="has no readable version"):
        read_bundle(bundle, Trust(write_public(tmp_path / "key.pub", KEY)))


# What a device remembers


def test_products_and_keys_are_apart_but_for_keys_that_are_trusted_together(tmp_path: Path, bundle: Path) -> None:
    old, new = KEY, make_key(2)
    only_old, only_new = (Trust(write_public(tmp_path / f"{n}.pub", k)) for n, k in (("old", old), ("new", new)))
    both = Trust(write_public(tmp_path / "both.pub", old, new))
    read_bundle(sign_folder(prepare(bundle, 7), new), only_new)
    read_bundle(sign_folder(prepare(bundle, 3, product="another"), new), only_new)
    sign_folder(prepare(bundle, 3), old)
    with pytest.raises(InputError, match="but version 7 of"):  # a key that is about to retire brings nothing older back
        read_bundle(bundle, both)
    read_bundle(bundle, only_old)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_state_that_others_could_read_or_write(state: Path, mode: int) -> None:
    state.mkdir()
    state.chmod(mode)
    with pytest.raises(InputError, match=f"chmod 700 {state}"), open_state():
        pass


def test_a_state_in_a_folder_where_others_could_replace_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("MISGNET_STATE", str(shared / "state"))
    with pytest.raises(InputError, match=f"can be replaced by other users: {shared} belongs to them"), open_state():
        pass
    shared.chmod(0o1777)
    with open_state():
        assert (shared / "state").stat().st_mode & 0o777 == 0o700


def test_a_state_of_another_user(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: state.stat().st_uid + 1)
    with pytest.raises(InputError, match=r"belongs to user \d+, not to this user"), open_state():
        pass


def test_write_access_of_the_users_own_group_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the umask 002 of many distributions leaves folders."""
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o775)
    for own in (True, False):
        monkeypatch.setattr(permissions, "_is_own_group", lambda _, own=own: own)
        assert permissions.only_ours([folder]) is own


def test_a_state_by_a_link_that_nobody_else_could_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd makes them for DynamicUser=; whoever could exchange it would make the device forget."""
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


def test_a_state_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "file" / "state"))
    with pytest.raises(StorageError, match="set MISGNET_STATE to another folder"), open_state():
        pass


def test_a_state_that_an_earlier_version_made_is_read(state: Path) -> None:
    """It made ``accepted`` by the umask, within the private folder."""
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
def test_a_damaged_record_accepts_nothing(tmp_path: Path, bundle: Path, state: Path, content: bytes) -> None:
    trust = Trust(write_public(tmp_path / "key.pub", KEY))
    read_bundle(sign_folder(bundle, KEY), trust)
    (record,) = state.rglob("*.json")
    record.write_bytes(content)
    with pytest.raises(InputError, match="delete this file to accept any version"):
        read_bundle(bundle, trust)
    assert record.read_bytes() == content


def test_many_processes_at_once_keep_the_newest(state: Path) -> None:
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

"""Tests policy files: requirements of the machine's administrator, which a command line can only tighten."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography: pip install 'misgnet-export[verify]'")
if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="policy files need tomli on Python 3.10")

from misgnet_runtime import open_bundle
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing import policy
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import InputError, UsageError
from support.bundles import make_bundle
from support.commands import exit_code
from support.signatures import certify, make_key, prepare, sign_folder, write_certificates, write_public

KEY, OTHER = make_key(), make_key(2)
ROOT, LEAF = make_key(11), make_key(13)
EXPIRED = "2026-06-02T00:00:00+00:00"
Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Returns a folder with two public keys, a file with both of them, and a root certificate."""
    folder = tmp_path / "etc"
    folder.mkdir()
    write_public(folder / "key.pub", KEY)
    write_public(folder / "other.pub", OTHER)
    write_public(folder / "both.pub", KEY, OTHER)
    write_certificates(folder / "root.pem", certify("root", ROOT, ("root", ROOT), authority=True))
    return folder


@pytest.fixture
def named(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Returns a function that writes the policy file of MISGNET_POLICY."""
    monkeypatch.setenv("MISGNET_POLICY", str(keys / "named.toml"))
    return lambda text: _write(keys / "named.toml", text)


@pytest.fixture
def system(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Returns a function that writes the machine's policy file, whose path is patched for the test."""
    monkeypatch.setattr(policy, "SYSTEM_POLICY", keys / "policy.toml", raising=False)
    return lambda text: _write(keys / "policy.toml", text)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return prepare(make_bundle(tmp_path / "bundle"), version=5)


@pytest.fixture
def signed(bundle: Path) -> Path:
    return sign_folder(bundle, KEY)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: object) -> tuple[int, str, str]:
        code = exit_code(cli.main, "misgnet-run", *words)
        policy.use_key(None)
        policy.use_allow_older(False)
        return code, *capsys.readouterr()

    return run


def refusal(call: Call, *words: object) -> str:
    """Returns the error line for a bundle that is refused."""
    code, _, error = call("info", *words)
    assert code == 4 and len(error.splitlines()) == 1, error
    return error


# The bundles that a policy file applies to


def test_an_unsigned_bundle_is_refused(bundle: Path, named: Write, call: Call) -> None:
    named('[[product]]\nkey = "key.pub"\n')
    assert "it is not signed" in refusal(call, bundle)
    with pytest.raises(InputError, match="it is not signed"), open_bundle(bundle):
        pass
    with pytest.raises(InputError, match="it is not signed"):
        read_bundle(bundle)


@pytest.mark.parametrize("key", ["key.pub", "both.pub", "./key.pub", "{folder}/key.pub"])
@pytest.mark.parametrize("name", ["", 'name = "survey"'])
def test_bundle_signed_by_the_policys_key_is_accepted(
    signed: Path, keys: Path, named: Write, call: Call, monkeypatch: pytest.MonkeyPatch, key: str, name: str
) -> None:
    """A relative path of a key starts at the policy file's folder, not at the working directory."""
    named(f'[[product]]\nkey = "{key.format(folder=keys)}"\n{name}\n')
    monkeypatch.chdir("/")
    code, out, _ = call("info", signed)
    assert code == 0 and "signed by key " in out


def test_bundle_signed_by_another_key_is_refused(signed: Path, named: Write, keys: Path, call: Call) -> None:
    named('[[product]]\nkey = "other.pub"\n')
    assert "by another key than required" in refusal(call, signed)
    assert "by another key than required" in refusal(call, signed, "--require-signature", keys / "key.pub")


def test_a_product_without_an_entry_is_refused(signed: Path, named: Write, call: Call) -> None:
    named('[[product]]\nname = "roads"\nkey = "key.pub"\n')
    assert "product 'survey' has no entry in policy " in refusal(call, signed)


def test_a_product_needs_the_key_of_its_own_entry(tmp_path: Path, signed: Path, named: Write, call: Call) -> None:
    """A key for another product, or for all products without an entry, is not sufficient."""
    text = '[[product]]\nname = "survey"\nkey = "other.pub"\n[[product]]\n{}key = "key.pub"\n'
    for other in ('name = "roads"\n', ""):
        named(text.format(other))
        assert "product 'survey' must be signed by another key of policy" in refusal(call, signed)
    roads = sign_folder(prepare(shutil.copytree(signed, tmp_path / "roads"), product="roads"), KEY)
    assert call("info", roads)[0] == 0
    assert call("info", sign_folder(signed, OTHER))[0] == 0


def test_a_product_may_have_several_entries(signed: Path, named: Write, call: Call) -> None:
    """While keys are replaced, each entry has its own limits; the strictest of those that apply counts."""
    entry = '[[product]]\nname = "survey"\nkey = "{}"\nminimum_version = {}\n'
    named(entry.format("key.pub", 5) + entry.format("other.pub", 6))
    assert call("info", signed)[0] == 0
    assert "requires version 6 or newer" in refusal(call, sign_folder(signed, OTHER))
    named(entry.format("key.pub", 5) + entry.format("both.pub", 6))
    assert "requires version 6 or newer" in refusal(call, sign_folder(signed, KEY))


def test_certificate_of_the_policys_root_is_accepted(bundle: Path, named: Write, call: Call) -> None:
    sign_folder(bundle, LEAF, [certify("signer", LEAF, ("root", ROOT))])
    named('[[product]]\nkey = "root.pem"\n')
    assert call("info", bundle)[0] == 0


def test_only_version_product_and_times_of_a_refused_bundle_are_read(
    signed: Path, named: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from misgnet_runtime.bundle.signing import verify as module

    monkeypatch.setattr(module, "decode_manifest", lambda *_: pytest.fail("a refused bundle was loaded"))
    for text in ('name = "roads"\nkey = "key.pub"', 'key = "key.pub"\nminimum_version = 6', 'key = "other.pub"'):
        named(f"[[product]]\n{text}\n")
        with pytest.raises(InputError, match=r"is refused \(a signature is required by"):
            read_bundle(signed)


# Versions


def test_version_below_the_minimum_is_always_refused(
    signed: Path, named: Write, state: Path, keys: Path, call: Call
) -> None:
    named('[[product]]\nkey = "key.pub"\nminimum_version = 6\nallow_older = true\n')
    assert not state.exists()
    words = signed, "--require-signature", keys / "key.pub", "--allow-older"
    assert "it is version 5 of 2026-06-01 00:00:00 UTC, but policy " in refusal(call, *words)
    assert "requires version 6 or newer" in refusal(call, signed)
    assert call("info", sign_folder(prepare(signed, version=6), KEY))[0] == 0


@pytest.mark.parametrize("older", [{"version": 4}, {"version": 5, "expires": EXPIRED}])
@pytest.mark.parametrize(("permission", "code"), [("", 4), ("allow_older = false", 4), ("allow_older = true", 0)])
def test_allow_older_has_an_effect_only_if_the_policy_permits_it(
    signed: Path, named: Write, keys: Path, call: Call, permission: str, code: int, older: dict[str, object]
) -> None:
    named(f'[[product]]\nkey = "key.pub"\n{permission}\n')
    assert call("info", signed)[0] == 0
    sign_folder(prepare(signed, **older), KEY)  # type: ignore[arg-type]
    assert call("info", signed)[0] == 4
    for more in ((), ("--require-signature", keys / "key.pub")):
        found, _, error = call("info", signed, *more, "--allow-older")
        assert found == code and ("does not permit --allow-older" in error) is bool(code)
    try:
        with open_bundle(signed, allow_older=True):
            assert not code
    except InputError:
        assert code


def test_allow_older_accepts_a_bundle_that_is_not_older(signed: Path, named: Write, call: Call) -> None:
    named('[[product]]\nkey = "key.pub"\n')
    assert call("info", signed, "--allow-older")[0] == 0


def test_accepted_versions_of_all_trusted_keys_count(tmp_path: Path, signed: Path, named: Write, call: Call) -> None:
    """A retiring key cannot bring back older versions than one that the new key signed."""
    named("".join(f'[[product]]\nname = "survey"\nkey = "{key}.pub"\n' for key in ("key", "other")))
    assert call("info", sign_folder(signed, OTHER))[0] == 0
    older = sign_folder(prepare(shutil.copytree(signed, tmp_path / "older"), version=4), KEY)
    assert "but version 5 of" in refusal(call, older)


# Two policy files and a command line: all of them apply


def test_both_policy_files_apply(signed: Path, named: Write, system: Write, call: Call) -> None:
    entry = '[[product]]\nkey = "{}"\nminimum_version = {}\nallow_older = {}\n'
    for first, second, message in (
        (("key.pub", 0, "true"), ("key.pub", 0, "true"), None),
        (("both.pub", 5, "true"), ("key.pub", 4, "true"), None),
        (("both.pub", 5, "true"), ("other.pub", 4, "true"), "by another key than required"),
        (("other.pub", 5, "true"), ("both.pub", 4, "true"), "by another key than required"),
        (("key.pub", 6, "true"), ("key.pub", 4, "true"), "policy.toml requires version 6 or newer"),
        (("key.pub", 4, "true"), ("key.pub", 6, "true"), "named.toml requires version 6 or newer"),
    ):
        system(entry.format(*first))
        named(entry.format(*second))
        if message is None:
            assert call("info", signed)[0] == 0
        else:
            assert message in refusal(call, signed)
    sign_folder(prepare(signed, version=4), KEY)
    for first, second in (("true", "false"), ("false", "true")):
        system(entry.format("key.pub", 0, first))
        named(entry.format("key.pub", 0, second))
        assert "does not permit --allow-older" in refusal(call, signed, "--allow-older")
    system(entry.format("key.pub", 0, "true"))
    named(entry.format("key.pub", 0, "true"))
    assert call("info", signed, "--allow-older")[0] == 0


@pytest.mark.parametrize("how", ["option", "environment", "call"])
def test_key_in_addition_to_a_policy_must_also_have_signed(
    signed: Path, keys: Path, named: Write, call: Call, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    named('[[product]]\nkey = "both.pub"\n')
    for key, code in (("other.pub", 4), ("key.pub", 0)):
        if how == "environment":
            monkeypatch.setenv("MISGNET_REQUIRE_SIGNATURE", str(keys / key))
        if how == "call":
            if code:
                with pytest.raises(InputError), open_bundle(signed, require_signature=keys / key):
                    pass
                continue
            with open_bundle(signed, require_signature=keys / key):
                continue
        option = ["--require-signature", keys / key] if how == "option" else []
        assert call("info", signed, *option)[0] == code


def test_key_and_root_certificate_may_both_be_required(bundle: Path, keys: Path, named: Write, system: Write) -> None:
    """One policy trusts the signer's key, the other its certificate; the accepted version counts for both."""
    write_public(keys / "leaf.pub", LEAF)
    sign_folder(bundle, LEAF, [certify("signer", LEAF, ("root", ROOT))])
    system('[[product]]\nkey = "root.pem"\n')
    named('[[product]]\nkey = "leaf.pub"\n')
    read_bundle(bundle)
    sign_folder(prepare(bundle, version=4), LEAF, [certify("signer", LEAF, ("root", ROOT))])
    for only in (keys / "leaf.pub", keys / "root.pem"):
        named(f'[[product]]\nkey = "{only}"\n')
        system(f'[[product]]\nkey = "{only}"\n')
        with pytest.raises(InputError, match="but version 5 of"):
            read_bundle(bundle)


def test_requirement_for_other_processes_includes_the_policy(
    keys: Path, named: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another machine has its own environment, working directory and policies."""
    named('[[product]]\nkey = "key.pub"\n')
    monkeypatch.chdir(keys)
    monkeypatch.setenv("MISGNET_POLICY", "named.toml")
    assert policy.required_elsewhere() == policy.Trust(None, False, keys / "named.toml")


def test_policy_passed_to_another_process_applies(
    signed: Path, keys: Path, named: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    named('[[product]]\nkey = "other.pub"\n')
    monkeypatch.delenv("MISGNET_POLICY")
    with pytest.raises(InputError, match="by another key than required"):
        read_bundle(signed, policy.Trust(keys / "key.pub", policy=keys / "named.toml"))


# Policy files that cannot be used refuse every bundle


MALFORMED = {
    "empty": "",
    "no entry": "product = []",
    "not TOML": "[[product]\n",
    "not UTF-8": "\udcff",
    "another table": '[[products]]\nkey = "key.pub"\n',
    "a table beside": '[[product]]\nkey = "key.pub"\n[other]\n',
    "an unknown field": '[[product]]\nkey = "key.pub"\nminimum_versoin = 3\n',
    "no key": '[[product]]\nname = "survey"\n',
    "an empty key": '[[product]]\nkey = ""\n',
    "an empty name": '[[product]]\nkey = "key.pub"\nname = ""\n',
    "a number as text": '[[product]]\nkey = "key.pub"\nminimum_version = "3"\n',
    "a negative number": '[[product]]\nkey = "key.pub"\nminimum_version = -1\n',
    "a float": '[[product]]\nkey = "key.pub"\nminimum_version = 3.0\n',
    "a flag as text": '[[product]]\nkey = "key.pub"\nallow_older = "false"\n',
    "a flag as number": '[[product]]\nkey = "key.pub"\nallow_older = 0\n',
    "one table": '[product]\nkey = "key.pub"\n',
    "too large": '[[product]]\nkey = "key.pub"\n' + "# comment\n" * 10_000,
    "too deep": "x = " + "[" * 30_000,
    "a missing key file": '[[product]]\nkey = "nowhere.pub"\n',
    "a folder as key": '[[product]]\nkey = "."\n',
    "a second entry's missing key": '[[product]]\nkey = "key.pub"\n[[product]]\nname = "x"\nkey = "nowhere.pub"\n',
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("source", ["named", "system"])
def test_a_malformed_policy_refuses_every_bundle(
    signed: Path, keys: Path, request: pytest.FixtureRequest, call: Call, source: str, case: str
) -> None:
    path = request.getfixturevalue(source)("")
    path.write_bytes(MALFORMED[case].encode(errors="surrogateescape"))
    assert str(path) in refusal(call, signed)
    assert str(path) in refusal(call, signed, "--require-signature", keys / "key.pub")


GOOD = '[[product]]\nkey = "key.pub"\n'


def _missing(path: Path) -> None:
    path.unlink()


def _dangling(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.parent / "nowhere")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _writable(path: Path) -> None:
    path.chmod(0o666)


def _writable_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def _link_to_what_others_may_replace(path: Path) -> None:
    shared = path.parent.parent / "shared"
    shared.mkdir()
    path.rename(shared / "policy")
    path.symlink_to(shared / "policy")
    shared.chmod(0o777)


def _by_way_of_a_folder_of_others(path: Path) -> None:
    """Makes the path lead through a link in a shared folder, to a target in a safe folder."""
    shared, safe = path.parent.parent / "shared", path.parent.parent / "safe"
    shared.mkdir()
    safe.mkdir()
    path.rename(safe / "policy")
    (shared / "middle").symlink_to(safe)
    path.symlink_to("../shared/middle/policy")
    shared.chmod(0o777)


def _writable_key(path: Path) -> None:
    (path.parent / "key.pub").chmod(0o666)


def _below_a_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("a file")


BROKEN = [
    _dangling, _folder, _pipe, _writable, _writable_folder, _link_to_what_others_may_replace,
    _by_way_of_a_folder_of_others, _writable_key,
    _below_a_file,
]  # fmt: skip


@pytest.mark.parametrize("change", [_missing, *BROKEN], ids=lambda c: c.__name__[1:])
def test_a_named_policy_that_cannot_be_trusted_refuses_every_bundle(
    signed: Path, named: Write, call: Call, change: Callable[[Path], None]
) -> None:
    path = named(GOOD)
    assert call("info", signed)[0] == 0
    change(path)
    assert str(path) in refusal(call, signed)


@pytest.mark.parametrize("change", BROKEN, ids=lambda c: c.__name__[1:])
def test_a_system_policy_that_cannot_be_trusted_refuses_every_bundle(
    signed: Path, system: Write, call: Call, change: Callable[[Path], None]
) -> None:
    path = system(GOOD)
    assert call("info", signed)[0] == 0
    change(path)
    assert str(path) in refusal(call, signed)


def test_a_policy_of_another_user_refuses_every_bundle(
    signed: Path, named: Write, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fstat = named(GOOD), os.fstat

    def anothers(handle: int) -> os.stat_result:
        found = list(fstat(handle))
        if os.path.realpath(f"/proc/self/fd/{handle}") == str(path):
            found[4] = os.geteuid() + 1
        return os.stat_result(found[:10])

    monkeypatch.setattr("misgnet_runtime.storage.permissions.os.fstat", anothers)
    assert "another user could change it" in refusal(call, signed)


def test_without_a_system_policy_nothing_is_required(bundle: Path, keys: Path, system: Write, call: Call) -> None:
    assert call("info", bundle)[0] == 0
    shutil.rmtree(keys)
    assert call("info", bundle)[0] == 0
    assert policy.required() is None


def test_the_systems_policy_is_in_etc() -> None:
    """No variable or option can change this path."""
    assert Path("/etc/misgnet/policy.toml") == policy.SYSTEM_POLICY


def test_policy_behind_links_is_read(signed: Path, keys: Path, system: Write, call: Call) -> None:
    """Clusters mount configuration like this: PATH -> ..data/PATH, and ..data is also a link."""
    system(GOOD)
    (keys / "..2026").mkdir()
    (keys / "policy.toml").rename(keys / "..2026/policy.toml")
    (keys / "..data").symlink_to("..2026")
    (keys / "policy.toml").symlink_to("..data/policy.toml")
    assert call("info", signed)[0] == 0
    assert "it is not signed" in refusal(call, make_bundle(keys.parent / "unsigned"))


def test_allow_older_without_a_required_signature_is_an_error(signed: Path, system: Write) -> None:
    with pytest.raises(UsageError, match="--allow-older needs a required signature"):
        policy.required(None, True)


def test_system_policy_on_an_unmounted_disk_refuses_every_bundle(
    signed: Path, keys: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "SYSTEM_POLICY", tmp_path / "link" / "policy.toml")
    (tmp_path / "link").symlink_to(tmp_path / "not mounted")
    assert "link/policy.toml cannot be read: No such file or directory" in refusal(call, signed)
    (tmp_path / "not mounted").mkdir()
    assert call("info", signed)[0] == 0, "there is no policy"

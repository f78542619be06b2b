"""Tests the basis of rollback protection: the product's name, the folder of accepted versions, and its lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

fcntl = pytest.importorskip("fcntl", reason="Windows has no fcntl")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'misgnet-export[verify]'")

from misgnet_runtime import open_bundle
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import InputError, UsageError
from support.bundles import images, make_bundle, write_image
from support.commands import exit_code
from support.signatures import SIGNATURE, make_key, prepare, sign_folder, write_private, write_public

KEY = make_key()
NAMED = ("MISGNET_STATE", "MISGNET_CACHE", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_folder_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Removes all variables that name a folder and the user database's entry; the working directory is empty."""
    for variable in NAMED:
        monkeypatch.delenv(variable, raising=False)

    def nobody(_: object) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_public(tmp_path / "key.pub", KEY)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    return sign_folder(prepare(make_bundle(tmp_path / "bundle"), version=5), KEY)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: object) -> tuple[int, str, str]:
        return exit_code(cli.main, "misgnet-run", *words), *capsys.readouterr()

    return run


# The folder of accepted versions


@pytest.mark.parametrize("home", [None, "", "~", "home", "./home", "../home"])
def test_without_a_home_nothing_is_accepted_and_nothing_written(
    no_folder_named: Path, signed: Path, key: Path, call: Call, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    code, _, error = call("info", signed, "--require-signature", key)
    assert code == 4 and len(error.splitlines()) == 1
    assert "set MISGNET_STATE, XDG_STATE_HOME or HOME" in error
    assert not list(no_folder_named.iterdir()) and not (no_folder_named.parent / "home").exists()


@pytest.mark.parametrize("value", ["state", "./state", "~/state", "../state"])
def test_a_state_below_the_working_directory_is_refused(
    no_folder_named: Path, signed: Path, key: Path, call: Call, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MISGNET_STATE", value)
    monkeypatch.setenv("HOME", str(no_folder_named.parent / "home"))
    code, _, error = call("info", signed, "--require-signature", key)
    assert code == 4 and f"MISGNET_STATE is '{value}'" in error and "absolute path" in error
    assert not list(no_folder_named.iterdir()) and not (no_folder_named.parent / "state").exists()


@pytest.mark.parametrize("common", [None, "", "relative", "~/.local/state"])
def test_relative_xdg_folder_is_ignored(
    tmp_path: Path, no_folder_named: Path, signed: Path, key: Path, monkeypatch: pytest.MonkeyPatch, common: str | None
) -> None:
    """The XDG base directory specification requires this."""
    if common is not None:
        monkeypatch.setenv("XDG_STATE_HOME", common)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    read_bundle(signed, Trust(key))
    assert len(list((tmp_path / "home/.local/state/misgnet/accepted").iterdir())) == 1
    assert not list(no_folder_named.iterdir())


def test_older_bundle_is_refused_from_any_working_directory(
    tmp_path: Path, no_folder_named: Path, signed: Path, key: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HOME=~, as in a unit file without expansion, each working directory once had its own accepted versions."""
    older = sign_folder(prepare(shutil.copytree(signed, tmp_path / "older"), version=4), KEY)
    monkeypatch.setenv("HOME", "~")
    call("info", signed, "--require-signature", key)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert call("info", older, "--require-signature", key)[0] == 4


# The cache is optional


@pytest.mark.parametrize("home", [None, "~", "home"])
def test_without_a_home_a_bundle_runs_and_nothing_is_written(
    tmp_path: Path, no_folder_named: Path, call: Call, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    for name, pixels in zip(("before", "after"), images(64, 64), strict=True):
        write_image(tmp_path / f"{name}.png", pixels)
    pair = tmp_path / "before.png", tmp_path / "after.png"
    bundle = make_bundle(tmp_path / "unsigned")
    code, _, error = call("predict", bundle, *pair, "-o", tmp_path / "mask.png")
    assert (code, error) == (0, "") and (tmp_path / "mask.png").is_file()
    code, _, error = call("tune", bundle)
    assert code == 4 and "set MISGNET_CACHE, XDG_CACHE_HOME or HOME" in error
    assert not list(no_folder_named.iterdir())


def test_a_relative_cache_is_reported_and_not_used(
    tmp_path: Path, no_folder_named: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISGNET_CACHE", "cache")
    for name, pixels in zip(("before", "after"), images(64, 64), strict=True):
        write_image(tmp_path / f"{name}.png", pixels)
    pair = tmp_path / "before.png", tmp_path / "after.png"
    code, _, error = call("predict", make_bundle(tmp_path / "unsigned"), *pair, "-o", tmp_path / "mask.png")
    assert code == 0 and "warning: the tuning of bundle" in error and "MISGNET_CACHE is 'cache'" in error
    assert not list(no_folder_named.iterdir())


# A requirement that is empty by mistake


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.mark.parametrize("variable", ["MISGNET_REQUIRE_SIGNATURE", "MISGNET_POLICY"])
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_an_empty_variable_is_an_error(
    tmp_path: Path, state: Path, call: Call, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """A script may set it from a variable that is not set; unsigned bundles were once accepted then."""
    bundle = make_bundle(tmp_path / "unsigned")
    monkeypatch.setenv(variable, value)
    code, _, error = call("info", bundle)
    assert code == 2 and f"{variable} is set, but empty" in error and len(error.splitlines()) == 1
    with pytest.raises(UsageError, match="is set, but empty"):
        read_bundle(bundle)
    with pytest.raises(UsageError, match="is set, but empty"), open_bundle(bundle):
        pass


def test_an_empty_option_is_an_error(tmp_path: Path, state: Path, call: Call) -> None:
    code, _, error = call("info", make_bundle(tmp_path / "unsigned"), "--require-signature", "")
    assert code in (2, 4) and error


# The lock of the state


@pytest.fixture
def held(state: Path) -> Iterator[Path]:
    """Holds the lock like another process; flock treats a second open file like another process."""
    state.mkdir(mode=0o700)
    handle = os.open(state, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield state
    os.close(handle)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "misgnet_runtime", *map(str, words)]
    return subprocess.run(line, text=True, capture_output=True, check=False, timeout=20)


def test_waiting_for_the_state_is_reported_and_ends(held: Path, signed: Path, key: Path) -> None:
    start = time.monotonic()
    found = run("info", signed, "--require-signature", key, "--lock-timeout", "0.5")
    assert found.returncode == 4 and time.monotonic() - start < 40
    waiting, error = found.stderr.splitlines()
    assert f"waiting for the lock on {held}" in waiting and "--lock-timeout" in error
    assert found.stdout == ""


def test_refusal_by_signature_does_not_wait_for_the_lock(held: Path, signed: Path, tmp_path: Path, key: Path) -> None:
    """Verification does not hold the lock, so it neither blocks other processes nor waits for them."""
    other = write_public(tmp_path / "other.pub", make_key(2))
    assert "by another key than required" in run("info", signed, "--require-signature", other).stderr
    (signed / "graphs/float.onnx").write_bytes(b"changed")
    assert "does not match its signed digest" in run("info", signed, "--require-signature", key).stderr


def test_older_bundle_is_refused_if_a_newer_one_was_accepted_meanwhile(
    state: Path, signed: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer bundle is accepted after the first comparison and before the lock is acquired."""
    newer = sign_folder(prepare(shutil.copytree(signed, tmp_path / "newer"), version=6), KEY)
    from misgnet_runtime.bundle.signing import verify as module

    decode = module.decode_manifest

    def slowly(*arguments: object) -> object:
        assert run("info", newer, "--require-signature", key).returncode == 0
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode_manifest", slowly)
    with pytest.raises(InputError, match=r"version 5 .* but version 6 .* was accepted here before"):
        read_bundle(signed, Trust(key))


def test_manifest_replaced_after_the_check_is_refused(
    state: Path, signed: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This user replaces the manifest after the check: the signed one is read, or none."""
    from misgnet_runtime.bundle.signing import verify as module

    check, content = module.check_digests, (signed / "manifest.json").read_bytes()

    def then_exchange(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        (signed / "manifest.json").write_bytes(content.replace(b'"bundle_version": 5', b'"bundle_version": 9'))

    monkeypatch.setattr(module, "check_digests", then_exchange)
    with pytest.raises(InputError, match=r"'manifest\.json' does not match its signed digest"):
        read_bundle(signed, Trust(key))


# The product whose versions are compared


@pytest.fixture
def sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    pytest.importorskip("model_signing", reason="signing needs model-signing: pip install 'misgnet-export[sign]'")
    from misgnet_export.cli import main as export_cli

    key = write_private(tmp_path / "key.pem", KEY)

    def run(bundle: Path, *words: object) -> tuple[int, str, str]:
        line = ("misgnet-export", "sign", bundle, "--key", key, *words)
        return exit_code(export_cli.main, *line), *capsys.readouterr()

    return run


def test_sign_requires_a_product_unless_the_bundle_records_one(tmp_path: Path, sign: Call) -> None:
    bundle = make_bundle(tmp_path / "release-4")
    code, _, error = sign(bundle)
    assert code == 2 and "--product" in error and len(error.splitlines()) == 1
    assert not (bundle / SIGNATURE).exists()


def test_folders_of_one_product_share_accepted_versions(
    tmp_path: Path, state: Path, sign: Call, call: Call, key: Path
) -> None:
    """Deployments name folders by release; the older release was once accepted as another product."""
    for version in (4, 5):
        assert (
            sign(make_bundle(tmp_path / f"release-{version}"), "--product", "survey", "--bundle-version", version)[0]
            == 0
        )
    assert call("info", tmp_path / "release-5", "--require-signature", key)[0] == 0
    code, _, error = call("info", tmp_path / "release-4", "--require-signature", key)
    assert code == 4 and "but version 5 of" in error


def test_a_recorded_product_is_kept(tmp_path: Path, sign: Call) -> None:
    bundle = make_bundle(tmp_path / "release-4")
    assert sign(bundle, "--product", "survey")[0] == 0
    code, out, _ = sign(bundle, "--force")
    assert code == 0 and ": survey, version" in out


@pytest.mark.parametrize("product", ["", " ", "survey ", "sur\u200bvey", "sur\u3164vey", "e\u0301", "a\nb", "x" * 201])
def test_product_name_that_looks_like_another_is_refused(tmp_path: Path, sign: Call, product: str) -> None:
    bundle = make_bundle(tmp_path / "release-4")
    code, _, error = sign(bundle, "--product", product)
    assert code == 2 and "--product" in error and not (bundle / SIGNATURE).exists()


def test_force_replaces_only_a_regular_signature_file(tmp_path: Path, sign: Call) -> None:
    bundle = make_bundle(tmp_path / "release-4")
    os.mkfifo(bundle / SIGNATURE)
    code, _, error = sign(bundle, "--product", "survey", "--force")
    assert code == 2 and "is not a regular file" in error and (bundle / SIGNATURE).is_fifo()


def test_file_replaced_while_signing_is_detected(tmp_path: Path, sign: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices would refuse the bundle, because its manifest has the digest of the original bytes."""
    pytest.importorskip("model_signing")
    from misgnet_export.integrations import signing

    bundle, link = make_bundle(tmp_path / "release-4"), signing._link

    def exchanging(source: Path, target: Path) -> None:
        if source.name == "float.onnx":
            source.write_bytes(b"exchanged")
        link(source, target)

    monkeypatch.setattr(signing, "_link", exchanging)
    code, _, error = sign(bundle, "--product", "survey")
    assert code == 4 and "manifest and signature differ on 'graphs/float.onnx'" in error
    assert not (bundle / SIGNATURE).exists()

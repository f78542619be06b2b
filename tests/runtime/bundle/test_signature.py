"""Tests signed bundles: nothing is read before the signature was checked, and any change is refused."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip(
    "cryptography", reason="signatures are checked with cryptography: pip install 'misgnet-export[verify]'"
)

from misgnet_export.cli import main as export_cli
from misgnet_runtime import open_bundle
from misgnet_runtime.bundle import reader as bundle_module
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing import files, policy
from misgnet_runtime.bundle.signing import verify as signed_module
from misgnet_runtime.bundle.signing.policy import VARIABLE, Trust
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.inference import selection as choice
from support.bundles import INT8, SPLIT_FLOAT, expected, images, make_bundle, write_image
from support.commands import exit_code
from support.paths import DATA
from support.signatures import SIGNATURE, digests_of, make_key, prepare, sign_folder, write_public

SIGNED = DATA / "signed"
KEY = make_key()
EXPIRED = "2026-06-02T00:00:00+00:00"
# JSON structures that may be decoded before a bundle is refused.
BEFORE_FILES = {"_SignatureFile", "_Statement"}
AFTER_FILES = {*BEFORE_FILES, "_Stated", "_Accepted"}  # once all files match their signed digests


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(write_public(tmp_path / "key.pub", KEY))


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    return sign_folder(prepare(make_bundle(tmp_path / "bundle"), version=5), KEY)


@pytest.fixture
def accepted(signed: Path, trust: Trust, state: Path) -> dict[Path, bytes]:
    """Returns the device's records after it accepted the bundle."""
    read_bundle(signed, trust)
    found = _records(state)
    assert len(found) == 1
    return found


def _records(state: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in state.rglob("*.json")}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the types of all decoded JSON; decoding a whole manifest or opening an engine fails the test."""
    found: list[str] = []
    decode = msgspec.json.decode

    def spy(data: Any, *, type: Any = Any, **more: Any) -> Any:
        found.append(getattr(type, "__name__", str(type)))
        return decode(data, type=type, **more)

    def never(*_: object, **__: object) -> None:
        pytest.fail("a refused bundle was loaded")

    monkeypatch.setattr(msgspec.json, "decode", spy)
    monkeypatch.setattr(signed_module, "decode_manifest", never)
    monkeypatch.setattr(bundle_module, "decode_manifest", never)
    monkeypatch.setattr("misgnet_runtime.inference.selection.open_engine_file", never)
    return found


@pytest.mark.parametrize("name", ["P-256", "P-384", "P-521", "certificate"])
def test_signatures_of_the_library_are_accepted(tmp_path: Path, name: str) -> None:
    """data/signed was signed by the command of model-signing 1.1.1; the private keys were deleted."""
    root = shutil.copytree(SIGNED / "bundle", tmp_path / "moved and renamed")
    shutil.copy(SIGNED / f"{name}.sig", root / SIGNATURE)
    found = read_bundle(root, Trust(SIGNED / f"{name}.pub"))
    assert found.signed is not None and found.signed.digests == digests_of(root)
    wrong = "P-384" if name == "P-256" else "P-256"
    with pytest.raises(InputError, match="by another key than required"):
        read_bundle(root, Trust(SIGNED / f"{wrong}.pub"))


def test_a_moved_or_renamed_bundle_is_accepted(tmp_path: Path, signed: Path, trust: Trust) -> None:
    (tmp_path / "elsewhere").mkdir()
    for target in (tmp_path / "renamed", tmp_path / "elsewhere" / "b"):
        signed = signed.rename(target)
        assert read_bundle(signed, trust).manifest.bundle_version == 5
    link = tmp_path / "current"
    link.symlink_to(signed)
    assert read_bundle(link, trust).name == link


def test_signature_is_not_an_extra_file_if_none_is_required(signed: Path) -> None:
    assert read_bundle(signed).signed is None


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_change_of_first_middle_or_last_byte_of_any_file_is_refused(
    signed: Path, trust: Trust, state: Path, decoded: list[str], mode: int
) -> None:
    """Files are checked in place for mode 0755, and copied for mode 0777."""
    signed.chmod(mode)
    changed = 0
    for path in [signed / name for name in (*digests_of(signed), SIGNATURE)]:
        data = path.read_bytes()
        for at in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(InputError):
                read_bundle(signed, trust)
            changed += 1
        path.write_bytes(data)
    assert changed == 3 * 7 and set(decoded) <= BEFORE_FILES and not list(state.iterdir())


Damage = Callable[[Path, random.Random], object]


def _any_file(root: Path, chance: random.Random) -> Path:
    return root / chance.choice(sorted(digests_of(root)))


def _truncate(root: Path, chance: random.Random) -> None:
    path = chance.choice([_any_file(root, chance), root / SIGNATURE])
    os.truncate(path, chance.randrange(path.stat().st_size))


def _rename(root: Path, chance: random.Random) -> None:
    path = chance.choice([_any_file(root, chance), root / SIGNATURE])
    names = [path.name.upper(), path.name + "\u200b", path.name.replace("o", "\u043e") + "_", " " + path.name]
    path.rename(path.with_name(chance.choice(names)))


def _add(root: Path, chance: random.Random) -> None:
    names = ["extra.json", "graphs/.hidden", "model.sig.bak", ".git/config", "a/b/c", "Manifest.json", "\udc80"]
    path = root / chance.choice(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    if chance.random() < 0.2:
        os.mkfifo(path)
    else:
        path.write_bytes(b"{}")


def _link(root: Path, chance: random.Random) -> None:
    """Replaces a file, or the folder that contains it, with a link to the same bytes."""
    path = chance.choice([_any_file(root, chance), root / SIGNATURE])
    moved = path.parent if path.parent != root and chance.random() < 0.5 else path
    target = root.with_name(f"{root.name}-moved-{moved.name}")
    moved.rename(target)
    moved.symlink_to(target)


def _remove(root: Path, chance: random.Random) -> None:
    chance.choice([_any_file(root, chance), root / SIGNATURE]).unlink()


def _downgrade(root: Path, chance: random.Random) -> None:
    older = chance.choice([(chance.randrange(5), "2026-07-01T00:00:00+00:00"), (5, "2026-05-31T23:59:59+00:00")])
    sign_folder(prepare(root, *older), KEY)


def _expire(root: Path, chance: random.Random) -> None:
    sign_folder(prepare(root, chance.randrange(5, 9), expires=EXPIRED), KEY)


def _sign_wrongly(root: Path, chance: random.Random) -> None:
    """Signs with another key, or with the right key over an invalid statement."""
    digests = list(digests_of(root).items())
    outside = chance.choice(
        ["../x", "/etc/passwd", "a/../manifest.json", "graphs\\float.onnx", "./x", "a//b", "C:x", ""]
    )
    wrong: list[Callable[[], object]] = [
        lambda: sign_folder(root, make_key(2)),
        lambda: sign_folder(root, KEY, digests=[*digests, (outside, "0" * 64)]),
        lambda: sign_folder(root, KEY, digests=[*digests, digests[0]]),
        lambda: sign_folder(root, KEY, digests=[*digests, (digests[0][0].upper(), digests[0][1])]),
        lambda: sign_folder(root, KEY, digests=[d for d in digests if d[0] != "manifest.json"]),
        lambda: sign_folder(root, KEY, change=lambda s: s["predicate"]["resources"].pop()),
        lambda: sign_folder(root, KEY, change=lambda s: s.update(predicateType="https://slsa.dev/provenance/v1")),
        lambda: sign_folder(root, KEY, change=lambda s: s["predicate"]["serialization"].update(hash_type="blake3")),
    ]
    chance.choice(wrong)()


@pytest.mark.parametrize(
    "damage",
    [_truncate, _rename, _add, _link, _remove, _downgrade, _expire, _sign_wrongly],
    ids=lambda d: d.__name__[1:],
)
def test_200_changed_bundles_are_refused_without_loading_anything(
    tmp_path: Path, signed: Path, trust: Trust, accepted: dict[Path, bytes], decoded: list[str], damage: Damage
) -> None:
    """25 of each of 8 kinds. The version is read only if the signature is valid: of an older or expired bundle."""
    for number in range(25):
        root = shutil.copytree(signed, tmp_path / f"copy{number}")
        damage(root, random.Random(number))
        with pytest.raises(InputError, match=r"is refused \(a signature is required by") as refused:
            read_bundle(root, trust)
        assert damage is not _link or "link" in str(refused.value)
    assert set(decoded) <= (AFTER_FILES if damage in (_downgrade, _expire) else BEFORE_FILES)
    assert _records(tmp_path / "state") == accepted


@pytest.mark.parametrize("mode", [0o755, 0o777])
@pytest.mark.parametrize("name", [SIGNATURE, "manifest.json", "graphs/int8.onnx"])
def test_pipe_instead_of_a_file_does_not_wait(signed: Path, trust: Trust, name: str, mode: int) -> None:
    signed.chmod(mode)
    (signed / name).unlink()
    os.mkfifo(signed / name)
    with pytest.raises(InputError, match="is not a regular file"):
        read_bundle(signed, trust)


def test_manifest_that_differs_from_the_signature_is_refused(signed: Path, trust: Trust) -> None:
    """The right key signed a file that the manifest does not list, or a file with other bytes."""
    (signed / "more.txt").write_text("more")
    with pytest.raises(InputError, match=r"manifest and signature differ on 'more\.txt'"):
        read_bundle(sign_folder(signed, KEY), trust)
    (signed / "more.txt").unlink()
    (signed / "graphs/int8.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"manifest and signature differ on 'graphs/int8\.onnx'"):
        read_bundle(sign_folder(signed, KEY), trust)
    (signed / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        read_bundle(sign_folder(signed, KEY), trust)


def test_folder_that_would_take_very_long_is_refused_at_once(
    signed: Path, trust: Trust, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (signed / "engines/rtx.plan").open("r+b") as file:
        file.truncate(files.BUNDLE_BYTES)  # without a byte on the disk
    with pytest.raises(InputError, match="its files have more than"):
        read_bundle(signed, trust)
    os.truncate(signed / "engines/rtx.plan", 13)
    monkeypatch.setattr(files, "BUNDLE_FILES", 9)
    with pytest.raises(InputError, match="more than 9 files and folders"):
        read_bundle(signed, trust)
    assert set(decoded) <= BEFORE_FILES


def test_changes_after_the_check_have_no_effect(signed: Path, trust: Trust, state: Path) -> None:
    """If others could write, a private copy is opened: changes after the check have no effect."""
    signed.chmod(0o777)
    found = read_bundle(signed, trust)
    assert found.path.parent == state and found.path.stat().st_mode & 0o077 == 0 and found.name == signed
    for name in digests_of(signed):
        (signed / name).write_bytes(b"changed after the check")
    before, after = images(64, 64)
    with choice.open_detector(found, "cpu-float32") as (detector, _, _):
        np.testing.assert_allclose(
            detector.probability(before[None], after[None])[0], expected(before, after), atol=1e-5
        )
    copy = found.path
    del found
    assert not copy.exists()


def test_a_bundle_that_only_its_user_can_write_is_not_copied(signed: Path, trust: Trust, state: Path) -> None:
    assert read_bundle(signed, trust).path == signed and [p.name for p in state.iterdir()] == ["accepted"]


def test_bundle_on_another_disk_is_copied(
    signed: Path, trust: Trust, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removable disk may return different bytes on two reads."""
    device = signed.stat().st_dev
    stat = Path.stat

    def elsewhere(path: Path, **more: Any) -> os.stat_result:
        found = list(stat(path, **more))
        if path == state:
            found[2] = device + 1
        return os.stat_result(found)

    monkeypatch.setattr(files.Path, "stat", elsewhere)
    assert read_bundle(signed, trust).path.parent == state


def test_copy_of_a_killed_process_is_removed(signed: Path, trust: Trust, state: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.policy import Trust
found = read_bundle(Path({str(signed)!r}), Trust(Path({str(trust.key)!r})))
print(found.path, flush=True)
os._exit(9)
"""
    signed.chmod(0o777)
    left = Path(
        subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=False).stdout.strip()
    )
    assert left.is_dir() and left.parent == state
    found = read_bundle(signed, trust)
    assert not left.exists() and found.path.is_dir()


def test_full_disk_of_the_copy_is_reported(signed: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    signed.chmod(0o777)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="other users could change it in its folder, so it is copied"):
        read_bundle(signed, trust)


def _commands(root: Path) -> dict[str, list[str]]:
    """Returns the arguments of every command that takes a bundle."""
    before, after, out = (str(root / name) for name in ("before.png", "after.png", "out"))
    folders = [str(root / name) for name in ("A", "B")]
    return {
        "predict": [before, after, "-o", f"{out}.png"],
        "predict folders": [*folders, "-o", out],
        "predict scene": [before, after, "-o", f"{out}.tif"],
        "series": [before, after, "-o", out],
        "encode": [before, "-o", f"{out}.features"],
        "watch": [folders[0], "-o", out, "--once"],
        "batch": [str(root / "scenes.csv"), "-o", out],
        "bench": [],
        "tune": [],
        "verify": [],
        "info": [],
        "parity": ["--eval", str(root)],
        "inspect": [],
        "triton": ["-o", out],
    }


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Returns a function that runs a command in this process and returns its exit code, output and error."""

    def run(*words: object) -> tuple[int, str, str]:
        module = export_cli if {"parity", "inspect", "triton"} & set(map(str, words)) else cli
        return exit_code(module.main, "x", *words), *capsys.readouterr()

    yield run
    policy.use_key(None)
    policy.use_allow_older(False)


@pytest.mark.parametrize("how", ["before", "behind", "environment"])
@pytest.mark.parametrize("command", _commands(Path()))
def test_every_command_refuses_an_unsigned_bundle(
    tmp_path: Path,
    trust: Trust,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
    command: str,
    how: str,
) -> None:
    """With an unsigned bundle, each command ends with exit code 4 and one line, for each way to require signatures."""
    if command in ("predict scene", "series", "encode", "watch", "batch"):
        pytest.importorskip("rasterio")
    if command == "triton":
        pytest.importorskip("tritonclient")
    bundle = make_bundle(tmp_path / "bundle", engines=[SPLIT_FLOAT, INT8])
    for name, pixels in zip(("A", "B"), images(64, 64), strict=True):
        write_image(tmp_path / name / "1.png", pixels)
        write_image(tmp_path / {"A": "before.png", "B": "after.png"}[name], pixels)
    write_image(tmp_path / "label" / "1.png", np.zeros((64, 64), np.uint8))
    (tmp_path / "scenes.csv").write_text("id,before,after\n1,before.png,after.png\n")
    option = ["--require-signature", trust.key]
    words = [command.split(maxsplit=1)[0], bundle, *_commands(tmp_path)[command]]
    monkeypatch.setenv(VARIABLE, str(trust.key) if how == "environment" else "")
    code, _, error = call(*{"before": [*option, *words], "behind": [*words, *option]}.get(how, words))
    assert code == 4
    assert "it is not signed: it has no model.sig; misgnet-export sign writes it" in error.splitlines()[-1]
    assert not decoded


def test_commands_accept_a_signed_bundle(signed: Path, trust: Trust, call: Call) -> None:
    code, out, _ = call("verify", signed, "--require-signature", trust.key)
    assert code == 0 and "6 files signed by key " in out and "survey, version 5 of 2026-06-01 00:00:00 UTC" in out
    assert "cpu-float32: 100.000 % of the golden tiles' pixels agree" in out
    code, out, _ = call("info", signed, f"--require-signature={trust.key}")
    assert code == 0 and "does not expire" in out


def test_allow_older_accepts_an_older_bundle(
    signed: Path, trust: Trust, accepted: dict[Path, bytes], call: Call
) -> None:
    sign_folder(prepare(signed, version=4, expires=EXPIRED), KEY)
    code, _, error = call("info", signed, "--require-signature", trust.key)
    assert code == 4 and "version 4 of 2026-06-01 00:00:00 UTC, but version 5 of 2026-06-01 00:00:00 UTC was" in error
    code, _, error = call("info", signed, "--require-signature", trust.key, "--allow-older")
    assert code == 0 and "warning: accepted because of --allow-older: it is version 4" in error
    assert _records(next(iter(accepted)).parent) == accepted
    assert call("info", signed)[0] == 0  # the options of one command do not affect the next
    code, _, error = call("info", signed, "--allow-older")
    assert code == 2 and VARIABLE in error


def test_python_session_checks_the_signature(signed: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = images(64, 64)
    signed.chmod(0o777)
    with open_bundle(signed, "cpu-float32", require_signature=trust.key) as session:
        shutil.rmtree(signed / "graphs")
        found = session.predict(before, after).probability
    np.testing.assert_allclose(found, expected(before, after), atol=1e-5)
    with pytest.raises(InputError, match="is missing or not a regular file"), open_bundle(signed, require_signature=""):
        pass
    monkeypatch.setenv(VARIABLE, str(trust.key))
    with pytest.raises(InputError, match="lacks 'graphs/"), open_bundle(signed):
        pass


def test_missing_cryptography_is_reported(signed: Path, trust: Trust) -> None:
    blocked = "import sys; sys.modules.update(cryptography=None); from misgnet_runtime.cli.main import main; main()"
    command = [sys.executable, "-c", blocked, "info", str(signed)]
    found = subprocess.run(
        [*command, "--require-signature", str(trust.key)], text=True, capture_output=True, check=False
    )
    assert found.returncode == 5 and "pip install 'misgnet-export[verify]'" in found.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0

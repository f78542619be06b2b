"""Tests private folders: files that another user could have changed are refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from misgnet_runtime.errors import InputError, LockTimeoutError, StorageError
from misgnet_runtime.storage import lock, permissions
from misgnet_runtime.storage.private import PrivateFolder

LIMIT = 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrivateFolder:
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "some" / "cache"))
    return PrivateFolder.of("plans")


@pytest.fixture
def filled(folder: PrivateFolder) -> PrivateFolder:
    folder.prepare()
    folder.write_sealed("one", b"contents")
    return folder


def test_missing_file_is_read_as_none(folder: PrivateFolder) -> None:
    assert folder.read("one", LIMIT) is None
    folder.prepare()
    assert folder.read("one", LIMIT) is None and folder.names() == []


def test_missing_folder_is_not_checked_for_permissions(folder: PrivateFolder, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert folder.read("one", LIMIT) is None
    with pytest.raises(InputError, match="can be replaced by other users"):
        folder.prepare()


def test_folder_is_created_private_regardless_of_the_umask(folder: PrivateFolder, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        folder.prepare()
    finally:
        os.umask(before)
    for path in (folder.path, tmp_path / "some" / "cache", tmp_path / "some"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    folder.write("one", b"1")


def test_written_file_is_read_and_removed(filled: PrivateFolder) -> None:
    assert filled.read_sealed("one", LIMIT) == b"contents"
    assert filled.names() == ["one"]
    filled.remove("one")
    filled.remove("one")
    assert filled.names() == []


def test_folder_that_others_can_read_is_refused_until_it_is_private(filled: PrivateFolder) -> None:
    filled.path.chmod(0o755)
    for call in (lambda: filled.read("one", LIMIT), filled.prepare):
        with pytest.raises(InputError, match=rf"open to other users \(mode 0755\).*chmod 700 {filled.path}"):
            call()
    filled.path.chmod(0o700)
    assert filled.read_sealed("one", LIMIT) == b"contents"


@pytest.mark.parametrize("position", [0, 30, 64, 65, -1])
def test_changed_byte_is_detected(filled: PrivateFolder, position: int) -> None:
    data = bytearray((filled.path / "one").read_bytes())
    data[position] ^= 1
    (filled.path / "one").write_bytes(data)
    with pytest.raises(InputError, match="its contents do not match its digest"):
        filled.read_sealed("one", LIMIT)


def open_to_the_group(folder: PrivateFolder) -> None:
    folder.path.chmod(0o770)


def linked_folder(folder: PrivateFolder) -> None:
    elsewhere = folder.path.rename(folder.path.parent / "elsewhere")
    folder.path.symlink_to(elsewhere)


def file_in_its_place(folder: PrivateFolder) -> None:
    folder.remove("one")
    folder.path.rmdir()
    folder.path.write_text("a file")


def linked_file(folder: PrivateFolder) -> None:
    (folder.path / "one").rename(folder.path / "two")
    (folder.path / "one").symlink_to("two")


def pipe(folder: PrivateFolder) -> None:
    folder.remove("one")
    os.mkfifo(folder.path / "one")


def open_parent(folder: PrivateFolder) -> None:
    folder.path.parent.chmod(0o777)


def open_grandparent(folder: PrivateFolder) -> None:
    folder.path.parent.parent.chmod(0o770)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            open_to_the_group,
            r"plans is open to other users \(mode 0770\).*; otherwise remove it, or set MISGNET_CACHE to another",
        ),
        (linked_folder, "plans must be a folder, not a link"),
        (file_in_its_place, "plans must be a folder, not a link"),
        (
            open_parent,
            r"plans can be replaced by other users: \S+some/cache belongs to them.*; run: chmod go-w \S+cache,",
        ),
        (open_grandparent, r"plans can be replaced by other users: \S+some belongs to them"),
        (pipe, "one cannot be used: it is not a regular file"),
    ],
)
def test_files_that_others_could_have_changed_are_refused(
    filled: PrivateFolder, change: Callable[[PrivateFolder], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permissions, "_is_own_group", lambda _: False)
    change(filled)
    with pytest.raises(InputError, match=message):
        filled.read("one", LIMIT)


def test_write_access_of_the_users_own_group_is_accepted(
    filled: PrivateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask 002 of many distributions makes folders writable for the user's own group."""
    monkeypatch.setattr(permissions, "_is_own_group", lambda _: True)
    open_grandparent(filled)
    assert filled.read_sealed("one", LIMIT) == b"contents"


def test_link_in_the_path_that_another_user_could_replace_is_refused(
    filled: PrivateFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "cache").symlink_to(filled.path.parent)
    monkeypatch.setenv("MISGNET_CACHE", str(shared / "cache"))
    assert PrivateFolder.of("plans").read_sealed("one", LIMIT) == b"contents"
    shared.chmod(0o777)
    with pytest.raises(InputError, match=r"can be replaced by other users: \S+/shared belongs to them"):
        PrivateFolder.of("plans").read("one", LIMIT)


def test_link_instead_of_a_file_is_neither_followed_nor_replaced(filled: PrivateFolder) -> None:
    linked_file(filled)
    with pytest.raises(InputError, match="it is a link"):
        filled.read("one", LIMIT)
    with pytest.raises(InputError, match="is a link, which this program did not create"):
        filled.write("one", b"new")
    assert (filled.path / "two").read_bytes().endswith(b"contents")


@pytest.mark.parametrize("call", ["prepare", "names"])
def test_a_folder_of_another_user_is_refused(filled: PrivateFolder, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    real = os.fstat
    foreign = os.geteuid() + 1

    def fstat(handle: int) -> Any:
        found = real(handle)
        return os.stat_result((*found[:4], foreign, *found[5:10]))

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(InputError, match=rf"belongs to user {foreign}, not to this user"):
        getattr(filled, call)()


def test_file_larger_than_the_limit_is_refused(filled: PrivateFolder) -> None:
    assert filled.read("one", 73) and filled.read_sealed("one", 8) == b"contents"
    with pytest.raises(InputError, match="larger than 72 bytes"):
        filled.read("one", 72)


def test_full_disk_keeps_the_old_file(filled: PrivateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        filled.write_sealed("one", b"new")
    assert filled.read_sealed("one", LIMIT) == b"contents" and filled.names() == ["one"]


def test_only_one_process_at_a_time_holds_the_lock(filled: PrivateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_timeout", 0.1)
    with filled.locked("compiles"):
        message = "another process of this user compiles; wait"
        with pytest.raises(LockTimeoutError, match=message), filled.locked("compiles"):
            pass
        assert filled.read_sealed("one", LIMIT) == b"contents"
    with filled.locked("compiles"):
        pass

"""Tests that results appear complete or not at all, even if writing them fails."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.storage import atomic as outputs
from misgnet_runtime.storage.atomic import refuse_existing, replace_file, replace_folder

MAKER = """
import sys, time
from pathlib import Path
from misgnet_runtime.storage.atomic import replace_folder
with replace_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("made")
    print("ready", flush=True)
    sys.stdin.read()
"""


def write_file(target: Path, content: str) -> None:
    with replace_file(target) as temporary:
        temporary.write_text(content)


def write_folder(target: Path, content: str) -> None:
    with replace_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "content").write_text(content)


def read(target: Path) -> str:
    return (target / "sub" / "content" if target.is_dir() else target).read_text()


BOTH = pytest.mark.parametrize("write", [write_file, write_folder])
Write = Callable[[Path, str], None]


@BOTH
def test_new_output_appears_with_its_parents(tmp_path: Path, write: Write) -> None:
    target = tmp_path / "a" / "b" / "out"
    write(target, "new")
    assert read(target) == "new"
    assert list(target.parent.iterdir()) == [target]


@BOTH
def test_old_output_is_replaced(tmp_path: Path, write: Write) -> None:
    target = tmp_path / "out.bin"
    write(target, "old")
    write(target, "new")
    assert read(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_replaced_folder_keeps_nothing_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_folder(target, "old")
    (target / "leftover").write_text("x")
    write_folder(target, "new")
    assert [p.name for p in target.iterdir()] == ["sub"]


def test_folder_is_replaced_if_the_system_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_rename", lambda *_: False)
    target = tmp_path / "out"
    write_folder(target, "old")
    write_folder(target, "new")
    assert read(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_replaces_a_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("a file")
    write_folder(target, "new")
    assert read(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("replace", [replace_file, replace_folder])
@pytest.mark.parametrize("existing", [False, True])
def test_failure_keeps_the_old_output(
    tmp_path: Path, replace: Callable, error: type[BaseException], existing: bool
) -> None:
    target = tmp_path / "out"
    if existing:
        (write_file if replace is replace_file else write_folder)(target, "old")
    with pytest.raises(error), replace(target) as temporary:
        (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == [target] * existing
    assert not existing or read(target) == "old"


def test_result_is_kept_if_temporary_files_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by tests/faults: an error in removing a hidden temporary file made a successful command fail."""

    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "unlink", unlink)
    write_file(tmp_path / "out", "new")
    assert read(tmp_path / "out") == "new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@BOTH
def test_full_disk_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, code: int
) -> None:
    target = tmp_path / "out"
    write(target, "old")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(outputs.os, "fsync", fail)
    with pytest.raises(InputError, match="cannot be written") as caught:
        write(target, "new")
    assert str(target) in str(caught.value)
    assert read(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


@BOTH
def test_parent_that_is_a_file_is_named(tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(InputError, match="cannot be written"):
            write(target, "new")


def test_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_file(target, "new")
    assert list(tmp_path.iterdir()) == [target]


@BOTH
def test_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path, write: Write) -> None:
    target, link = tmp_path / "place" / "out", tmp_path / "link"
    write(target, "old")
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink()
    assert read(target) == "new"
    assert list(target.parent.iterdir()) == [target]
    assert sorted(tmp_path.iterdir()) == [link, target.parent]


@BOTH
def test_target_of_a_dangling_link_is_created(tmp_path: Path, write: Write) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "out")
    write(link, "new")
    assert link.is_symlink()
    assert read(tmp_path / "elsewhere" / "out") == "new"


@BOTH
def test_permissions_follow_the_umask(tmp_path: Path, write: Write) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "out", "new")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) in (0o640, 0o750)


def test_existing_output_is_refused_without_force(tmp_path: Path) -> None:
    target = tmp_path / "out"
    refuse_existing(target, force=False)
    target.write_text("old")
    refuse_existing(target, force=True)
    with pytest.raises(UsageError, match="--force") as caught:
        refuse_existing(target, force=False)
    assert caught.value.exit_code == 2


def test_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError):
        refuse_existing(tmp_path / "out", force=False)


# --- processes that die


def start_maker(target: Path) -> subprocess.Popen[str]:
    """Starts another process that is writing ``target`` and ends when its input closes."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert maker.stdout is not None
    assert maker.stdout.readline() == "ready\n"
    return maker


@pytest.mark.parametrize("name", ["out", "out [1]*"])
def test_killed_run_leaves_no_output_and_the_next_run_cleans_up(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    maker = start_maker(target)
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    assert not target.exists()
    left = sorted(path.name.rpartition(".")[2][:8] for path in tmp_path.iterdir())
    assert left == ["building", "lock"], "the killed run left nothing to clean up"
    write_folder(target, "new")
    assert list(tmp_path.iterdir()) == [target]


def test_killed_run_leaves_the_old_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_folder(target, "old")
    maker = start_maker(target)
    maker.kill()
    maker.communicate()
    assert read(target) == "old"


def test_folder_of_a_live_run_is_not_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    maker = start_maker(target)
    outputs.remove_stale(target)
    maker.communicate()  # closes its input, so that it finishes
    assert maker.returncode == 0
    assert (target / "half").read_text() == "made"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_that_is_being_synced_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held until the folder is renamed: syncing a large result to disk takes time."""
    target, seen = tmp_path / "out", []
    sync = outputs._sync_tree

    def sync_while_another_run_starts(folder: Path) -> None:
        outputs.remove_stale(target)
        seen.append(folder.exists())
        sync(folder)

    monkeypatch.setattr(outputs, "_sync_tree", sync_while_another_run_starts)
    write_folder(target, "new")
    assert seen == [True]
    assert [p.name for p in target.iterdir()] == ["sub"]


def test_folder_taken_before_its_lock_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = outputs.tempfile.mkdtemp, []

    def make_and_lose_the_first(**options: object) -> str:
        made.append(make(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(outputs.tempfile, "mkdtemp", make_and_lose_the_first)
    write_folder(tmp_path / "out", "new")
    assert len(made) == 2
    assert read(tmp_path / "out") == "new"


def test_other_temporary_folders_stay(tmp_path: Path) -> None:
    (tmp_path / ".other.building-x").mkdir()
    (tmp_path / "out.building-x").mkdir()
    write_folder(tmp_path / "out", "new")
    assert len(list(tmp_path.iterdir())) == 3

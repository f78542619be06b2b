"""Tests two runs with the same output: the second waits or fails, and replaces the output only with ``--force``."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from misgnet import cli
from misgnet_runtime.errors import LockTimeoutError, UsageError
from misgnet_runtime.storage import atomic as outputs
from misgnet_runtime.storage import lock
from misgnet_runtime.storage.atomic import publish, replace_file, replace_folder
from support.commands import exit_code

# `misgnet synthesize`, which prints a line when it starts to write, and continues when it reads a line
SLOW = """
import sys
import misgnet.synthetic
from misgnet import cli
write = misgnet.synthetic.write_split
def slow(*words):
    print("at work", flush=True)
    sys.stdin.readline()
    write(*words)
misgnet.synthetic.write_split = slow
sys.argv[0] = "misgnet"
cli.main()
"""


def synthesize(output: Path, seed: int, *words: str) -> list[str]:
    sizes = ["--train", "1", "--val", "0", "--test", "0", "--size", "64"]
    return ["synthesize", "-o", str(output), *sizes, "--seed", str(seed), *words]


def start(code: str, *words: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Returns a process that is writing ``out``."""
    with start(SLOW, *synthesize(tmp_path / "out", 1)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def default_timeout() -> Iterator[None]:
    yield
    lock.use_lock_timeout(lock.DEFAULT_TIMEOUT)


def picture(output: Path) -> bytes:
    (path,) = (output / "train" / "A").iterdir()
    return path.read_bytes()


def test_second_run_waits_and_leaves_the_result_of_the_first(at_work: subprocess.Popen[str], tmp_path: Path) -> None:
    assert exit_code(cli.main, "misgnet", *synthesize(tmp_path / "alone", 1)) == 0
    second = start("from misgnet import cli; import sys; sys.argv[0] = 'misgnet'; cli.main()",
                   *synthesize(tmp_path / "out", 2))  # fmt: skip
    assert second.stderr is not None
    first_line = second.stderr.readline()
    at_work.communicate("go\n")
    _, more = second.communicate()
    assert (at_work.returncode, second.returncode) == (0, 2), first_line + more
    assert picture(tmp_path / "out") == picture(tmp_path / "alone")
    assert "waiting for the lock on" in first_line and "out: another process is writing it" in first_line
    assert more.count("\n") == 1 and "out exists" in more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]


def test_forced_run_waits_and_then_replaces(at_work: subprocess.Popen[str], tmp_path: Path) -> None:
    threading.Timer(0.5, at_work.communicate, ["go\n"]).start()
    assert exit_code(cli.main, "misgnet", *synthesize(tmp_path / "out", 2, "--force")) == 0
    at_work.wait()
    assert exit_code(cli.main, "misgnet", *synthesize(tmp_path / "alone", 2)) == 0
    assert at_work.returncode == 0
    assert picture(tmp_path / "out") == picture(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]


def test_waiting_ends_with_the_timeout(
    at_work: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = synthesize(tmp_path / "out", 2, "--lock-timeout", "0.2", "--force")
    assert exit_code(cli.main, "misgnet", *words) == 4
    lines = " ".join(capsys.readouterr().err.split())
    assert lines.count("waiting for the lock") == 1
    assert "is still locked after 0.2 s" in lines


def test_run_after_a_killed_one_does_not_wait(at_work: subprocess.Popen[str], tmp_path: Path) -> None:
    at_work.kill()
    at_work.wait()
    lock.use_lock_timeout(0)
    assert exit_code(cli.main, "misgnet", *synthesize(tmp_path / "out", 2)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def write_folder(target: Path, *, force: bool) -> None:
    with replace_folder(target, force=force) as folder:
        (folder / "content").write_text("mine")


def write_file(target: Path, *, force: bool) -> None:
    with replace_file(target, force=force) as temporary:
        temporary.write_text("mine")


def appear(kind: str, target: Path) -> None:
    if kind == "folder":
        target.mkdir()
        (target / "content").write_text("theirs")
    elif kind == "file":
        target.write_text("theirs")
    else:
        target.symlink_to("theirs")


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize("renames", [True, False], ids=["exclusive rename", "plain rename"])
def test_output_that_appeared_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, write: object, renames: bool
) -> None:
    """Another process creates the output between the last check and the rename, with and without exclusive renames."""
    target = tmp_path / "out"
    sync = outputs.sync

    def sync_while_another_appears(path: Path) -> None:
        if not os.path.lexists(target):
            appear(kind, target)
        sync(path)

    monkeypatch.setattr(outputs, "sync", sync_while_another_appears)
    if not renames:
        monkeypatch.setattr(outputs, "_rename", lambda *_: False)
    with pytest.raises(UsageError, match="meanwhile"):
        write(target, force=False)  # type: ignore[operator]
    if kind == "link":
        assert target.readlink() == Path("theirs")
    else:
        assert (target / "content" if kind == "folder" else target).read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_new_output_is_written_without_exclusive_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object
) -> None:
    monkeypatch.setattr(outputs, "_rename", lambda *_: False)
    write(tmp_path / "out", force=False)  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_publishing_replaces_only_with_force(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).write_text(name)
    with pytest.raises(UsageError, match="--force"):
        publish(tmp_path / "new", tmp_path / "old", force=False)
    assert (tmp_path / "old").read_text() == "old"
    publish(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


def test_only_one_of_several_waiting_threads_holds_the_lock(tmp_path: Path) -> None:
    """The holder removes the lock file: a waiting process must not share the lock with one that recreates the file."""
    running, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal running, most
        for _ in range(5):
            with lock.lock_file(tmp_path / ".lock", tmp_path, "a test"):
                with guard:
                    running += 1
                    most = max(most, running)
                threading.Event().wait(0.01)
                with guard:
                    running -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not list(tmp_path.iterdir())


def test_lock_held_by_another_process_is_not_removed(tmp_path: Path) -> None:
    lock.use_lock_timeout(0)
    with lock.lock_file(tmp_path / ".lock", tmp_path, "a test"):
        with pytest.raises(LockTimeoutError), lock.lock_file(tmp_path / ".lock", tmp_path, "a test"):
            pytest.fail("two hold one lock")
        assert (tmp_path / ".lock").exists()

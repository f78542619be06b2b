"""Tests that ``--force`` replaces only regular files, errors of outputs are one line, and the umask never changes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.storage.atomic import replace_file, replace_folder, write_file
from support.bundles import make_bundle, write_image
from support.commands import exit_code

if not hasattr(os, "mkfifo"):
    pytest.skip("Windows has no pipes and devices in folders", allow_module_level=True)

Make = Callable[[Path], object]


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("devices are made by root only")


SPECIAL: dict[str, Make] = {"folder": Path.mkdir, "pipe": os.mkfifo, "socket": bound, "device": device}


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Returns a function that runs ``predict`` on two images, which must fail, and returns its error line."""
    monkeypatch.chdir(tmp_path)  # paths of sockets must be short
    root = make_bundle(tmp_path / "bundle")
    for date in ("before", "after"):
        write_image(tmp_path / f"{date}.png", np.zeros((64, 64, 3), np.uint8))

    def refused(output: object, *words: str) -> str:
        code = exit_code(cli.main, "misgnet-run", "predict", root, "before.png", "after.png", "-o", output, *words)
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code in (2, 4) and len(lines) == 1 and "Traceback" not in err, err
        return lines[0]

    return refused


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_force_replaces_no_pipe_socket_or_device(predict: Callable[..., str], kind: str, link: bool) -> None:
    SPECIAL[kind](Path("special.png"))
    before = os.lstat("special.png")
    if link:
        Path("out.png").symlink_to("special.png")
    assert "is not a regular file" in predict("out.png" if link else "special.png", "--force")
    assert os.lstat("special.png") == before


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_file_created_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "o").mkdir()
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(MisgnetError, match=r"not a regular file|Is a directory"),
        replace_file(tmp_path / "o/x") as temporary,
    ):
        temporary.write_bytes(b"new")
        SPECIAL[kind](Path("o/x"))
    assert not (tmp_path / "o/x").is_file()
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["x"]


def test_force_replaces_a_file_and_the_target_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "link").symlink_to("x")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("output", ["/proc/x.png", "/proc/self/x.png", "/sys/x.png", "/dev/null/x.png"])
def test_unwritable_output_is_one_error_line(predict: Callable[..., str], output: str) -> None:
    assert "cannot be written" in predict(output)


def test_unwritable_folder_is_an_error() -> None:
    with pytest.raises(MisgnetError, match="cannot be written"), replace_folder(Path("/proc/x")):
        pass


def test_error_of_an_input_is_not_reported_as_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "x"):
        (tmp_path / "missing").read_bytes()


def test_writing_never_changes_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask belongs to all threads: a file that another thread creates meanwhile would be open to everybody."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail(f"umask({mask:o})"))
    write_file(tmp_path / "x", b"new")
    with replace_folder(tmp_path / "folder"):
        pass


def test_files_of_other_threads_keep_the_umask(tmp_path: Path) -> None:
    ended, modes = Event(), set[int]()

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            write_file(tmp_path / f"x{number % 9}", b"")

    old = os.umask(0o077)
    thread = Thread(target=write)
    try:
        thread.start()
        for number in range(300):
            os.close(os.open(tmp_path / f"own{number}", os.O_CREAT | os.O_WRONLY, 0o666))
            modes.add((tmp_path / f"own{number}").stat().st_mode & 0o777)
    finally:
        ended.set()
        thread.join()
        os.umask(old)
    assert modes == {0o600}

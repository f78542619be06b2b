"""Tests the runtime without functions that only Linux has, as a partial test of Windows and macOS.

A child process removes the names that Windows or macOS lacks before it imports the runtime. This shows that the code
does not need those names, not how those systems behave.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.bundles import FLOAT, images, make_bundle, write_image
from support.paths import ROOT

WITHOUT_LINUX = '''
import builtins, ctypes, errno, fcntl, io, os, pathlib, shutil, signal, subprocess, sys, types
from importlib.abc import MetaPathFinder

import platformdirs  # imported first: on Linux it needs names that are removed here, as does NumPy (uname)

real_open, real_listdir, real_io_open, flock = os.open, os.listdir, io.open, fcntl.flock
MODULES = {"fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "curses"}
NAMES = """
    geteuid getuid getegid getgid getgroups setuid chown lchown fchown fchmod fchdir mkfifo mknod
    sysconf getloadavg sched_getaffinity sched_setaffinity fork forkpty killpg setsid getpgid nice
    posix_fallocate posix_fadvise pread pwrite preadv pwritev sendfile memfd_create pidfd_open getxattr
    O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK O_SYNC O_DSYNC O_TMPFILE WNOHANG
""".split()
MACOS_LACKS = """
    sched_getaffinity sched_setaffinity posix_fallocate posix_fadvise memfd_create pidfd_open getxattr O_TMPFILE
""".split()
SIGNALS = "SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGCHLD SIGALRM SIGPIPE SIGSTOP SIGCONT".split()


class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def open_here(path, flags, mode=0o777, *, dir_fd=None):
    if dir_fd is not None:
        raise NotImplementedError("dir_fd unavailable on this platform")
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
    return real_open(path, flags, mode)


def hidden(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(("/proc/", "/sys/", "/etc/nv"))


def open_file(path, *arguments, **options):
    if hidden(path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", os.fspath(path))
    return real_io_open(path, *arguments, **options)


def held(path):
    """Returns whether this process has the file open, or a file in the folder: Windows then refuses to move it."""
    real = os.path.realpath(os.path.dirname(path)) + os.sep + os.path.basename(path)
    for number in real_listdir("/proc/self/fd"):
        try:
            found = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if found == real or found.startswith(real + os.sep):
            return True
    return False


def unless_held(function, paths):
    def called(*arguments, **options):
        if options.get("dir_fd") or any(map(held, map(os.fspath, arguments[:paths]))):
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used")
        return function(*arguments, **options)
    return called


def fsync(handle, real=os.fsync):
    if not fcntl_flags(handle) & (os.O_WRONLY | os.O_RDWR):
        raise OSError(errno.EBADF, "Bad file descriptor")  # Windows syncs only files open for writing
    return real(handle)


def fcntl_flags(handle, real=fcntl.fcntl, get=fcntl.F_GETFL):
    return real(handle, get)


def listdir(path="."):
    if isinstance(path, int):
        raise TypeError("listdir: path should be string, bytes, os.PathLike or None, not int")
    return real_listdir(path)


class Library(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if name is None and WINDOWS:
            raise TypeError("argument of type 'NoneType' is not iterable")
        super().__init__(name, *arguments, **options)

    def __getattr__(self, name):
        if name == "renameat2":
            raise AttributeError(name)
        return super().__getattr__(name)


def locking(handle, mode, count, ours=(fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN)):
    try:
        flock(handle, ours[0] | ours[1] if mode == 2 else ours[2])
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


for name in NAMES if WINDOWS else MACOS_LACKS:
    if hasattr(os, name):
        delattr(os, name)
io.open = builtins.open = open_file
ctypes.CDLL = Library
if WINDOWS:
    sys.meta_path.insert(0, Absent())
    for name in MODULES:
        sys.modules.pop(name, None)
    for name in SIGNALS:
        delattr(signal, name)
    os.open, os.listdir, os.fsync = open_here, listdir, fsync
    os.rename, os.replace = unless_held(os.rename, 2), unless_held(os.replace, 2)
    os.unlink = os.remove = unless_held(os.unlink, 1)
    os.rmdir = unless_held(os.rmdir, 1)
    os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks = set(), set(), set()
    shutil._use_fd_functions = False
    sys.modules["msvcrt"] = types.ModuleType("msvcrt")
    sys.modules["msvcrt"].__dict__.update(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
'''

IMPORT_ALL = """
import importlib, pkgutil
import misgnet_runtime

for module in pkgutil.walk_packages(misgnet_runtime.__path__, "misgnet_runtime."):
    importlib.import_module(module.name)
"""

RUN = """
from misgnet_runtime.cli.main import main

try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""


Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["Windows", "macOS"])
def python(request: pytest.FixtureRequest) -> Python:
    return partial(run, request.param)


def run(system: str, code: str, *arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter with only the runtime of this project; it must succeed."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT / "runtime"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", f"WINDOWS = {system == 'Windows'}\n{WITHOUT_LINUX}{code}", *map(str, arguments)]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended


def here(*arguments: object) -> None:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)


def test_every_module_imports(python: Python, tmp_path: Path) -> None:
    python(IMPORT_ALL + "assert not WINDOWS or not MODULES & set(sys.modules)\n", home=tmp_path)


def test_an_image_pair_is_predicted_as_on_linux(python: Python, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    pair = [write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(70, 50))]
    there = python(RUN, "predict", bundle, *pair, "-o", tmp_path / "there.png", home=tmp_path)
    here("predict", bundle, *pair, "-o", tmp_path / "here.png")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert "warning" not in there.stderr and np.asarray(Image.open(tmp_path / "there.png")).shape == (70, 50)
    python(RUN, "verify", bundle, home=tmp_path)
    python(RUN, "info", bundle, home=tmp_path)


def test_a_folder_of_pairs_is_predicted(python: Python, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    for date, pixels in zip(("before", "after"), images(70, 50), strict=True):
        (tmp_path / date).mkdir()
        for name in ("a.png", "b.png"):
            write_image(tmp_path / date / name, pixels)
    python(RUN, "predict", bundle, tmp_path / "before", tmp_path / "after", "-o", tmp_path / "masks", home=tmp_path)
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.png")) == ["a.png", "b.png"]


def test_a_scene_is_predicted_as_on_linux(python: Python, tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    pair = [
        write_raster(tmp_path / f"{date}.tif", pixels)
        for date, pixels in zip(("before", "after"), scene(80, 100, 0), strict=True)
    ]
    python(RUN, "predict", bundle, *pair, "-o", tmp_path / "there.tif", home=tmp_path)
    here("predict", bundle, *pair, "-o", tmp_path / "here.tif")
    there, expected = (np.asarray(Image.open(tmp_path / name)) for name in ("there.tif", "here.tif"))
    assert np.array_equal(there, expected)
    assert [path.name for path in tmp_path.glob(".there*")] == []


def test_private_folders_locks_and_outputs_work(python: Python, tmp_path: Path) -> None:
    code = """
from pathlib import Path
from misgnet_runtime.bundle.signing.release import Version, moment
from misgnet_runtime.bundle.signing.rollback import open_state
from misgnet_runtime.children import away_from_working_directory
from misgnet_runtime.errors import InputError, LockTimeoutError
from misgnet_runtime.machine import describe_machine, machine_line
from misgnet_runtime.storage.atomic import replace_folder, write_file
from misgnet_runtime.storage.lock import lock_file, try_acquire, use_lock_timeout
from misgnet_runtime.storage.private import PrivateFolder

use_lock_timeout(0.1)
home = Path(sys.argv[1])
folder = PrivateFolder.of("plans")
folder.prepare()
assert folder.path == home / ".cache/misgnet/plans" and folder.read("one", 100) is None
folder.write_sealed("one", b"contents")
assert folder.read_sealed("one", 100) == b"contents" and folder.names() == ["one"]
with folder.locked("compiles"):
    try:
        with folder.locked("compiles"):
            raise AssertionError("locked twice")
    except LockTimeoutError as error:
        assert "another process of this user compiles" in str(error)
with folder.locked("compiles"):
    assert folder.names() == ["one"]
(folder.path / "two").symlink_to("one")
try:
    raise AssertionError(folder.read("two", 100))
except InputError as error:
    assert "it is a link" in str(error)
folder.remove("one")
folder.remove("one")
assert folder.names() == ["two"]

with open_state() as state:
    state.accept("product", "key", Version(3, moment("2026-01-01")))
with open_state() as state:
    assert state.newest("product", ["key"]).number == 3

with (home / "journal").open("ab+", buffering=0) as first, (home / "journal").open("ab+", buffering=0) as second:
    first.write(b"line")
    assert try_acquire(first.fileno()) and not try_acquire(second.fileno())
    assert first.tell() == 4 and second.seek(0) == 0 and second.read() == b"line"

for content in ("first", "second"):
    with replace_folder(home / "bundle") as temporary:
        write_file(temporary / "file", content.encode())
    assert (home / "bundle/file").read_text() == content
assert sorted(path.name for path in home.iterdir() if path.is_dir()) == [".cache", ".local", "bundle"]

os.chdir(home)
with away_from_working_directory():
    assert Path.cwd() != home
assert Path.cwd() == home
machine = describe_machine()
assert (machine["memory_gib"] is None and "unknown memory" in machine_line(machine)) == WINDOWS
"""
    home = tmp_path / "home"
    home.mkdir()
    python(code, home, home=home)

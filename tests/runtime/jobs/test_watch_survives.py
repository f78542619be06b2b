"""Tests that the watcher survives hostile names and files, crashes, failing engines and full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import StorageError
from misgnet_runtime.jobs import image
from misgnet_runtime.jobs import journal as scene_journal
from misgnet_runtime.jobs.watch import journal as watch_journal
from misgnet_runtime.jobs.watch import processing, service
from misgnet_runtime.jobs.watch.completeness import open_for_writing
from misgnet_runtime.jobs.watch.pairing import File
from misgnet_runtime.pixels import PixelFormat
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, images, make_bundle, write_image
from support.commands import exit_code
from support.ends import in_child
from support.paths import ROOT

SIZE = (70, 60)


class Workspace:
    """A bundle, a watched folder and an output folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.out = root, root / "in", root / "out"
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.folder.mkdir()

    def add(self, name: str, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
        for date, pixels in zip(("before", "after"), images(*size, seed=seed), strict=True):
            write_image(self.folder / f"{name}_{date}.png", pixels)

    def words(self, *words: object) -> list[str]:
        return list(map(str, ("watch", self.bundle, self.folder, "-o", self.out, "--settle", 0, *words)))

    def run(self, *words: object) -> int:
        return exit_code(cli.main, "misgnet-run", *self.words("--once", *words))

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "watch.jsonl").read_text().splitlines()]

    def ends(self) -> list[tuple[str, str]]:
        return [(e["pair"], e["type"]) for e in self.journal() if e["type"] in ("done", "failed")]

    def times_done(self, name: str) -> int:
        """Returns how often a pair was processed, even if the journal was compacted since."""
        entries = [e for e in self.journal() if e.get("pair") == name]
        return sum(e["done"] if e["type"] == "ended" else e["type"] == "done" for e in entries)

    def messages(self) -> dict[str, str]:
        """Returns the error messages of failed pairs."""
        return {e["pair"]: e["message"] for e in self.journal() if e["type"] == "failed"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def crash_for(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Makes a process that reads the pair ``name`` send itself the signal ``number``."""
    real = image.read_pair

    def read_pair(before: Path, after: Path, pixels: PixelFormat) -> Any:
        if before.name.startswith(f"{name}_"):
            os.kill(os.getpid(), number)
            time.sleep(5)
        return real(before, after, pixels)

    monkeypatch.setattr(image, "read_pair", read_pair)


# --- names


@pytest.mark.parametrize("name", ["n" * 236, "ä" * 118, "n" * 244])
def test_a_pair_whose_output_names_are_too_long_fails(workspace: Workspace, name: str) -> None:
    workspace.add(name)
    workspace.add("good", 1)
    assert workspace.run() == 0
    assert sorted(workspace.ends()) == sorted([(name, "failed"), ("good", "done")])
    assert "too long" in workspace.messages()[name]
    assert workspace.run() == 0 and len(workspace.ends()) == 2


def test_an_output_that_can_never_be_written_fails_its_pair(workspace: Workspace) -> None:
    """A non-empty folder has the output's name; --force does not remove it, and waiting does not help."""
    workspace.add("a")
    workspace.add("b", 1)
    (workspace.out / "a_change.png" / "full").mkdir(parents=True)
    assert workspace.run("--force") == 0
    assert sorted(workspace.ends()) == [("a", "failed"), ("b", "done")]


@pytest.mark.parametrize("form", ["text", "json"])
def test_control_characters_in_names_are_escaped(
    workspace: Workspace, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\n\x1b[31mFAKE: b_change.png\r"
    workspace.add(name)
    assert workspace.run("--log", form) == 0
    assert workspace.ends() == [(name, "done")] and (workspace.out / f"{name}_change.png").is_file()
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err and "\r" not in captured.out
    assert not any(line.startswith("\x1b") or line.startswith("FAKE") for line in captured.out.splitlines())


def test_names_that_are_not_utf_8_are_reported_once(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.add("good")
    for date in ("before", "after"):
        (workspace.folder / f"x\udcff_{date}.png").touch()
    assert workspace.run() == 0
    assert workspace.ends() == [("good", "done")] and capsys.readouterr().err.count("not UTF-8") == 1


# --- files


def test_links_pipes_and_devices_are_not_read(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.add("real", 1)
    secret = workspace.root / "secret"
    workspace.folder.rename(secret)
    workspace.folder.mkdir()
    workspace.add("good")
    for date in ("before", "after"):
        (workspace.folder / f"link_{date}.png").symlink_to(secret / f"real_{date}.png")
        (workspace.folder / f"dangling_{date}.png").symlink_to(secret / "none")
        (workspace.folder / f"folder_{date}.png").symlink_to(secret)
        (workspace.folder / f"zero_{date}.png").symlink_to("/dev/zero")
        os.mkfifo(workspace.folder / f"pipe_{date}.png")
    workspace.add("half", 2)
    (workspace.folder / "half_after.png").unlink()
    (workspace.folder / "half_after.png").symlink_to(secret / "real_after.png")
    assert workspace.run() == 0
    assert workspace.ends() == [("good", "done")]
    errors = capsys.readouterr().err
    for name in ("link", "dangling", "folder", "zero", "half"):
        assert (
            sum(f"{name}_after.png" in line and "links are not followed" in line for line in errors.splitlines()) == 1
        )


def test_a_file_that_becomes_a_link_is_not_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced between the scan of the folder and the reading."""
    workspace.add("a")
    workspace.add("other", 3)
    real = processing.file_digest

    def swap(file: File) -> str:
        if file.path.name == "a_after.png" and not file.path.is_symlink():
            file.path.unlink()
            file.path.symlink_to(workspace.folder / "other_after.png")
        return real(file)

    monkeypatch.setattr(processing, "file_digest", swap)
    assert workspace.run() == 0
    assert workspace.ends() == [("other", "done")]


def sparse(path: Path, head: bytes = b"", size: int = 8 << 40) -> None:
    path.write_bytes(head)
    try:
        os.truncate(path, size)
    except OSError:
        pytest.skip("this file system holds no sparse file of 8 TiB")


def test_files_of_absurd_sizes_fail_at_once(workspace: Workspace) -> None:
    """Sparse files of 8 TiB: after an image, empty, after a GeoTIFF; and a GeoTIFF whose header declares terabytes."""
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for name in ("behind", "nothing", "good"):
        workspace.add(name)
    for date, pixels in zip(("before", "after"), scene(90, 80), strict=True):
        raster = write_raster(workspace.folder / f"raster_{date}.tif", pixels)
        sparse(workspace.folder / f"none_{date}.tif")
        options = {"tiled": True, "blockxsize": 8192, "blockysize": 8192, "SPARSE_OK": True, "BIGTIFF": "YES"}
        write_empty(workspace.folder / f"declared_{date}.tif", 3_000_000, options)
    sparse(workspace.folder / "behind_after.png", (workspace.folder / "behind_after.png").read_bytes())
    sparse(workspace.folder / "nothing_before.png")
    sparse(raster, raster.read_bytes())
    command = [sys.executable, "-m", "misgnet_runtime", *workspace.words("--once")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
    bad = ["behind", "declared", "none", "nothing", "raster"]
    assert sorted(workspace.ends()) == sorted([*((name, "failed") for name in bad), ("good", "done")])
    assert "but its header allows at most" in workspace.messages()["raster"]


def write_empty(path: Path, side: int, options: dict[str, Any]) -> None:
    import rasterio

    from support.scenes import PLACE

    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", **PLACE, **options}
    with rasterio.open(path, "w", **profile):
        pass


def test_a_truncated_upload_is_processed_again_once_complete(workspace: Workspace) -> None:
    workspace.add("a")
    whole = (workspace.folder / "a_after.png").read_bytes()
    (workspace.folder / "a_after.png").write_bytes(whole[:2000])
    assert (
        workspace.run() == 0 and workspace.ends() == [("a", "failed")] and not (workspace.out / "a_change.png").exists()
    )
    assert workspace.run() == 0 and len(workspace.ends()) == 1
    (workspace.folder / "a_after.png").write_bytes(whole)
    assert workspace.run() == 0 and workspace.ends() == [("a", "failed"), ("a", "done")]


def unfinished_rasters(workspace: Workspace) -> bytes:
    """Adds a pair of GeoTIFFs of which the second is truncated to half; returns its complete bytes."""
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(160, 128), strict=True):
        whole = write_raster(workspace.folder / f"s_{date}.tif", pixels).read_bytes()
    (workspace.folder / "s_after.tif").write_bytes(whole[: len(whole) // 2])
    return whole


def test_a_truncated_geotiff_fails_and_is_processed_once_complete(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = unfinished_rasters(workspace)
    assert workspace.run() == 0 and workspace.ends() == [("s", "failed")]
    assert not list(workspace.out.glob("*.tif")) and "unreadable" in workspace.messages()["s"]
    assert "0 pairs done, 1 pair failed, 0 pending" in capsys.readouterr().out
    (workspace.folder / "s_after.tif").write_bytes(whole)
    assert workspace.run() == 0 and workspace.ends() == [("s", "failed"), ("s", "done")]
    assert "100.00 % valid" in capsys.readouterr().out


def test_a_result_of_a_truncated_file_is_replaced_once_the_file_is_complete(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """This does not require --reprocess, unlike other changes, and works after compaction of the journal."""
    whole = unfinished_rasters(workspace)
    assert workspace.run("--max-unreadable", 90, "--log", "json") == 0 and workspace.ends() == [("s", "done")]
    captured = capsys.readouterr()
    (result, _) = map(json.loads, captured.out.splitlines())
    assert "% changed of valid pixels" in result["message"] and 0 < result["valid_share"] < 1
    levels = {e["level"] for e in map(json.loads, captured.err.splitlines()) if "unreadable" in e["message"]}
    assert levels == {"warning"}
    with watch_journal.open_journal(workspace.out) as journal:
        journal.compact({"s"})
    (workspace.folder / "s_after.tif").write_bytes(whole)
    assert workspace.run() == 0 and workspace.times_done("s") == 2
    assert "100.00 % valid" in capsys.readouterr().out
    (workspace.folder / "s_after.tif").write_bytes((workspace.folder / "s_before.tif").read_bytes())
    assert workspace.run() == 0 and workspace.times_done("s") == 2


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), LookupError("what")])
def test_an_unexpected_error_is_reported_with_its_type(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    workspace.add("a")
    workspace.add("b", 1)
    real = image.read_pair

    def read_pair(before: Path, after: Path, pixels: PixelFormat) -> Any:
        if before.name.startswith("a_"):
            raise error
        return real(before, after, pixels)

    monkeypatch.setattr(image, "read_pair", read_pair)
    assert workspace.run() == 0
    assert sorted(workspace.ends()) == [("a", "failed"), ("b", "done")]
    assert workspace.messages()["a"].startswith(type(error).__name__)


def test_only_geotiffs_wait_if_the_geo_extra_is_missing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("s", "t"):
        for date in ("before", "after"):
            (workspace.folder / f"{name}_{date}.tif").write_bytes(b"no matter")
    workspace.add("a")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert workspace.run() == 0
    assert workspace.ends() == [("a", "done")]
    captured = capsys.readouterr()
    assert captured.err.count("requires rasterio") == 1 and "1 pair done, 0 pairs failed, 2 pending" in captured.out


# --- processes


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError, PermissionError])
def test_processes_that_exit_while_proc_is_read_are_skipped(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    workspace.add("a")
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listed = {name: getattr(os, name) for name in ("listdir", "scandir")}

    def failing_for_ended(name: str) -> Callable[..., Any]:
        def call(path: Any = ".") -> Any:
            if str(path) == f"/proc/{gone.pid}/fd":
                raise error(errno.ENOENT, "it has ended", os.fspath(path))
            return listed[name](path)

        return call

    for name in listed:
        monkeypatch.setattr(os, name, failing_for_ended(name))
    path = workspace.folder / "a_after.png"
    try:
        with path.open("ab"):
            file = File.of(path)
            assert file is not None and open_for_writing([file]) == {file}
        assert workspace.run() == 0 and workspace.ends() == [("a", "done")]
    finally:
        gone.kill()
        gone.communicate()


def test_a_pair_that_repeatedly_kills_the_process_fails(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add("bad")
    time.sleep(0.02)
    workspace.add("good", 1)
    with monkeypatch.context() as patched:
        crash_for(patched, "bad", signal.SIGKILL)
        for _ in range(3):
            assert in_child(workspace.run) == signal.SIGKILL and ("good", "done") not in workspace.ends()
        assert in_child(workspace.run) == 0
    assert workspace.ends() == [("bad", "failed"), ("good", "done")]
    assert "3 attempts" in workspace.messages()["bad"] and "--retry-failed" in workspace.messages()["bad"]
    assert workspace.run("--retry-failed") == 0
    assert workspace.ends() == [("bad", "failed"), ("good", "done"), ("bad", "done")]


def test_max_attempts_limits_the_number_of_crashes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add("bad")
    with monkeypatch.context() as patched:
        crash_for(patched, "bad", signal.SIGSEGV)
        assert in_child(partial(workspace.run, "--max-attempts", 1)) == signal.SIGSEGV
        assert in_child(partial(workspace.run, "--max-attempts", 1)) == 0
    assert workspace.ends() == [("bad", "failed")]
    assert exit_code(cli.main, "misgnet-run", *workspace.words("--max-attempts", 0)) == 2


def test_a_crash_while_files_are_checked_counts(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add("bad")
    with monkeypatch.context() as patched:
        patched.setattr(processing, "check_files", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        for _ in range(3):
            assert in_child(workspace.run) == signal.SIGKILL
        assert in_child(workspace.run) == 0
    assert workspace.ends() == [("bad", "failed")]


def test_changed_files_reset_the_number_of_attempts(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add("bad")
    with monkeypatch.context() as patched:
        crash_for(patched, "bad", signal.SIGKILL)
        for seed in range(4):
            workspace.add("bad", seed)
            assert in_child(workspace.run) == signal.SIGKILL
    assert workspace.run() == 0 and workspace.ends() == [("bad", "done")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_does_not_count_as_a_crash(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    workspace.add("slow")
    with monkeypatch.context() as patched:
        crash_for(patched, "slow", number)
        for _ in range(5):
            assert in_child(workspace.run) == 0
    assert workspace.run() == 0 and workspace.ends() == [("slow", "done")]


def test_a_stop_signal_followed_by_sigkill_does_not_count_as_a_crash(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager sends SIGKILL if the process does not exit in time."""
    workspace.add("slow")

    def stubborn(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(image, "read_pair", stubborn)
        for _ in range(4):
            assert in_child(workspace.run) == signal.SIGKILL
    assert workspace.run() == 0 and workspace.ends() == [("slow", "done")]


def test_crashes_count_only_without_progress(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene that is killed after each band of rows finishes eventually; one killed before any band fails."""
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(400, 60), strict=True):
        write_raster(workspace.folder / f"s_{date}.tif", pixels)
    real = scene_journal.Journal.add

    def add(*arguments: Any) -> None:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(scene_journal.Journal, "add", add)
        kills = 0
        while kills < 50 and in_child(workspace.run) == signal.SIGKILL:
            kills += 1
    assert kills > 4 and workspace.ends() == [("s", "done")]
    workspace.out = workspace.root / "other"
    with monkeypatch.context() as patched:
        patched.setattr(scene_journal.Journal, "add", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert [in_child(workspace.run) for _ in range(4)] == [*3 * [signal.SIGKILL], 0]
    assert workspace.ends() == [("s", "failed")]


# --- engines


class Failing(FakeEngine):
    """Fails for images of one seed, ``times`` times, and if ``broken`` also for golden tiles."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(INTERFACE)
        self._state = state

    def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
        state = self._state
        is_bad = np.array_equal(arrays["before"][0][:8, :8], state["bad"][:8, :8])
        if state["times"] and (is_bad or state["broken"]) and (is_bad or state["failed"]):
            state["times"] -= 1
            state["failed"] = True
            if state["nan"]:
                return {self.outputs[0].name: np.full((batch, 64, 64), np.nan, np.float32)}
            raise RuntimeError("CUDA error\n700: an illegal memory access")
        return super()._infer(context, arrays, batch)


@pytest.fixture(params=["raises", "NaN"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    bad = images(*SIZE, seed=7)[0]
    state = {"bad": bad, "times": 1, "broken": False, "failed": False, "nan": request.param == "NaN", "opened": 0}

    def open_engine() -> FakeEngine:
        state["opened"] += 1
        return Failing(state)

    opening = partial(service.watch_folder, opener=fake_detector(open_engine))
    monkeypatch.setattr(service, "watch_folder", opening)
    return state


def test_an_engine_that_fails_once_is_reopened(workspace: Workspace, failing: dict[str, Any]) -> None:
    workspace.add("a", 7)
    workspace.add("b", 1)
    assert workspace.run() == 0
    assert sorted(workspace.ends()) == [("a", "done"), ("b", "done")] and failing["opened"] == 2


def test_a_pair_on_which_the_engine_fails_twice_fails(workspace: Workspace, failing: dict[str, Any]) -> None:
    failing["times"] = 1000
    workspace.add("a", 7)
    workspace.add("b", 1)
    assert workspace.run() == 0
    assert sorted(workspace.ends()) == [("a", "failed"), ("b", "done")]
    assert "the engine failed on this pair twice" in workspace.messages()["a"]


def test_an_engine_that_stays_broken_stops_the_watcher_and_fails_no_pair(
    workspace: Workspace, failing: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.update(times=1000, broken=True)
    workspace.add("a", 7)
    for seed, name in enumerate("bcd"):
        workspace.add(name, seed)
    assert workspace.run() == 5
    assert not workspace.messages()
    assert "golden tiles" in capsys.readouterr().err
    failing["times"] = 0
    assert workspace.run() == 0
    assert {name for name, end in workspace.ends() if end == "done"} == set("abcd") and not workspace.messages()


# --- disks


def refused() -> StorageError:
    error = StorageError("out cannot be written: No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def rounds(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, count: int) -> None:
    """Runs a watcher for ``count`` rounds."""
    left = count

    def sleep(_seconds: float) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(service.time, "sleep", sleep)
        assert exit_code(cli.main, "misgnet-run", *workspace.words("--poll", "0.01")) == 0


def test_small_pairs_are_processed_if_the_disk_is_too_full_for_a_large_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.add("large", size=(200, 200))
    time.sleep(0.02)
    for name in ("small", "tiny"):
        workspace.add(name, 1)
    real = processing.predict_images

    def predict(bundle: Any, opened: Any, pair: Any, result: Path, options: Any) -> Any:
        if result.name.startswith("large"):
            raise refused()
        return real(bundle, opened, pair, result, options)

    with monkeypatch.context() as patched:
        patched.setattr(processing, "predict_images", predict)
        rounds(patched, workspace, 4)
        assert sorted(workspace.ends()) == [("small", "done"), ("tiny", "done")]
    rounds(monkeypatch, workspace, 2)
    assert workspace.ends()[-1] == ("large", "done") and not workspace.messages()


def test_partial_results_of_a_large_pair_are_discarded_for_a_small_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.add("large", size=(200, 200))
    time.sleep(0.02)
    workspace.add("small", 1)
    real = processing.predict_images

    def predict(bundle: Any, opened: Any, pair: Any, result: Path, options: Any) -> Any:
        if result.name.startswith("large"):
            result.with_name("rows").write_bytes(b"much")
        if list(workspace.out.rglob("rows")):
            raise refused()
        return real(bundle, opened, pair, result, options)

    with monkeypatch.context() as patched:
        patched.setattr(processing, "predict_images", predict)
        rounds(patched, workspace, 3)
    assert workspace.ends() == [("small", "done")]


def test_the_watcher_waits_for_a_full_disk(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        workspace.add(f"p{number}", number)
    calls: list[Path] = []

    def predict(_bundle: Any, _opened: Any, _pair: Any, result: Path, _options: Any) -> Any:
        calls.append(result)
        raise refused()

    with monkeypatch.context() as patched:
        patched.setattr(processing, "predict_images", predict)
        rounds(patched, workspace, 4)
    assert not workspace.ends() and 3 <= len(calls) <= 12
    assert capsys.readouterr().err.count("No space left") <= 6
    assert workspace.run() == 0 and len(workspace.ends()) == 6


# --- the journal


OLD = """{"type":"started","time":"2026-01-01T00:00:00Z","format":1,"bundle":"BUNDLE","engine":"cpu","settings":{}}
{"type":"begun","time":"2026-01-01T00:00:01Z","pair":"a","before":BEFORE,"after":AFTER}
{"type":"complete","time":"2026-01-01T00:00:02Z","pair":"a","outputs":["a_change.png"],"figures":{}}
{"type":"done","time":"2026-01-01T00:00:03Z","pair":"a"}
{"type":"begun","time":"2026-01-01T00:00:04Z","pair":"b","before":BEFORE,"after":AFTER}
{"type":"complete","time":"2026-01-01T00:00:05Z","pair":"b","outputs":["b_change.png"],"figures":{}}
"""


def test_a_journal_of_the_first_format_is_resumed(workspace: Workspace) -> None:
    """One pair is done, the results of a second one are complete, and a third one is new."""
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.storage.files import file_sha256

    workspace.add("a")
    states = []
    for date in ("before", "after"):
        path = workspace.folder / f"a_{date}.png"
        found = path.stat()
        state = {"name": path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": file_sha256(path)}
        states.append(json.dumps(state))
    (workspace.out / ".working").mkdir(parents=True)
    (workspace.out / "a_change.png").write_bytes(b"the old mask")
    (workspace.out / ".working" / "b_change.png").write_bytes(b"whole")
    lines = OLD.replace("BUNDLE", read_bundle(workspace.bundle).digest())
    (workspace.out / "watch.jsonl").write_text(lines.replace("BEFORE", states[0]).replace("AFTER", states[1]))
    workspace.add("c", 1)
    assert workspace.run() == 0
    assert workspace.ends() == [("a", "done"), ("b", "done"), ("c", "done")]
    assert (workspace.out / "a_change.png").read_bytes() == b"the old mask"
    assert (workspace.out / "b_change.png").read_bytes() == b"whole" and not (workspace.out / ".working").exists()
    assert [e["format"] for e in workspace.journal() if e["type"] == "started"] == [1, 2]


def test_conditions_do_not_depend_on_the_hash_seed(workspace: Workspace) -> None:
    """The order of sets differs between processes; if it were journaled, no interrupted scene would be resumed."""
    for seed in "1234":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-m", "misgnet_runtime", *workspace.words("--once")]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert [entry["type"] for entry in workspace.journal()] == ["started"]


@pytest.mark.parametrize(
    ("option", "number"), [("--max-seconds", "inf"), ("--max-seconds", "1e10"), ("--poll", "inf"), ("--settle", "inf")]
)
def test_too_long_waiting_times_are_refused(workspace: Workspace, option: str, number: str) -> None:
    workspace.add("a")
    assert workspace.run(option, number) == 2 and not workspace.out.exists()


def test_a_time_limit_of_years_is_accepted(workspace: Workspace) -> None:
    """A single wait of the system is limited to a few weeks."""
    workspace.add("a")
    assert workspace.run("--max-seconds", "1e8") == 0 and workspace.ends() == [("a", "done")]


def test_waiting_for_a_disk_does_not_count_towards_max_seconds(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal's disk refuses for longer than --max-seconds, between reading and processing a pair."""
    from misgnet_runtime.jobs.watch.isolated import IsolatedProcessor
    from misgnet_runtime.jobs.watch.pairing import FilePair

    workspace.add("a")
    before, after = (File.of(workspace.folder / f"a_{date}.png") for date in ("before", "after"))
    assert before is not None and after is not None
    pair, left = FilePair("a", "image", before, after, None), []
    processor = object.__new__(IsolatedProcessor)
    processor.__dict__.update(_child=object(), _seconds=0.5, _pair="", _left=0.0, _end=0.0)
    monkeypatch.setattr(processor, "_call", lambda *_: left.append(processor._end - time.monotonic()))
    processor.digests(pair, workspace.out)
    time.sleep(0.6)
    processor.process(pair, workspace.out)
    assert len(left) == 2 and left[1] > 0.3


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watch_journal.Journal, "LINES", 10, raising=False)
    yield


@pytest.mark.usefixtures("short")
def test_compaction_bounds_the_journal(workspace: Workspace) -> None:
    """Pairs are added and removed; the journal keeps those that still have files, and none is processed twice."""
    workspace.add("stays")
    for number in range(12):
        workspace.add("passing", number)
        workspace.add(f"p{number}", number)
        assert workspace.run("--reprocess") == 0
        if number % 2 == 0:
            for path in (*workspace.folder.glob(f"p{number}_*"), *workspace.out.glob(f"p{number}_*")):
                path.unlink()
    lines = workspace.journal()
    assert len(lines) < 60 and lines[0]["type"] == "started"
    known = {e["pair"] for e in lines if "pair" in e}
    assert {"stays", "passing", "p1", "p11"} <= known and "p0" not in known
    before = {path.name: path.stat().st_mtime_ns for path in workspace.out.glob("*.png")}
    assert workspace.run() == 0
    assert {path.name: path.stat().st_mtime_ns for path in workspace.out.glob("*.png")} == before


@pytest.mark.usefixtures("short")
def test_compaction_keeps_pairs_whose_outputs_still_exist(workspace: Workspace) -> None:
    """The inputs were deleted; if the pair arrives again, its output still counts as the watcher's own."""
    for number in range(8):
        workspace.add(f"p{number}", number)
    assert workspace.run() == 0
    for path in workspace.folder.iterdir():
        path.unlink()
    assert workspace.run() == 0 and len(workspace.journal()) < 12
    workspace.add("p0", 0)
    workspace.add("p1", 5)
    assert workspace.run("--reprocess") == 0
    assert workspace.times_done("p0") == 1 and workspace.times_done("p1") == 2 and not workspace.messages()


def test_touched_files_are_hashed_only_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.add("a")
    assert workspace.run() == 0
    os.utime(workspace.folder / "a_before.png")
    read: list[str] = []
    real = processing.file_digest
    monkeypatch.setattr(processing, "file_digest", lambda file: read.append(file.path.name) or real(file))
    for _ in range(3):
        assert workspace.run() == 0
    assert sorted(read) == ["a_after.png", "a_before.png"] and workspace.ends() == [("a", "done")]


# --- pairs in a child process


def slow_and_crashing(connection: Connection, setup: Any) -> None:
    """Serves as the child process, in which some pairs take long, crash it or raise."""
    from misgnet_runtime.jobs.watch import isolated

    real = image.read_pair

    def read_pair(before: Path, after: Path, pixels: PixelFormat) -> Any:
        if before.name.startswith("slow"):
            time.sleep(60)
        if before.name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if before.name.startswith("bug"):
            raise LookupError("what")
        return real(before, after, pixels)

    image.read_pair = read_pair
    isolated._serve(connection, setup)


def test_a_pair_that_exceeds_max_seconds_fails(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from misgnet_runtime import children
    from misgnet_runtime.jobs.watch import isolated

    for number, name in enumerate(("slow", "crash", "bug", "good", "n" * 236)):
        workspace.add(name, number)
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(90, 80), strict=True):
        write_raster(workspace.folder / f"s_{date}.tif", pixels)
    started: list[children.Child] = []

    def start(_target: object, *arguments: object) -> children.Child:
        started.append(children.start(slow_and_crashing, *arguments))
        return started[-1]

    monkeypatch.setattr(isolated, "start", start)
    for _ in range(3):
        assert workspace.run("--max-seconds", 3) == 0
    assert sorted(workspace.ends()) == sorted(
        [("bug", "failed"), ("crash", "failed"), ("good", "done"), ("n" * 236, "failed"), ("s", "done"),
         ("slow", "failed")]
    )  # fmt: skip
    assert "not finished within 3 s" in workspace.messages()["slow"] and "--max-seconds" in workspace.messages()["slow"]
    assert workspace.messages()["bug"] == "LookupError: what"
    assert "SIGSEGV" in workspace.messages()["crash"] and "3 attempts" in workspace.messages()["crash"]
    assert all(child.process.poll() is not None for child in started)


def test_the_command_runs_pairs_in_a_child_process(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.add("a")
    assert workspace.run("--max-seconds", 60) == 0
    assert workspace.ends() == [("a", "done")] and "1 pair done, 0 pairs failed, 0 pending" in capsys.readouterr().out
    assert exit_code(cli.main, "misgnet-run", *workspace.words("--max-seconds", 0)) == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in Linux's /proc")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_the_child_process_exits_with_the_watcher(workspace: Workspace, name: str) -> None:
    number = getattr(signal, name)
    command = [sys.executable, "-m", "misgnet_runtime", *workspace.words("--max-seconds", 60)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and "watching" in process.stderr.readline()
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        assert process.wait(30) == (0 if number == signal.SIGTERM else -number)
    end = time.monotonic() + 20
    while Path(f"/proc/{child}/status").exists() and "(zombie)" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)

"""What a watcher meets without ending: hostile names and files, crashes, failing engines, full disks."""

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
from misgnet_runtime.jobs import journal as scene_journal
from misgnet_runtime.jobs.watch import journal as watch_journal
from misgnet_runtime.jobs.watch import processing, service
from misgnet_runtime.jobs.watch.completeness import open_for_writing
from misgnet_runtime.jobs.watch.pairing import File
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, images, make_bundle, write_image
from support.commands import exit_code
from support.ends import in_child
from support.paths import ROOT

SIZE = (70, 60)


class Place:
    """A bundle, a folder that is watched and its output."""

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
        """How often a pair was processed, also where the journal was compacted since."""
        entries = [e for e in self.journal() if e.get("pair") == name]
        return sum(e["done"] if e["type"] == "ended" else e["type"] == "done" for e in entries)

    def messages(self) -> dict[str, str]:
        """Why pairs failed."""
        return {e["pair"]: e["message"] for e in self.journal() if e["type"] == "failed"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def crash_for(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Who reads the pair ``name`` gets the signal."""
    real = processing.read_pair

    def read_pair(before: Path, after: Path) -> Any:
        if before.name.startswith(f"{name}_"):
            os.kill(os.getpid(), number)
            time.sleep(5)
        return real(before, after)

    monkeypatch.setattr(processing, "read_pair", read_pair)


# --- names


@pytest.mark.parametrize("name", ["n" * 236, "ä" * 118, "n" * 244])
def test_a_name_that_no_output_can_have_fails_its_pair(place: Place, name: str) -> None:
    place.add(name)
    place.add("good", 1)
    assert place.run() == 0
    assert sorted(place.ends()) == sorted([(name, "failed"), ("good", "done")])
    assert "too long" in place.messages()[name]
    assert place.run() == 0 and len(place.ends()) == 2


def test_a_result_that_is_refused_for_its_own_sake_fails_its_pair(place: Place) -> None:
    """A folder has the output's name, and --force does not remove it: no waiting helps."""
    place.add("a")
    place.add("b", 1)
    (place.out / "a_change.png" / "full").mkdir(parents=True)
    assert place.run("--force") == 0
    assert sorted(place.ends()) == [("a", "failed"), ("b", "done")]


@pytest.mark.parametrize("form", ["text", "json"])
def test_control_characters_in_names_are_escaped(place: Place, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\n\x1b[31mFAKE: b_change.png\r"
    place.add(name)
    assert place.run("--log", form) == 0
    assert place.ends() == [(name, "done")] and (place.out / f"{name}_change.png").is_file()
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err and "\r" not in captured.out
    assert not any(line.startswith("\x1b") or line.startswith("FAKE") for line in captured.out.splitlines())


def test_names_that_are_not_utf_8_are_named_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("good")
    for date in ("before", "after"):
        (place.folder / f"x\udcff_{date}.png").touch()
    assert place.run() == 0
    assert place.ends() == [("good", "done")] and capsys.readouterr().err.count("not UTF-8") == 1


# --- files


def test_links_pipes_and_devices_are_not_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("real", 1)
    secret = place.root / "secret"
    place.folder.rename(secret)
    place.folder.mkdir()
    place.add("good")
    for date in ("before", "after"):
        (place.folder / f"link_{date}.png").symlink_to(secret / f"real_{date}.png")
        (place.folder / f"dangling_{date}.png").symlink_to(secret / "none")
        (place.folder / f"folder_{date}.png").symlink_to(secret)
        (place.folder / f"zero_{date}.png").symlink_to("/dev/zero")
        os.mkfifo(place.folder / f"pipe_{date}.png")
    place.add("half", 2)
    (place.folder / "half_after.png").unlink()
    (place.folder / "half_after.png").symlink_to(secret / "real_after.png")
    assert place.run() == 0
    assert place.ends() == [("good", "done")]
    said = capsys.readouterr().err
    for name in ("link", "dangling", "folder", "zero", "half"):
        assert sum(f"{name}_after.png" in line and "links are not followed" in line for line in said.splitlines()) == 1


def test_a_file_that_becomes_a_link_is_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the folder and the reading."""
    place.add("a")
    place.add("other", 3)
    real = processing.file_digest

    def swap(file: File) -> str:
        if file.path.name == "a_after.png" and not file.path.is_symlink():
            file.path.unlink()
            file.path.symlink_to(place.folder / "other_after.png")
        return real(file)

    monkeypatch.setattr(processing, "file_digest", swap)
    assert place.run() == 0
    assert place.ends() == [("other", "done")]


def sparse(path: Path, head: bytes = b"", size: int = 8 << 40) -> None:
    path.write_bytes(head)
    try:
        os.truncate(path, size)
    except OSError:
        pytest.skip("this file system holds no sparse file of 8 TiB")


def test_absurd_sizes_fail_at_once(place: Place) -> None:
    """8 TiB of holes: behind an image, behind nothing, behind a GeoTIFF; and a GeoTIFF that declares terabytes."""
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for name in ("behind", "nothing", "good"):
        place.add(name)
    for date, pixels in zip(("before", "after"), scene(90, 80), strict=True):
        raster = write_raster(place.folder / f"raster_{date}.tif", pixels)
        sparse(place.folder / f"none_{date}.tif")
        options = {"tiled": True, "blockxsize": 8192, "blockysize": 8192, "SPARSE_OK": True, "BIGTIFF": "YES"}
        write_empty(place.folder / f"declared_{date}.tif", 3_000_000, options)
    sparse(place.folder / "behind_after.png", (place.folder / "behind_after.png").read_bytes())
    sparse(place.folder / "nothing_before.png")
    sparse(raster, raster.read_bytes())
    command = [sys.executable, "-m", "misgnet_runtime.cli", *place.words("--once")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
    bad = ["behind", "declared", "none", "nothing", "raster"]
    assert sorted(place.ends()) == sorted([*((name, "failed") for name in bad), ("good", "done")])
    assert "by its header at most" in place.messages()["raster"]


def write_empty(path: Path, side: int, options: dict[str, Any]) -> None:
    import rasterio

    from support.scenes import PLACE

    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", **PLACE, **options}
    with rasterio.open(path, "w", **profile):
        pass


def test_a_truncated_upload_is_processed_again_when_it_is_whole(place: Place) -> None:
    place.add("a")
    whole = (place.folder / "a_after.png").read_bytes()
    (place.folder / "a_after.png").write_bytes(whole[:2000])
    assert place.run() == 0 and place.ends() == [("a", "failed")] and not (place.out / "a_change.png").exists()
    assert place.run() == 0 and len(place.ends()) == 1
    (place.folder / "a_after.png").write_bytes(whole)
    assert place.run() == 0 and place.ends() == [("a", "failed"), ("a", "done")]


def unfinished_rasters(place: Place) -> bytes:
    """A pair of GeoTIFFs of which the second is half there; all of it."""
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(160, 128), strict=True):
        whole = write_raster(place.folder / f"s_{date}.tif", pixels).read_bytes()
    (place.folder / "s_after.tif").write_bytes(whole[: len(whole) // 2])
    return whole


def test_a_truncated_geotiff_fails_and_is_processed_when_it_is_whole(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = unfinished_rasters(place)
    assert place.run() == 0 and place.ends() == [("s", "failed")]
    assert not list(place.out.glob("*.tif")) and "unreadable" in place.messages()["s"]
    assert "0 pairs done, 1 pair failed, 0 pending" in capsys.readouterr().out
    (place.folder / "s_after.tif").write_bytes(whole)
    assert place.run() == 0 and place.ends() == [("s", "failed"), ("s", "done")]
    assert "100.00 % valid" in capsys.readouterr().out


def test_what_was_done_with_unreadable_blocks_is_done_again_when_the_file_is_whole(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --reprocess, which other changes need; also where the journal was compacted between."""
    whole = unfinished_rasters(place)
    assert place.run("--max-unreadable", 90, "--log", "json") == 0 and place.ends() == [("s", "done")]
    captured = capsys.readouterr()
    (result, _) = map(json.loads, captured.out.splitlines())
    assert "% changed of valid pixels" in result["message"] and 0 < result["valid_share"] < 1
    levels = {e["level"] for e in map(json.loads, captured.err.splitlines()) if "unreadable" in e["message"]}
    assert levels == {"warning"}
    with watch_journal.open_journal(place.out) as journal:
        journal.compact({"s"})
    (place.folder / "s_after.tif").write_bytes(whole)
    assert place.run() == 0 and place.times_done("s") == 2
    assert "100.00 % valid" in capsys.readouterr().out
    (place.folder / "s_after.tif").write_bytes((place.folder / "s_before.tif").read_bytes())
    assert place.run() == 0 and place.times_done("s") == 2


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), LookupError("what")])
def test_whatever_a_pair_raises_is_named(place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    place.add("a")
    place.add("b", 1)
    real = processing.read_pair

    def read_pair(before: Path, after: Path) -> Any:
        if before.name.startswith("a_"):
            raise error
        return real(before, after)

    monkeypatch.setattr(processing, "read_pair", read_pair)
    assert place.run() == 0
    assert sorted(place.ends()) == [("a", "failed"), ("b", "done")]
    assert place.messages()["a"].startswith(type(error).__name__)


def test_without_the_geo_extra_only_geotiffs_wait(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("s", "t"):
        for date in ("before", "after"):
            (place.folder / f"{name}_{date}.tif").write_bytes(b"no matter")
    place.add("a")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert place.run() == 0
    assert place.ends() == [("a", "done")]
    captured = capsys.readouterr()
    assert captured.err.count("requires rasterio") == 1 and "1 pair done, 0 pairs failed, 2 pending" in captured.out


# --- processes


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError, PermissionError])
def test_processes_that_end_while_proc_is_read_are_passed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    place.add("a")
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listed = {name: getattr(os, name) for name in ("listdir", "scandir")}

    def ended(name: str) -> Callable[..., Any]:
        def call(path: Any = ".") -> Any:
            if str(path) == f"/proc/{gone.pid}/fd":
                raise error(errno.ENOENT, "it has ended", os.fspath(path))
            return listed[name](path)

        return call

    for name in listed:
        monkeypatch.setattr(os, name, ended(name))
    path = place.folder / "a_after.png"
    try:
        with path.open("ab"):
            file = File.of(path)
            assert file is not None and open_for_writing([file]) == {file}
        assert place.run() == 0 and place.ends() == [("a", "done")]
    finally:
        gone.kill()
        gone.communicate()


def test_a_pair_that_kills_the_process_is_set_aside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("bad")
    time.sleep(0.02)
    place.add("good", 1)
    with monkeypatch.context() as patched:
        crash_for(patched, "bad", signal.SIGKILL)
        for _ in range(3):
            assert in_child(place.run) == signal.SIGKILL and ("good", "done") not in place.ends()
        assert in_child(place.run) == 0
    assert place.ends() == [("bad", "failed"), ("good", "done")]
    assert "3 attempts" in place.messages()["bad"] and "--retry-failed" in place.messages()["bad"]
    assert place.run("--retry-failed") == 0
    assert place.ends() == [("bad", "failed"), ("good", "done"), ("bad", "done")]


def test_max_attempts_is_an_option(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("bad")
    with monkeypatch.context() as patched:
        crash_for(patched, "bad", signal.SIGSEGV)
        assert in_child(partial(place.run, "--max-attempts", 1)) == signal.SIGSEGV
        assert in_child(partial(place.run, "--max-attempts", 1)) == 0
    assert place.ends() == [("bad", "failed")]
    assert exit_code(cli.main, "misgnet-run", *place.words("--max-attempts", 0)) == 2


def test_a_crash_while_files_are_read_whole_counts_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("bad")
    with monkeypatch.context() as patched:
        patched.setattr(processing, "check_files", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        for _ in range(3):
            assert in_child(place.run) == signal.SIGKILL
        assert in_child(place.run) == 0
    assert place.ends() == [("bad", "failed")]


def test_other_files_are_another_attempt(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("bad")
    with monkeypatch.context() as patched:
        crash_for(patched, "bad", signal.SIGKILL)
        for seed in range(4):
            place.add("bad", seed)
            assert in_child(place.run) == signal.SIGKILL
    assert place.run() == 0 and place.ends() == [("bad", "done")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_being_stopped_never_counts(place: Place, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    place.add("slow")
    with monkeypatch.context() as patched:
        crash_for(patched, "slow", number)
        for _ in range(5):
            assert in_child(place.run) == 0
    assert place.run() == 0 and place.ends() == [("slow", "done")]


def test_being_stopped_does_not_count_if_kill_follows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an impatient service manager: what is at work does not unwind in time."""
    place.add("slow")

    def stubborn(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(processing, "read_pair", stubborn)
        for _ in range(4):
            assert in_child(place.run) == signal.SIGKILL
    assert place.run() == 0 and place.ends() == [("slow", "done")]


def test_a_scene_that_advances_is_never_set_aside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each band of rows, and done in the end; killed before any, it is set aside."""
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(400, 60), strict=True):
        write_raster(place.folder / f"s_{date}.tif", pixels)
    real = scene_journal.Journal.add

    def add(*arguments: Any) -> None:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(scene_journal.Journal, "add", add)
        kills = 0
        while kills < 50 and in_child(place.run) == signal.SIGKILL:
            kills += 1
    assert kills > 4 and place.ends() == [("s", "done")]
    place.out = place.root / "other"
    with monkeypatch.context() as patched:
        patched.setattr(scene_journal.Journal, "add", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert [in_child(place.run) for _ in range(4)] == [*3 * [signal.SIGKILL], 0]
    assert place.ends() == [("s", "failed")]


# --- engines


class Failing(FakeEngine):
    """Raises for images of one seed, ``times`` times, and for golden tiles where it is ``broken``."""

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

    monkeypatch.setattr(service, "open_detector", fake_detector(open_engine))
    return state


def test_an_engine_that_fails_once_is_opened_again(place: Place, failing: dict[str, Any]) -> None:
    place.add("a", 7)
    place.add("b", 1)
    assert place.run() == 0
    assert sorted(place.ends()) == [("a", "done"), ("b", "done")] and failing["opened"] == 2


def test_a_pair_that_an_engine_fails_on_is_failed(place: Place, failing: dict[str, Any]) -> None:
    failing["times"] = 1000
    place.add("a", 7)
    place.add("b", 1)
    assert place.run() == 0
    assert sorted(place.ends()) == [("a", "failed"), ("b", "done")]
    assert "the engine failed on it twice" in place.messages()["a"]


def test_an_engine_that_stays_broken_ends_the_service_and_fails_nothing(
    place: Place, failing: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.update(times=1000, broken=True)
    place.add("a", 7)
    for seed, name in enumerate("bcd"):
        place.add(name, seed)
    assert place.run() == 5
    assert not place.messages()
    assert "golden tiles" in capsys.readouterr().err
    failing["times"] = 0
    assert place.run() == 0
    assert {name for name, end in place.ends() if end == "done"} == set("abcd") and not place.messages()


# --- disks


def refused() -> StorageError:
    error = StorageError("out cannot be written: No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def rounds(monkeypatch: pytest.MonkeyPatch, place: Place, count: int) -> None:
    """Watch for so many rounds."""
    left = count

    def sleep(_seconds: float) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(service.time, "sleep", sleep)
        assert exit_code(cli.main, "misgnet-run", *place.words("--poll", "0.01")) == 0


def test_a_disk_too_full_for_a_large_pair_takes_small_ones(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("large", size=(200, 200))
    time.sleep(0.02)
    for name in ("small", "tiny"):
        place.add(name, 1)
    real = processing.predict_images

    def predict(opened: Any, before: Any, after: Any, result: Path, *, threshold: float) -> Any:
        if result.name.startswith("large"):
            raise refused()
        return real(opened, before, after, result, threshold=threshold)

    with monkeypatch.context() as patched:
        patched.setattr(processing, "predict_images", predict)
        rounds(patched, place, 4)
        assert sorted(place.ends()) == [("small", "done"), ("tiny", "done")]
    rounds(monkeypatch, place, 2)
    assert place.ends()[-1] == ("large", "done") and not place.messages()


def test_what_is_kept_of_a_large_pair_makes_room_for_a_small_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("large", size=(200, 200))
    time.sleep(0.02)
    place.add("small", 1)
    real = processing.predict_images

    def predict(opened: Any, before: Any, after: Any, result: Path, *, threshold: float) -> Any:
        if result.name.startswith("large"):
            result.with_name("rows").write_bytes(b"much")
        if list(place.out.rglob("rows")):
            raise refused()
        return real(opened, before, after, result, threshold=threshold)

    with monkeypatch.context() as patched:
        patched.setattr(processing, "predict_images", predict)
        rounds(patched, place, 3)
    assert place.ends() == [("small", "done")]


def test_a_disk_that_refuses_everything_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        place.add(f"p{number}", number)
    calls: list[Path] = []

    def predict(_opened: Any, _before: Any, _after: Any, result: Path, **_threshold: float) -> Any:
        calls.append(result)
        raise refused()

    with monkeypatch.context() as patched:
        patched.setattr(processing, "predict_images", predict)
        rounds(patched, place, 4)
    assert not place.ends() and 3 <= len(calls) <= 12
    assert capsys.readouterr().err.count("No space left") <= 6
    assert place.run() == 0 and len(place.ends()) == 6


# --- the journal


OLD = """{"type":"started","time":"2026-01-01T00:00:00Z","format":1,"bundle":"BUNDLE","engine":"cpu","settings":{}}
{"type":"begun","time":"2026-01-01T00:00:01Z","pair":"a","before":BEFORE,"after":AFTER}
{"type":"complete","time":"2026-01-01T00:00:02Z","pair":"a","outputs":["a_change.png"],"figures":{}}
{"type":"done","time":"2026-01-01T00:00:03Z","pair":"a"}
{"type":"begun","time":"2026-01-01T00:00:04Z","pair":"b","before":BEFORE,"after":AFTER}
{"type":"complete","time":"2026-01-01T00:00:05Z","pair":"b","outputs":["b_change.png"],"figures":{}}
"""


def test_a_journal_of_the_first_format_is_resumed(place: Place) -> None:
    """One pair is done, and the results of another one are whole; a third one is new."""
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.storage.files import file_sha256

    place.add("a")
    states = []
    for date in ("before", "after"):
        path = place.folder / f"a_{date}.png"
        found = path.stat()
        state = {"name": path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": file_sha256(path)}
        states.append(json.dumps(state))
    (place.out / ".working").mkdir(parents=True)
    (place.out / "a_change.png").write_bytes(b"the old mask")
    (place.out / ".working" / "b_change.png").write_bytes(b"whole")
    lines = OLD.replace("BUNDLE", read_bundle(place.bundle).digest())
    (place.out / "watch.jsonl").write_text(lines.replace("BEFORE", states[0]).replace("AFTER", states[1]))
    place.add("c", 1)
    assert place.run() == 0
    assert place.ends() == [("a", "done"), ("b", "done"), ("c", "done")]
    assert (place.out / "a_change.png").read_bytes() == b"the old mask"
    assert (place.out / "b_change.png").read_bytes() == b"whole" and not (place.out / ".working").exists()
    assert [e["format"] for e in place.journal() if e["type"] == "started"] == [1, 2]


def test_every_start_with_the_same_options_is_the_same(place: Place) -> None:
    """Python orders sets by other numbers in every process; a scene that was begun would never be resumed."""
    for seed in "1234":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-m", "misgnet_runtime.cli", *place.words("--once")]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert [entry["type"] for entry in place.journal()] == ["started"]


@pytest.mark.parametrize(
    ("option", "number"), [("--max-seconds", "inf"), ("--max-seconds", "1e10"), ("--poll", "inf"), ("--settle", "inf")]
)
def test_times_that_the_system_cannot_wait_for_are_refused(place: Place, option: str, number: str) -> None:
    place.add("a")
    assert place.run(option, number) == 2 and not place.out.exists()


def test_weeks_for_each_pair_fail_none(place: Place) -> None:
    """The system itself waits for some weeks at most."""
    place.add("a")
    assert place.run("--max-seconds", "1e8") == 0 and place.ends() == [("a", "done")]


def test_what_a_disk_refuses_takes_no_time_of_a_pair(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's disk refuses for longer than --max-seconds, between the reading of a pair and its processing."""
    from misgnet_runtime.jobs.watch.isolated import IsolatedProcessor
    from misgnet_runtime.jobs.watch.pairing import FilePair

    place.add("a")
    before, after = (File.of(place.folder / f"a_{date}.png") for date in ("before", "after"))
    assert before is not None and after is not None
    pair, left = FilePair("a", "image", before, after, None), []
    processor = object.__new__(IsolatedProcessor)
    processor.__dict__.update(_child=object(), _seconds=0.5, _pair="", _left=0.0, _end=0.0)
    monkeypatch.setattr(processor, "_ask", lambda *_: left.append(processor._end - time.monotonic()))
    processor.digests(pair, place.out)
    time.sleep(0.6)
    processor.process(pair, place.out)
    assert len(left) == 2 and left[1] > 0.3


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watch_journal.Journal, "LINES", 10, raising=False)
    yield


@pytest.mark.usefixtures("short")
def test_the_journal_does_not_grow_for_ever(place: Place) -> None:
    """Pairs come and go, in and out: what is there still is known, and nothing is done twice."""
    place.add("stays")
    for number in range(12):
        place.add("passing", number)
        place.add(f"p{number}", number)
        assert place.run("--reprocess") == 0
        if number % 2 == 0:
            for path in (*place.folder.glob(f"p{number}_*"), *place.out.glob(f"p{number}_*")):
                path.unlink()
    lines = place.journal()
    assert len(lines) < 60 and lines[0]["type"] == "started"
    known = {e["pair"] for e in lines if "pair" in e}
    assert {"stays", "passing", "p1", "p11"} <= known and "p0" not in known
    before = {path.name: path.stat().st_mtime_ns for path in place.out.glob("*.png")}
    assert place.run() == 0
    assert {path.name: path.stat().st_mtime_ns for path in place.out.glob("*.png")} == before


@pytest.mark.usefixtures("short")
def test_outputs_that_are_left_are_known_after_compaction(place: Place) -> None:
    """Their inputs are gone: where the same pair comes again, its output is no other's."""
    for number in range(8):
        place.add(f"p{number}", number)
    assert place.run() == 0
    for path in place.folder.iterdir():
        path.unlink()
    assert place.run() == 0 and len(place.journal()) < 12
    place.add("p0", 0)
    place.add("p1", 5)
    assert place.run("--reprocess") == 0
    assert place.times_done("p0") == 1 and place.times_done("p1") == 2 and not place.messages()


def test_equal_bytes_are_read_once_more_and_never_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a")
    assert place.run() == 0
    os.utime(place.folder / "a_before.png")
    read: list[str] = []
    real = processing.file_digest
    monkeypatch.setattr(processing, "file_digest", lambda file: read.append(file.path.name) or real(file))
    for _ in range(3):
        assert place.run() == 0
    assert sorted(read) == ["a_after.png", "a_before.png"] and place.ends() == [("a", "done")]


# --- pairs in a process of their own


def slow_and_crashing(connection: Connection, setup: Any) -> None:
    """As the process of pairs, but that some take long, and some end it."""
    from misgnet_runtime.jobs.watch import isolated

    real = processing.read_pair

    def read_pair(before: Path, after: Path) -> Any:
        if before.name.startswith("slow"):
            time.sleep(60)
        if before.name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if before.name.startswith("bug"):
            raise LookupError("what")
        return real(before, after)

    processing.read_pair = read_pair
    isolated._serve(connection, setup)


def test_a_pair_that_takes_too_long_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from misgnet_runtime import children
    from misgnet_runtime.jobs.watch import isolated

    for number, name in enumerate(("slow", "crash", "bug", "good", "n" * 236)):
        place.add(name, number)
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    for date, pixels in zip(("before", "after"), scene(90, 80), strict=True):
        write_raster(place.folder / f"s_{date}.tif", pixels)
    started: list[children.Child] = []

    def start(_target: object, *arguments: object) -> children.Child:
        started.append(children.start(slow_and_crashing, *arguments))
        return started[-1]

    monkeypatch.setattr(isolated, "start", start)
    for _ in range(3):
        assert place.run("--max-seconds", 3) == 0
    assert sorted(place.ends()) == sorted(
        [("bug", "failed"), ("crash", "failed"), ("good", "done"), ("n" * 236, "failed"), ("s", "done"),
         ("slow", "failed")]
    )  # fmt: skip
    assert "not finished within 3 s" in place.messages()["slow"] and "--max-seconds" in place.messages()["slow"]
    assert place.messages()["bug"] == "LookupError: what"
    assert "SIGSEGV" in place.messages()["crash"] and "3 attempts" in place.messages()["crash"]
    assert all(child.process.poll() is not None for child in started)


def test_the_command_runs_pairs_in_a_process(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("a")
    assert place.run("--max-seconds", 60) == 0
    assert place.ends() == [("a", "done")] and "1 pair done, 0 pairs failed, 0 pending" in capsys.readouterr().out
    assert exit_code(cli.main, "misgnet-run", *place.words("--max-seconds", 0)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_of_pairs_ends_with_the_watcher(place: Place, number: int) -> None:
    command = [sys.executable, "-m", "misgnet_runtime.cli", *place.words("--max-seconds", 60)]
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

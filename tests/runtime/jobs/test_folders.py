"""Tests masks of two folders of images: computed in batches, written atomically, resumed after interruptions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from misgnet_runtime.callables import Progress
from misgnet_runtime.cli import main as cli
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import GateFailed, InputError, StorageError, UsageError
from misgnet_runtime.inference.selection import DetectorOpener
from misgnet_runtime.jobs import folder as folders
from misgnet_runtime.jobs.folder import FolderReport, predict_folders
from misgnet_runtime.jobs.scene.options import SceneOptions
from support.bundles import INTERFACE, FakeEngine, edit, expected, fake_detector, images, make_bundle, write_image
from support.commands import exit_code
from support.ends import die_at, in_child

SIZES = {"a": (64, 64), "b": (64, 64), "c": (100, 70), "d": (10, 30), "e": (64, 64), "f": (64, 64)}


class Place:
    """A bundle and two folders of images of many formats; the engine is a fake."""

    def __init__(self, root: Path, batches: list[int]) -> None:
        self.root = root
        self.opener = fake_detector(lambda: FakeEngine(INTERFACE, batches=batches))
        self.bundle = make_bundle(root / "bundle")
        self.before, self.after, self.out = root / "A", root / "B", root / "out"
        for seed, (name, size) in enumerate(SIZES.items()):
            suffix = ".tif" if name == "b" else ".png"
            for folder, pixels in zip((self.before, self.after), images(*size, seed=seed), strict=True):
                write_image(folder / f"{name}{suffix}", pixels)

    def run(
        self, batch: int | None = None, progress: Progress | None = None, opener: DetectorOpener | None = None,
        **asked: Any,
    ) -> FolderReport:  # fmt: skip
        options = SceneOptions(execution=ExecutionOptions(batch=batch), **asked)
        return predict_folders(
            self.bundle, self.before, self.after, self.out, options, progress=progress, opener=opener or self.opener
        )

    def masks(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir() if path.is_file()}


@pytest.fixture
def batches() -> list[int]:
    """Returns the batch sizes of all calls of the place's engines."""
    return []


@pytest.fixture
def place(tmp_path: Path, batches: list[int]) -> Place:
    return Place(tmp_path, batches)


def expected_mask(name: str) -> np.ndarray:
    return expected(*images(*SIZES[name], seed=list(SIZES).index(name))) > 0.5


def test_every_pair_gets_a_mask_and_batches_are_full(place: Place, batches: list[int]) -> None:
    progressed: list[tuple[int, int]] = []
    report = place.run(batch=4, progress=lambda done, total: progressed.append((done, total)))
    assert set(place.masks()) == {f"{name}.png" for name in SIZES}
    assert sorted(path.name for path in place.out.iterdir()) == sorted(place.masks())  # no hidden files are left
    for name in SIZES:
        with Image.open(place.out / f"{name}.png") as mask:
            assert (mask.mode, mask.format) == ("L", "PNG")
            np.testing.assert_array_equal(np.asarray(mask), np.where(expected_mask(name), 255, 0))
    assert batches == [4, 4, 1]  # 1 + 1 + 4 + 1 + 1 + 1 tiles
    assert (report.pairs, report.resumed, progressed[-1]) == (6, 0, (6, 6))
    shares = [expected_mask(name) for name in SIZES]
    assert report.changed_share == sum(s.sum() for s in shares) / sum(s.size for s in shares)
    assert report.pairs_per_second is not None and report.pairs_per_second > 0


@pytest.mark.parametrize(("asked", "wanted"), [(1, [1] * 9), (3, [3] * 3), (100, [4, 4, 1])])
def test_the_requested_batch_is_used_within_the_engines_limit(
    place: Place, batches: list[int], asked: int, wanted: list[int]
) -> None:
    place.run(batch=asked)
    assert batches == wanted


def test_existing_masks_are_kept_without_force(place: Place, batches: list[int]) -> None:
    place.out.mkdir()
    (place.out / "e.png").write_bytes(b"old")
    (place.out / "other.txt").write_text("not a mask")
    with pytest.raises(UsageError, match=r"e\.png exists; .*--force"):
        place.run()
    assert place.masks() == {"e.png": b"old", "other.txt": b"not a mask"} and batches == []
    assert list(place.out.glob(".*")) == []
    place.run(force=True)
    assert place.masks()["e.png"] != b"old" and place.masks()["other.txt"] == b"not a mask"


# --- refused inputs


def lose(path: Path) -> None:
    path.unlink()


REFUSED: dict[str, tuple[Callable[[Place], object], type[Exception], str]] = {
    "no partner": (lambda p: lose(p.after / "d.png"), InputError, r"A/d\.png has no partner in .*B"),
    "no other partner": (lambda p: lose(p.before / "d.png"), InputError, r"B/d\.png has no partner in .*A"),
    "one name twice": (lambda p: write_image(p.after / "a.tif", images(8, 8)[0]), InputError, "the same name"),
    "no folder": (lambda p: p.after.rename(p.root / "C"), InputError, "B does not exist"),
    "no bundle": (lambda p: lose(p.bundle / "manifest.json"), InputError, "is not a bundle"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_inputs_are_refused_before_any_work(place: Place, batches: list[int], case: str) -> None:
    change, kind, words = REFUSED[case]
    change(place)
    with pytest.raises(kind, match=words):
        place.run()
    assert not place.out.exists() and batches == []


def test_masks_never_replace_input_images(place: Place) -> None:
    place.out = place.before
    with pytest.raises(UsageError, match="is one of the input folders"):
        place.run(force=True)


def test_a_batch_size_below_one_is_refused(place: Place) -> None:
    with pytest.raises(UsageError, match="--batch is 0"):
        place.run(batch=0)


# --- interruptions


def test_a_damaged_image_is_named_and_the_run_resumes_after_its_repair(
    place: Place, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "run_pipeline", in_turn)
    whole = (place.after / "e.png").read_bytes()
    (place.after / "e.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"B/e\.png is damaged or truncated"):
        place.run(batch=1)
    assert set(place.masks()) == {"a.png", "b.png", "c.png", "d.png"}
    (place.after / "e.png").write_bytes(whole)
    batches.clear()
    report = place.run(batch=1)
    assert (report.pairs, report.resumed, len(batches)) == (6, 4, 2)
    assert set(place.masks()) == {f"{name}.png" for name in SIZES} and not (place.out / ".progress").exists()


def run_and_interrupt(place: Place, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Interrupts a run after the masks of a, b and c."""

    class InterruptedEngine(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            if len(self.batches) == 6:
                raise error or GateFailed("the end")
            return super()._infer(context, arrays, batch)

    with monkeypatch.context() as patched:
        patched.setattr(folders, "run_pipeline", in_turn)
        with pytest.raises(type(error or GateFailed(""))) as caught:
            place.run(batch=1, opener=fake_detector(lambda: InterruptedEngine(INTERFACE)))
    assert error is None or "rerun the same command to resume" in str(caught.value)
    assert set(place.masks()) == {"a.png", "b.png", "c.png"}


def in_turn(read: Any, work: Any, write: Any, workers: int) -> None:
    """Runs the pipeline without threads: each output is on disk before the next batch is inferred."""
    for item in read():
        write(work(item))


def test_an_interruption_keeps_finished_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_and_interrupt(place, monkeypatch, KeyboardInterrupt())
    assert place.run().resumed == 3


def test_changed_pairs_are_processed_again(place: Place, monkeypatch: pytest.MonkeyPatch, batches: list[int]) -> None:
    run_and_interrupt(place, monkeypatch)
    _, after = images(64, 64, seed=9)
    write_image(place.after / "a.png", after)
    (place.out / "b.png").unlink()
    report = place.run(batch=4)
    assert (report.resumed, len(batches)) == (1, 2)  # of c; 1 + 1 + 1 + 1 + 1 tiles
    with Image.open(place.out / "a.png") as mask:
        wanted = expected(images(64, 64, seed=0)[0], after) > 0.5
        np.testing.assert_array_equal(np.asarray(mask) == 255, wanted)


def test_a_partly_written_mask_is_never_renamed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pair's older mask was the last one recorded as complete."""
    run_and_interrupt(place, monkeypatch)
    whole = place.masks()
    write_image(place.after / "c.png", images(*SIZES["c"], seed=9)[1])

    def half(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    def nothing(*_: object) -> None:
        raise KeyboardInterrupt

    for function, instead in (("folder_record.write_mask", half), ("folder.run_pipeline", nothing)):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(f"misgnet_runtime.jobs.{function}", instead)
            place.run(batch=1)
        assert place.masks() == whole
    assert place.run().resumed == 2


def test_another_bundle_is_refused_without_force(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_and_interrupt(place, monkeypatch)
    edit(place.bundle, lambda m: m.update(threshold=0.4))
    with pytest.raises(UsageError, match=r"was started with the bundle .* and now it is .*--force"):
        place.run()
    assert place.run(force=True).resumed == 0


def test_masks_written_by_others_meanwhile_are_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_and_interrupt(place, monkeypatch)
    (place.out / "f.png").write_bytes(b"another's")
    with pytest.raises(UsageError, match=r"f\.png exists"):
        place.run()
    assert place.masks()["f.png"] == b"another's"


def test_nan_from_the_engine_is_an_error(place: Place) -> None:
    with pytest.raises(GateFailed, match="NaN or Inf"):
        place.run(opener=fake_detector(lambda: FakeEngine(INTERFACE, nan=True)))
    assert place.masks() == {}


def test_resume_after_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.fsync, 7

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, os.strerror(28))
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        patched.setattr(folders, "run_pipeline", in_turn)
        with pytest.raises(StorageError, match="then rerun the command"):
            place.run(batch=1)
    assert place.run().resumed == 2  # the second mask was complete, but not renamed
    assert set(place.masks()) == {f"{name}.png" for name in SIZES}


def killed_run(place: Place, moment: int, force: bool) -> None:
    die_at(moment)
    with suppress(UsageError):  # the run had finished before
        place.run(batch=2, force=force)


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_resume_after_kill_at_any_system_call_writes_identical_outputs(
    place: Place, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Killed twice: masks recorded as complete but not renamed must be renamed, also over an older mask."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the system keeps the data that a killed process wrote
    for folder in (place.before, place.after):
        for name in ("b.tif", "e.png", "f.png"):
            (folder / name).unlink()
    place.run(batch=2)
    whole = place.masks()
    for number in range(100):
        for name in whole:
            (place.out / name).write_bytes(b"old")
            if not force:
                (place.out / name).unlink()
        killed = [in_child(partial(killed_run, place, moment, force)) for moment in (number // 2, number)]
        for name, content in place.masks().items():
            assert content == whole[name] or (force and content == b"old")
        if not any(killed):
            break
        with suppress(UsageError):  # the second run had finished
            place.run(batch=2, force=force)
        assert place.masks() == whole and not (place.out / ".progress").exists()
    assert number > 20


# --- the command


command = partial(exit_code, cli.main, "misgnet-run")


def test_the_command_reports_pairs_and_refuses_options_for_geotiffs(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("predict", place.bundle, place.before, place.after, "-o", place.out)
    assert command(*call, "--align") == 2
    assert "options for GeoTIFFs" in capsys.readouterr().err
    assert command(*call, "--batch", 2) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.startswith(f"{place.out}: 6 pairs, ") and "pairs/s" in captured.out
    assert command(*call, "--force", "--log", "json") == 0
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (found["pairs"], found["resumed"], type(found["pairs_per_second"])) == (6, 0, float)
    assert command("predict", place.bundle, place.before, place.after / "a.png", "-o", place.out) == 4


def skipping(place: Place, caplog: pytest.LogCaptureFixture, **asked: Any) -> tuple[FolderReport, list[str]]:
    """Runs with --skip-existing; also returns the warnings."""
    caplog.clear()
    report = predict_folders(
        place.bundle, place.before, place.after, place.out, SceneOptions(**asked), skip_existing=True,
        opener=place.opener,
    )  # fmt: skip
    return report, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_pairs_added_later_are_done_without_touching_finished_ones(
    place: Place, caplog: pytest.LogCaptureFixture, batches: list[int]
) -> None:
    place.run()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.out.iterdir()}
    for folder, pixels in zip((place.before, place.after), images(40, 90, seed=11), strict=True):
        write_image(folder / "new.png", pixels)
    batches.clear()
    report, warnings = skipping(place, caplog)
    assert (report.pairs, report.skipped, warnings) == (1, len(SIZES), [])
    assert sum(batches) == 2  # the tiles of the new pair
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    with Image.open(place.out / "new.png") as mask:
        assert (np.asarray(mask) == 255 * (expected(*images(40, 90, seed=11)) > 0.5)).all()
    assert f"1 pair, {len(SIZES)} existing skipped, " in report.line(place.out)


def test_skipped_outputs_of_other_runs_are_named(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.run(threshold=0.25)
    write_image(place.after / "a.png", images(*SIZES["a"], seed=77)[1])
    Image.new("L", (64, 64)).save(place.out / "e.png")
    (place.out / "f.png").write_bytes(b"not a picture")
    _, warnings = skipping(place, caplog, threshold=0.25)
    assert [text.split("; remove")[0] for text in warnings] == [
        "a.png is skipped, but AFTER changed since it was written",
        "e.png is skipped, but it does not state which run wrote it",
        f"f.png is skipped, but it cannot be read: image {place.out / 'f.png'} cannot be read: cannot identify image "
        f"file {str(place.out / 'f.png')!r}",
    ]
    _, warnings = skipping(place, caplog)
    assert warnings[1].startswith("b.png is skipped, but it was written with --threshold 0.25, and now it is not set;")
    edit(place.bundle, lambda m: m.update(threshold=0.4))
    _, warnings = skipping(place, caplog, threshold=0.25)
    assert "b.png is skipped, but it was written with the bundle " in warnings[1]


def test_existing_outputs_cannot_be_skipped_and_replaced(place: Place) -> None:
    place.run()
    with pytest.raises(UsageError, match="--skip-existing keeps existing outputs, and --force replaces them"):
        predict_folders(
            place.bundle, place.before, place.after, place.out, SceneOptions(force=True), skip_existing=True,
            opener=place.opener,
        )  # fmt: skip


def test_an_interrupted_run_that_skips_is_resumed(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_and_interrupt(place, monkeypatch)
    (place.out / "e.png").write_bytes(b"another's")
    report, warnings = skipping(place, caplog)
    assert (report.pairs, report.skipped, report.resumed) == (5, 1, 3)
    assert len(warnings) == 1 and (place.out / "e.png").read_bytes() == b"another's"
    assert not (place.out / ".progress").exists()

"""Tests the preparation of LEVIR-CD and SYSU-CD: exact pixels, resuming, changed sources and error messages."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from misgnet.cli.prepare import prepare as command
from misgnet.datasets import PrepareOptions, PrepareReport, prepare, writing
from misgnet.datasets.split import MOST_TILES, assign_splits, counts, grid
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.log import use
from support.paths import ROOT

SMALL = PrepareOptions(tile=32)
FORCE = PrepareOptions(tile=32, force=True)
SIZES = {"train": {"one": (96, 70), "two": (32, 32)}, "val": {"three": (64, 64)}, "test": {"four": (20, 45)}}


def random_pair(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    dates = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    return dates[0], dates[1], (rng.random((height, width)) < 0.3).astype(np.uint8) * np.uint8(255)


def write_pair(folder: Path, stem: str, size: tuple[int, int], seed: int, parts: tuple[str, ...]) -> None:
    for part, pixels in zip(parts, random_pair(*size, seed), strict=True):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / part / f"{stem}.png", compress_level=1)


def make_source(root: Path, parts: tuple[str, ...] = ("A", "B", "label")) -> Path:
    seed = 0
    for split, images in SIZES.items():
        for stem, size in images.items():
            write_pair(root / split, stem, size, seed, parts)
            seed += 1
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the files of a run without interruptions."""
    folder = tmp_path_factory.mktemp("whole")
    prepare("levir", make_source(folder / "source"), folder / "out", SMALL)
    return tree(folder / "out")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def written(report: PrepareReport) -> int:
    return sum(split.written for split in report.splits)


def refused(kind: type[MisgnetError], source: Path, output: Path, *words: str, **options: object) -> str:
    """Checks that the call raises ``kind`` with ``words`` in its message, and returns the message."""
    with pytest.raises(kind) as caught:
        prepare("levir", source, output, PrepareOptions(**{"tile": 32, **options}))
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# --- output


@pytest.mark.parametrize(("dataset", "parts"), [("levir", ("A", "B", "label")), ("sysu", ("time1", "time2", "label"))])
def test_tiles_hold_the_pixels_of_the_images(tmp_path: Path, dataset: str, parts: tuple[str, ...]) -> None:
    report = prepare(dataset, make_source(tmp_path / "source", parts), tmp_path / "out", SMALL)
    images = random_pair(96, 70, 0)
    corners = {(row, column) for row in (0, 32, 64) for column in (0, 32, 38)}  # the last column is shifted inward
    for part, image in zip(("A", "B", "label"), images, strict=True):
        folder = tmp_path / "out" / "train" / part
        names = {f"one_{row:05d}_{column:05d}.png" for row, column in corners} | {"two.png"}
        assert {path.name for path in folder.iterdir()} == names
        for row, column in corners:
            tile = pixels(folder / f"one_{row:05d}_{column:05d}.png")
            assert tile.dtype == np.uint8
            assert np.array_equal(tile, image[row : row + 32, column : column + 32])
    assert np.array_equal(pixels(tmp_path / "out/train/B/two.png"), random_pair(32, 32, 1)[1])
    small = random_pair(20, 45, 3)
    padded = np.pad(small[0], ((0, 12), (0, 0), (0, 0)), mode="symmetric")
    assert np.array_equal(pixels(tmp_path / "out/test/A/four_00000_00013.png"), padded[:, 13:45])
    padded = np.pad(small[2], ((0, 12), (0, 0)), mode="symmetric")
    assert np.array_equal(pixels(tmp_path / "out/test/label/four_00000_00013.png"), padded[:, 13:45])
    assert [(s.found, s.tiles, s.written, s.kept) for s in report.splits] == [
        (2, 10, 10, 0),
        (1, 4, 4, 0),
        (1, 2, 2, 0),
    ]
    labels = [pixels(path) for path in (tmp_path / "out/val/label").iterdir()]
    assert report.splits[1].changed == pytest.approx(np.mean(np.stack(labels) == 255))


def test_image_that_fits_into_one_tile_keeps_its_name(source: Path, tmp_path: Path) -> None:
    prepare("levir", source, tmp_path / "out", PrepareOptions(tile=64))
    assert [path.name for path in (tmp_path / "out/test/A").iterdir()] == ["four.png"]
    assert pixels(tmp_path / "out/test/A/four.png").shape == (64, 64, 3)


def test_labels_of_0_and_1_become_0_and_255(source: Path, tmp_path: Path) -> None:
    label = random_pair(64, 64, 2)[2]
    Image.fromarray(label // 255).save(source / "val/label/three.png")
    prepare("levir", source, tmp_path / "out", SMALL)
    tile = pixels(tmp_path / "out/val/label/three_00032_00032.png")
    assert np.array_equal(tile, label[32:, 32:])


def test_other_files_are_skipped_and_reported(source: Path, tmp_path: Path) -> None:
    for name in ("train/A/._one.png", "train/label/Thumbs.db", "readme.txt", "val/list.txt"):
        (source / name).write_text("no image")
    report = prepare("levir", source, tmp_path / "out", SMALL)
    found = {str(item.path.relative_to(source)): item.reason for item in report.skipped}
    assert found.keys() == {"train/A/._one.png", "train/label/Thumbs.db", "readme.txt", "val/list.txt"}
    assert "hidden" in found["train/A/._one.png"] and "not an image" in found["train/label/Thumbs.db"]


def test_real_images_give_the_expected_tiles_and_counts(reference: Path, tmp_path: Path) -> None:
    source = reference / "data" / "LEVIR-CD"
    if not source.is_dir():
        pytest.skip("the reference folder has no LEVIR-CD")
    for part in ("A", "B", "label"):  # only a few of each split, because they are large
        for split in ("train", "val", "test"):
            (tmp_path / "some" / split / part).mkdir(parents=True)
            for path in sorted((source / split / part).iterdir())[:2]:
                (tmp_path / "some" / split / part / path.name).symlink_to(path)
    report = prepare("levir", tmp_path / "some", tmp_path / "out")
    assert [(s.found, s.official, s.tiles) for s in report.splits] == [(2, 445, 32), (2, 64, 32), (2, 128, 32)]
    path = next((source / "test" / "A").glob(f"{sorted(p.stem for p in (source / 'test/A').iterdir())[0]}.*"))
    whole = pixels(path)
    for row, column in ((0, 0), (256, 768), (768, 512)):
        tile = pixels(tmp_path / f"out/test/A/{path.stem}_{row:05d}_{column:05d}.png")
        assert np.array_equal(tile, whole[row : row + 256, column : column + 256])
    assert all(0 < split.changed < 0.5 for split in report.splits)


# --- repeated and interrupted runs


def test_second_run_changes_nothing(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    before = stamps(out)
    report = prepare("levir", source, out, SMALL)
    assert stamps(out) == before
    assert tree(out) == expected
    assert [(s.tiles, s.written, s.kept) for s in report.splits] == [(10, 0, 10), (4, 0, 4), (2, 0, 2)]


def test_record_lists_settings_units_and_digests(source: Path, tmp_path: Path) -> None:
    prepare("levir", source, tmp_path / "out", SMALL)
    header, *units = map(json.loads, (tmp_path / "out/prepare.jsonl").read_text().splitlines())
    assert (header["dataset"], header["tile"], header["splits"]) == ("levir", 32, {"train": 2, "val": 1, "test": 1})
    assert [unit["unit"] for unit in units] == ["train/one", "train/two", "val/three", "test/four"]
    digests = [
        hashlib.sha256((source / "val" / part / "three.png").read_bytes()).hexdigest() for part in ("A", "B", "label")
    ]
    assert units[2]["sources"] == digests


KILLED = """
import os, signal, sys
from pathlib import Path
from misgnet.datasets import PrepareOptions, prepare, writing
from misgnet_runtime.storage import jsonl

event, after = sys.argv[3], int(sys.argv[4])
calls = 0

def die_after(function, half=None):
    def wrapped(*arguments, **names):
        global calls
        calls += 1
        if calls > after:
            if half is not None:
                half(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **names)
    return wrapped

def half_line(handle, data):
    handle.write(data[: len(data) // 2])

if event == "fsync":
    os.fsync = die_after(os.fsync, lambda handle: os.ftruncate(handle.fileno(), 50))
if event == "rename":
    Path.replace = die_after(Path.replace)
if event == "record":
    jsonl.write_all = die_after(jsonl.write_all, half_line)
prepare("levir", Path(sys.argv[1]), Path(sys.argv[2]), PrepareOptions(tile=32))
"""


@pytest.mark.parametrize(
    ("event", "after"), [("fsync", 0), ("fsync", 29), ("rename", 0), ("rename", 11), ("record", 0), ("record", 3)]
)
def test_rerun_after_kill_completes_the_output(
    source: Path, tmp_path: Path, expected: dict[str, bytes], event: str, after: int
) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "runtime")))}
    command = [sys.executable, "-c", KILLED, source, out, event, str(after)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    placed = {name: data for name, data in tree(out).items() if name.endswith(".png") and not name.startswith(".")}
    assert placed.items() <= expected.items()  # files that have their final name are complete
    assert tree(out) != expected
    prepare("levir", source, out, SMALL)
    assert tree(out) == expected


@pytest.mark.parametrize("after", [0, 1, 30, 47])
@pytest.mark.parametrize("kind", ["full disk", "Ctrl-C"])
def test_rerun_after_full_disk_or_interrupt_completes_the_output(
    source: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    after: int,
) -> None:
    real, calls = os.fsync, []

    def fail(handle: int) -> None:
        calls.append(handle)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device") if kind == "full disk" else KeyboardInterrupt
        real(handle)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(writing.os, "fsync", fail)
        with pytest.raises(InputError if kind == "full disk" else KeyboardInterrupt) as caught:
            prepare("levir", source, out, SMALL)
    if kind == "full disk":
        assert "No space left" in str(caught.value)
    assert not (out / writing.STAGING).exists()
    prepare("levir", source, out, SMALL)
    assert tree(out) == expected


def test_finished_images_are_not_written_again(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    bad = source / "val/B/three.png"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    refused(InputError, source, out, str(bad), "damaged or truncated")
    before = stamps(out / "train")
    assert len(before) == 34
    bad.write_bytes(content)
    report = prepare("levir", source, out, SMALL)
    assert stamps(out / "train") == before
    assert [s.written for s in report.splits] == [0, 4, 2]
    assert tree(out) == expected


@pytest.mark.parametrize("cut", [1, 40, 250])
def test_incomplete_last_line_of_the_record_is_replaced(
    source: Path, tmp_path: Path, expected: dict[str, bytes], cut: int
) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    record = out / "prepare.jsonl"
    record.write_bytes(record.read_bytes()[:-cut])
    report = prepare("levir", source, out, SMALL)
    assert written(report) == 0  # the tiles exist, only their line is missing
    assert tree(out) == expected


@pytest.mark.parametrize("damage", ["deleted", "truncated", "another picture", "a folder's worth"])
def test_damaged_tiles_are_written_again(source: Path, tmp_path: Path, expected: dict[str, bytes], damage: str) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    tile = out / "train/label/one_00032_00038.png"
    before = stamps(out)
    if damage == "deleted":
        tile.unlink()
    elif damage == "truncated":
        tile.write_bytes(tile.read_bytes()[:50])
    elif damage == "another picture":
        tile.write_bytes((out / "train/label/two.png").read_bytes())
    else:
        for path in (out / "train/label").iterdir():
            path.unlink()
    report = prepare("levir", source, out, SMALL)
    assert written(report) == (10 if damage == "a folder's worth" else 1)
    assert tree(out) == expected
    same = {name for name, stamp in stamps(out).items() if before[name] == stamp}
    assert len([name for name in same if name.endswith(".png")]) == 48 - written(report)


# --- errors


def test_other_settings_require_another_output_folder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    before = stamps(out)
    refused(UsageError, source, out, "tile 32", "64", "--force", tile=64)
    with pytest.raises(UsageError, match="dataset levir, and now it is sysu"):
        prepare("sysu", make_source(tmp_path / "sysu", ("time1", "time2", "label")), out, SMALL)
    assert stamps(out) == before
    prepare("levir", source, out, PrepareOptions(tile=64, force=True))
    assert pixels(out / "val/A/three.png").shape == (64, 64, 3)
    assert not (out / "val/A/three_00000_00000.png").exists()


@pytest.mark.parametrize("part", ["A", "B", "label"])
def test_error_names_a_changed_source(source: Path, tmp_path: Path, part: str, expected: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    path = source / "val" / part / "three.png"
    Image.fromarray(255 - pixels(path)).save(path)
    refused(InputError, source, out, str(path), "--force")
    assert tree(out) == expected
    prepare("levir", source, out, FORCE)
    assert tree(out) != expected


def test_added_or_removed_sources_are_reported(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    write_pair(source / "val", "five", (32, 32), 9, ("A", "B", "label"))
    refused(InputError, source, out, "1 val", "2 val", "--force")
    for part in ("A", "B", "label"):
        (source / "val" / part / "three.png").unlink()
    refused(InputError, source, out, "val/three", "--force")


def test_force_keeps_the_existing_output_until_the_end(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    good = (source / "test/label/four.png").read_bytes()
    (source / "test/label/four.png").write_bytes(b"text")
    refused(InputError, source, out, "four.png", force=True)
    assert tree(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    (source / "test/label/four.png").write_bytes(good)
    (out / "stale").write_text("goes away")
    prepare("levir", source, out, FORCE)
    assert tree(out) == expected


def test_unsuitable_output_folders_are_refused(source: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    refused(UsageError, source, foreign, "not empty", "--force")
    refused(UsageError, source, source, "is inside the source", force=True)
    refused(UsageError, source, source / "tiles", "is inside the source")
    refused(UsageError, source, tmp_path, "contains the source", force=True)
    refused(UsageError, source, foreign / "thesis.txt", "is a file")
    (foreign / "prepare.jsonl").write_text("a diary\n")
    refused(UsageError, source, foreign, "prepare.jsonl, line 1 is damaged (JSON is malformed")
    assert tree(foreign).keys() == {"thesis.txt", "prepare.jsonl"}


def zipped(source: Path) -> tuple[str, ...]:
    (source / "val").rename(source.parent / "gone")
    (source / "val.zip").write_bytes(b"PK")
    return "val/", "{train,val,test}/{A,B,label}", "unpack val.zip first"


def no_part(source: Path) -> tuple[str, ...]:
    (source / "val" / "B").rename(source / "val" / "after")
    return str(source / "val"), "does not contain B/", "after/"


def nested(source: Path) -> tuple[str, ...]:
    inner = source / "LEVIR-CD"
    inner.mkdir()
    for split in ("train", "val", "test"):
        (source / split).rename(inner / split)
    return "does not contain train/, val/, test/", f"did you mean {inner}?"


def no_source(source: Path) -> tuple[str, ...]:
    source.rename(source.parent / "gone")
    return str(source), "No such file"


def alone(part: str) -> Callable[[Path], tuple[str, ...]]:
    def change(source: Path) -> tuple[str, ...]:
        (source / "train" / part / "one.png").unlink()
        return "one.png has no partner", str(source / "train" / part)

    return change


def no_images(source: Path) -> tuple[str, ...]:
    (source / "test/B/four.png").rename(source / "test/B/four.jp2")
    return str(source / "test/B"), "contains no images"


def other_size(part: str) -> Callable[[Path], tuple[str, ...]]:
    def change(source: Path) -> tuple[str, ...]:
        path = source / "train" / part / "two.png"
        Image.fromarray(np.zeros((32, 33, 3) if part != "label" else (32, 33), np.uint8)).save(path)
        return str(path), "33 x 32 px", "32 x 32 px"

    return change


def other_values(source: Path) -> tuple[str, ...]:
    path = source / "train/label/two.png"
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(path)
    return str(path), "the values 9"


def twins(source: Path) -> tuple[str, ...]:
    Image.fromarray(random_pair(32, 32, 1)[0]).save(source / "train/A/two.tif")
    return "two.png", "two.tif", "same name"


def same_tile(source: Path) -> tuple[str, ...]:
    write_pair(source / "train", "one_00032_00038", (32, 32), 9, ("A", "B", "label"))
    return "one.png", "one_00032_00038.png", "same name"


CHANGES = {
    "zipped": zipped, "no part": no_part, "nested": nested, "no source": no_source, "no images": no_images,
    "other values": other_values, "twins": twins, "same tile": same_tile,
    **{f"alone {part}": alone(part) for part in ("A", "B", "label")},
    **{f"other size {part}": other_size(part) for part in ("B", "label")},
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_error_names_the_fault_of_the_source(source: Path, tmp_path: Path, case: str) -> None:
    words = CHANGES[case](source)
    assert "\n" not in refused(InputError, source, tmp_path / "out", *words)


def test_image_whose_name_resembles_a_tile_name_is_accepted(source: Path, tmp_path: Path) -> None:
    write_pair(source / "train", "one_00033_00000", (32, 32), 9, ("A", "B", "label"))
    write_pair(source / "train", "two_00000_00000", (32, 32), 10, ("A", "B", "label"))
    assert prepare("levir", source, tmp_path / "out", SMALL).splits[0].tiles == 12


@pytest.mark.parametrize("tile", [0, 31, 48, 8192])
def test_unsupported_tile_sizes_are_refused(source: Path, tmp_path: Path, tile: int) -> None:
    refused(UsageError, source, tmp_path / "out", f"--tile is {tile}", tile=tile)


def test_raster_option_is_refused_for_sets_of_images(source: Path, tmp_path: Path) -> None:
    refused(UsageError, source, tmp_path / "out", "--after", after=source / "train/A/one.png")


def test_foreign_files_among_the_tiles_are_reported(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("levir", source, out, SMALL)
    (out / "val/A/older_00000_00000.png").write_bytes(b"")
    assert prepare("levir", source, out, SMALL).foreign == (Path("val/A/older_00000_00000.png"),)


# --- the split


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), tile=st.sampled_from([7, 16, 32]), seed=st.integers(0, 9))
def test_every_pixel_of_a_scene_is_in_exactly_one_tile(height: int, width: int, tile: int, seed: int) -> None:
    cells = grid(height, width, tile)
    owner = np.zeros((height, width), int)
    for placed in assign_splits(cells, tile, seed, "keep"):
        area = placed.cell.rows, placed.cell.columns
        assert all(span.start % tile == 0 and 0 < span.length <= tile for span in area)
        owner[area[0].start : area[0].stop, area[1].start : area[1].stop] += 1
        if placed.is_edge:
            assert placed.split == "train" and 2 * area[0].length * area[1].length < tile * tile
    assert (owner == 1).all()


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), tile=st.sampled_from([16, 32]), seed=st.integers(0, 9))
def test_val_and_test_each_get_a_tenth_of_the_drawn_tiles(height: int, width: int, tile: int, seed: int) -> None:
    cells = grid(height, width, tile)
    kept, dropped = (assign_splits(cells, tile, seed, edges) for edges in ("keep", "drop"))
    assert dropped == [placed for placed in kept if not placed.is_edge]
    share = {name: sum(p.split == name for p in dropped) for name in ("train", "val", "test")}
    assert share == counts(len(dropped))
    assert share["val"] == share["test"] == round(len(dropped) * 0.1)
    assert sum(share.values()) == len(dropped)


def test_scene_of_published_size_has_the_published_counts() -> None:
    cells = grid(15354, 32570, 256)
    kept, dropped = (assign_splits(cells, 256, 0, edges) for edges in ("keep", "drop"))
    assert [sum(p.split == name for p in dropped) for name in ("train", "val", "test")] == [6096, 762, 762]
    assert [sum(p.split == name for p in kept) for name in ("train", "val", "test")] == [6156, 762, 762]
    assert sum(p.is_edge for p in kept) == 60
    # the draw must never change: a resumed run would otherwise mix up the splits
    assert hashlib.sha256(" ".join(p.split for p in kept).encode()).hexdigest() == DRAW_OF_SEED_0
    assert [p.split for p in assign_splits(cells, 256, 1, "keep")] != [p.split for p in kept]


DRAW_OF_SEED_0 = "5507d0cd8e30576a81cad62eca726a13d272d91bec2f09c437ae47844f84738e"


def test_grid_of_too_many_tiles_is_refused() -> None:
    assert len(grid(32 * 2048, 32 * 4, 32)) == 8192
    with pytest.raises(InputError, match="--tile"):
        grid(32 * MOST_TILES, 33, 32)
    with pytest.raises(ValueError, match="cannot make a grid"):
        grid(0, 5, 5)


# --- the command


def run(*arguments: object) -> tuple[int, str, MisgnetError | None]:
    use("text")  # as the command does
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = result.exception if isinstance(result.exception, MisgnetError) else None
    assert error is not None or isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.output, error


def test_command_reports_counts_and_skipped_files(source: Path, tmp_path: Path) -> None:
    (source / "readme.txt").write_text("hello")
    code, output, _ = run("levir", source, "-o", tmp_path / "out", "--tile", 32)
    assert code == 0
    rows = [line.split() for line in output.splitlines()]
    assert [row[:5] for row in rows if row and row[0] in ("train", "val", "test") and row[1].isdigit()] == [
        ["train", "2", "445", "10", "0"], ["val", "1", "64", "4", "0"], ["test", "1", "128", "2", "0"],
    ]  # fmt: skip
    assert "not the complete published set" in output and "readme.txt: not part" in output
    code, output, _ = run("levir", source, "-o", tmp_path / "out", "--tile", 32)
    assert code == 0 and "train" in output


def test_command_exits_with_the_code_of_the_error(source: Path, tmp_path: Path) -> None:
    assert run("levir", tmp_path / "nowhere", "-o", tmp_path / "out")[2].exit_code == 4
    assert run("levir", source, "-o", source / "out")[2].exit_code == 2
    assert run("oscd", source, "-o", tmp_path / "out")[0] == 2


@pytest.mark.parametrize("force", [False, True])
def test_interrupted_command_reports_what_is_kept(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    def interrupt(pixels: np.ndarray) -> bytes:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(writing, "encode_png", interrupt)
        code, output, _ = run("levir", source, "-o", out, "--tile", 32, *(["--force"] if force else []))
    assert code == 130
    assert ("nothing was changed" if force else "finished tiles are kept; rerun the command to resume") in output
    run("levir", source, "-o", out, "--tile", 32)
    assert tree(out) == expected


def test_preparing_images_imports_neither_torch_nor_rasterio(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom misgnet.datasets import PrepareOptions, prepare\n"
        "prepare('levir', Path(sys.argv[1]), Path(sys.argv[2]), PrepareOptions(tile=32))\n"
        "assert not {'torch', 'rasterio', 'onnxruntime'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "runtime")))}
    subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], env=environment, check=True)

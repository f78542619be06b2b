"""Tests that no command silently makes a map of a raster that is truncated, unfinished or damaged."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from misgnet_runtime.cli import main as cli
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError
from misgnet_runtime.inference.selection import DetectorOpener
from misgnet_runtime.jobs.scene import predict as predict_module
from misgnet_runtime.jobs.scene.inputs import inspected
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.raster import source
from misgnet_runtime.raster.reader import open_pair
from support.bundles import FLOAT, INTERFACE, SPLIT_FLOAT, FakeEngine, fake_detector, make_bundle
from support.commands import exit_code
from support.ends import in_child
from support.scenes import PLACE, read, scene, write_raster

H, W = 160, 128  # 5 x 4 blocks of 32 pixels
BEFORE, AFTER = scene(H, W)
BLOCK = 32 * 32 * 3  # bytes of an uncompressed block
ANY = "100"


@dataclass
class Place:
    """A bundle, two dates, and an output folder."""

    root: Path
    capsys: pytest.CaptureFixture[str]
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.bundle = make_bundle(self.root / "bundle", engines=[FLOAT])
        self.before = write_raster(self.root / "in/before.tif", BEFORE)
        self.after = write_raster(self.root / "in/after.tif", AFTER)
        self.change = self.root / "out/change.tif"

    def call(self, *words: object) -> tuple[int, str, str]:
        """Runs ``misgnet-run`` and returns exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = exit_code(cli.main, "misgnet-run", *words)
        return code, *self.capsys.readouterr()

    def predict(self, *words: object) -> tuple[int, str, str]:
        return self.call("predict", self.bundle, self.before, self.after, "-o", self.change, *words)

    def outputs(self) -> list[str]:
        """Returns the names of outputs that are not hidden."""
        return sorted(path.name for path in self.change.parent.glob("[!.]*"))


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capsys)


def open_with(monkeypatch: pytest.MonkeyPatch, opener: DetectorOpener) -> None:
    """Makes ``misgnet-run predict`` open its engine with ``opener``."""
    monkeypatch.setattr(predict_module, "predict_scene_files", partial(predict_scene_files, opener=opener))


def cut(path: Path, keep: float) -> None:
    """Keeps a share of a file's bytes; if negative, removes that many bytes from its end."""
    content = path.read_bytes()
    path.write_bytes(content[: int(keep) if keep < 0 else int(keep * len(content))])


def refused(place: Place, *words: str, **how: Any) -> str:
    """Checks that predict fails with exit code 4, one line and no output; returns the message."""
    code, out, error = place.predict(*how.get("options", ()))
    assert (code, out) == (4, ""), (code, out, error)
    message = error.splitlines()[-1]
    assert message.startswith("error: ") and place.outputs() == []
    for word in words:
        assert word in message, message
    return message


# --- truncated files

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {},
    "tiles, not compressed": {"compress": "none"},
    "tiles, lzw": {"compress": "lzw"},
    "strips": {"tiled": False, "blockxsize": None, "blockysize": 8},
    "strips, not compressed": {"tiled": False, "blockxsize": None, "blockysize": 8, "compress": "none"},
    "BigTIFF": {"bigtiff": "yes"},
    "planes": {"interleave": "band"},
    "planes, not compressed": {"interleave": "band", "compress": "none"},
    "big-endian": {"endianness": "big"},
    "big-endian BigTIFF": {"endianness": "big", "bigtiff": "yes", "compress": "none"},
    "nodata": {"nodata": 0},
    "COG": {"driver": "COG", "blocksize": 128, "overviews": "none", "tiled": None, "blockxsize": None,
            "blockysize": None},
}  # fmt: skip


def options_of(layout: str) -> dict[str, Any]:
    return dict(LAYOUTS[layout])


def write(path: Path, pixels: NDArray[Any], layout: str) -> Path:
    options = options_of(layout)
    if options.get("driver") != "COG":
        blocks = {name: options.pop(name) for name in ("blockxsize",) if options.get(name, 0) is None}
        if blocks:
            return write_strips(path, pixels, options)
        return write_raster(path, pixels, **options)
    plain = write_raster(path.with_name("plain.tif"), pixels)
    rasterio.shutil.copy(plain, path, driver="COG", compress="deflate", blocksize=128, overviews="none")
    plain.unlink()
    return path


def write_strips(path: Path, pixels: NDArray[Any], options: dict[str, Any]) -> Path:
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", **{**profile, **PLACE, "compress": "deflate", **options}) as dataset:
        dataset.write(pixels)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_date_fails_before_the_engine_opens(
    place: Place, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise UnavailableError("the engine was opened")

    open_with(monkeypatch, never)
    write(place.after, AFTER, layout)
    cut(place.after, 0.7)
    refused(place, f"the after raster {place.after} has ", "unreadable block", "--max-unreadable", "fetch it again")


@pytest.mark.parametrize("date", ["before", "after"])
def test_a_partly_copied_date_fails(place: Place, date: str) -> None:
    write_raster(getattr(place, date), BEFORE, compress="none")
    for size in (20_000, 3_000, 600, 200, 8):
        content = getattr(place, date).read_bytes()
        getattr(place, date).write_bytes(content[:size])
        refused(place, getattr(place, date).name, "fetch")


def test_a_truncated_tiff_directory_is_named(place: Place) -> None:
    with rasterio.open(place.after, "r+") as dataset:
        dataset.update_tags(NOTE="x" * 4000)  # the directory moves to the end of the file, after the blocks
    cut(place.after, -100)
    refused(place, "after.tif", "truncated", "beyond the end of the file", "fetch the file again")


def test_a_truncated_mask_is_unreadable(place: Place) -> None:
    mask = np.full((H, W), 255, np.uint8)
    mask[:40] = 0
    write_raster(place.after, AFTER, mask=mask, compress="none")
    cut(place.after, -30)
    refused(place, "after", "fetch")


def test_a_mask_may_omit_blocks_that_are_all_hidden(place: Place) -> None:
    mask = np.zeros((H, W), np.uint8)
    mask[:70] = 255
    write_raster(place.after, AFTER, mask=mask)
    with rasterio.open(place.after) as dataset:
        assert dataset.mask_flag_enums[0][0].name == "per_dataset"
    code, _, error = place.predict()
    assert code == 0 and "warning: " not in error
    assert np.array_equal(read(place.change) == 255, mask == 0)


# --- blocks that were never written


def write_part(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    """Writes only the upper two rows of blocks, with a writer that omits the others."""
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "sparse_ok": True}
    with rasterio.open(path, "w", **{**profile, **PLACE, **tiles, **options}) as dataset:
        dataset.write(pixels[:, :64], window=Window(0, 0, width, 64))
    return path


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"interleave": "band"}, {"bigtiff": "yes"}])
def test_blocks_that_were_never_written_are_unreadable(place: Place, options: dict[str, Any]) -> None:
    write_part(place.before, BEFORE, **options)
    planes = 3 if "interleave" in options else 1
    refused(place, f"the before raster {place.before} has {12 * planes} unreadable blocks (60 % of its pixels)")


def test_blocks_that_were_never_written_are_nodata_if_the_file_declares_nodata(place: Place) -> None:
    write_part(place.before, BEFORE, nodata=0)
    code, _, error = place.predict("--engine", "cpu-float32")
    assert code == 0 and "warning" not in error
    change = read(place.change)
    assert (change[64:] == 255).all() and (change[:64] != 255).all()


def test_a_band_that_was_never_written_is_nodata(place: Place) -> None:
    with rasterio.open(
        place.after, "w", driver="GTiff", height=H, width=W, count=3, dtype="uint8", nodata=0, interleave="band",
        sparse_ok=True, tiled=True, blockxsize=32, blockysize=32, **PLACE,
    ) as dataset:  # fmt: skip
        for band in (1, 2):
            dataset.write(AFTER[band - 1], band)
        dataset.write(AFTER[2, :64], 3, window=Window(0, 0, W, 64))
    code, _, _ = place.predict()
    change = read(place.change)
    assert code == 0 and (change[64:] == 255).all() and (change[:64] != 255).all()


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "lzw"}])
def test_files_of_a_killed_writer_are_refused(place: Place, options: dict[str, Any]) -> None:
    def body() -> None:
        profile = {"driver": "GTiff", "height": H, "width": W, "count": 3, "dtype": "uint8", **PLACE}
        with rasterio.Env(GDAL_CACHEMAX=32 << 10):
            dataset = rasterio.open(place.after, "w", **{**profile, **options})
            for top in range(0, 128, 32):
                dataset.write(AFTER[:, top : top + 32], window=Window(0, top, W, 32))
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(body) == signal.SIGKILL
    refused(place, "after", "fetch")


# --- the limit --max-unreadable


def test_allowed_unreadable_blocks_are_nodata_and_warned_of(place: Place) -> None:
    write_raster(place.after, AFTER, compress="none")
    cut(place.after, -3 * BLOCK)
    code, out, error = place.predict("--max-unreadable", "15", "--log", "json")
    assert code == 0
    events = [json.loads(line) for line in error.splitlines()]
    (warning,) = (event for event in events if event["level"] == "warning")
    assert warning["event"] == "warning"
    assert f"{place.after} has 3 unreadable blocks (15 % of its pixels)" in warning["message"]
    figures = json.loads(out)
    assert figures["unread"] == [3, 3 * 32 * 32]
    assert (figures["unreadable_share_before"], figures["unreadable_share_after"]) == (0, 0.15)
    lost = np.zeros((H, W), bool)
    lost[128:, 32:] = True
    assert np.array_equal(read(place.change) == 255, lost)
    with rasterio.open(place.change) as dataset:
        tags = dataset.tags()
    assert (tags["MISGNET_UNREADABLE_BEFORE"], tags["MISGNET_UNREADABLE_AFTER"]) == ("0", "15")


def test_the_warning_goes_to_stderr_and_the_limit_holds_for_each_date(place: Place) -> None:
    for path, pixels, blocks in ((place.before, BEFORE, 1), (place.after, AFTER, 2)):
        write_raster(path, pixels, compress="none")
        cut(path, -blocks * BLOCK)
    refused(place, "the after raster", "(10 % of its pixels)", "9.9 % are allowed", options=("--max-unreadable", "9.9"))
    code, out, error = place.predict("--max-unreadable", "10")
    assert code == 0 and "warning: " not in out
    warnings = [line for line in error.splitlines() if line.startswith("warning: ")]
    assert [("before" in line, "1 unreadable block (5 %" in line) for line in warnings] == [
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize("blocks", [7, 14])  # of 100 blocks: in floating point 7 of them are more than 7 percent
def test_a_share_equal_to_the_limit_is_allowed(place: Place, blocks: int) -> None:
    for path, pixels in zip((place.before, place.after), scene(320, 320), strict=True):
        write_raster(path, pixels, compress="none")
    cut(place.after, -blocks * BLOCK)
    refused(place, f"({blocks} % of its pixels)", options=("--max-unreadable", blocks - 0.001))
    code, _, error = place.predict("--max-unreadable", blocks)
    assert code == 0 and f"({blocks} % of its pixels)" in error


@pytest.mark.parametrize("percent", ["-1", "101", "nan"])
def test_the_limit_is_a_percentage(place: Place, percent: str) -> None:
    code, _, error = place.predict("--max-unreadable", percent)
    assert code == 2 and "0 to 100" in error


# --- blocks that do not decode


def damage(path: Path, *numbers: int) -> None:
    """Overwrites blocks of a compressed raster, counted row by row, with undecodable bytes."""
    with rasterio.open(path) as dataset:
        tags = [
            [int(dataset.get_tag_item(f"BLOCK_{what}_{n % 4}_{n // 4}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
            for n in numbers
        ]
    with path.open("r+b") as file:
        for offset, size in tags:
            file.seek(offset)
            file.write(b"\xff" * size)


def test_an_undecodable_block_fails_the_pair(place: Place) -> None:
    damage(place.after, 9)
    refused(place, "the after raster", "has 1 unreadable block (5 % of its pixels)", "--max-unreadable 6")
    code, _, error = place.predict("--max-unreadable", "5")
    assert code == 0 and "1 unreadable block (5 %" in error
    lost = np.zeros((H, W), bool)
    lost[64:96, 32:64] = True
    assert np.array_equal(read(place.change) == 255, lost)


@pytest.mark.parametrize("date", ["before", "after"])
def test_an_undecodable_last_block_causes_no_later_error(place: Place, date: str) -> None:
    """A stretch reads the block last, and rasterio then raises GDAL's last error for the colour of a band."""
    damage(getattr(place, date), 15)
    code, _, error = place.predict("--stretch", "2,98", "--max-unreadable", "5")
    assert code == 0 and f"the {date} raster" in error and "1 unreadable block (5 %" in error


def test_a_pair_stops_once_too_many_blocks_are_undecodable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(INTERFACE)
    open_with(monkeypatch, fake_detector(lambda: engine))
    for path in (place.before, place.after):
        write_raster(path, np.tile(BEFORE, (1, 20, 1)))
    damage(place.after, 0)
    refused(place, "the after raster", "1 unreadable block")
    assert sum(engine.batches) < 40  # of some 200 tiles


def test_both_kinds_are_counted_once_and_after_a_resume(place: Place) -> None:
    write_raster(place.after, AFTER)
    damage(place.after, 0, 5)
    with rasterio.open(place.after) as dataset:
        last = int(dataset.get_tag_item("BLOCK_OFFSET_3_4", "TIFF", bidx=1))
    place.after.write_bytes(place.after.read_bytes()[: last + 1])
    calls: list[int] = []

    class Dying(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            calls.append(batch)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super()._infer(context, arrays, batch)

    asked = SceneOptions(max_unreadable=100, execution=ExecutionOptions(batch=2))
    call = partial(
        predict_scene_files, place.bundle, place.before, place.after, place.change, asked,
        opener=fake_detector(lambda: Dying(INTERFACE)),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        call()
    report = call()
    assert report.resumed > 0
    assert report.unread == (3, 3 * 32 * 32)
    assert report.unreadable_share_after == 0.15


def test_a_resumed_run_enforces_the_limit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(place.after, 0)
    asked = ("--max-unreadable", ANY, "--batch", "2")
    calls: list[int] = []

    class Dying(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            calls.append(batch)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return super()._infer(context, arrays, batch)

    open_with(monkeypatch, fake_detector(lambda: Dying(INTERFACE)))
    assert place.predict(*asked)[0] == 130
    code, _, error = place.predict("--batch", "2")  # the saved progress already includes the damaged block
    assert code == 4 and "1 unreadable block" in error and place.outputs() == []
    assert place.predict(*asked)[0] == 0


# --- aligned dates


@pytest.mark.parametrize("kind", ["missing", "damaged", "truncated"])
@pytest.mark.parametrize("alpha", [False, True])
def test_unreadable_blocks_of_a_warped_date_are_found(place: Place, kind: str, alpha: bool) -> None:
    moved = {"transform": from_origin(399_984 + 8, 4_999_992 - 8, 0.5, 0.5)}  # by 16 pixels
    pixels, colours = AFTER, {}
    if alpha:
        pixels = np.concatenate([AFTER, np.full((1, H, W), 255, np.uint8)])
        colours = {"colours": (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)}
    if kind == "missing":
        write_part(place.after, pixels, **moved)
        if alpha:
            with rasterio.open(place.after, "r+") as dataset:
                dataset.colorinterp = colours["colours"]
    elif kind == "damaged":
        write_raster(place.after, pixels, **moved, **colours)
        damage(place.after, *range(8, 20))
    else:
        write_raster(place.after, pixels, compress="none", **moved, **colours)
        cut(place.after, -12 * (BLOCK // 3 * len(pixels)))
    found = "unreadable" if kind == "damaged" else "12 unreadable blocks (60 % of its pixels)"
    refused(place, "the after raster", found, options=("--align",))
    code, out, _ = place.predict("--align", "--max-unreadable", ANY, "--log", "json")
    assert code == 0 and json.loads(out)["unreadable_share_after"] > 0.5
    change = read(place.change)
    assert (change[82:] == 255).all() and (change[:14] == 255).all() and (change[:, :14] == 255).all()
    assert (change[17:76, 17:] != 255).all()


def test_readable_pixels_of_a_warped_date_equal_those_of_the_intact_file(place: Place) -> None:
    turned = {"transform": from_origin(399_984 + 3.1, 4_999_992 - 2.3, 0.45, 0.55)}
    write_raster(place.after, AFTER, **turned)
    assert place.predict("--align")[0] == 0
    whole = read(place.change)
    write_part(place.after, AFTER, **turned)
    assert place.predict("--align", "--max-unreadable", ANY, "--force")[0] == 0
    found = read(place.change)
    known = found != 255
    assert 0.3 < known.mean() < 0.6
    assert (found[known] == whole[known]).mean() > 0.99


# --- series


@pytest.fixture
def series(place: Place) -> Callable[..., tuple[int, str, str]]:
    bundle = make_bundle(place.root / "split", engines=[SPLIT_FLOAT])

    def call(*words: object) -> tuple[int, str, str]:
        return place.call("series", bundle, place.before, place.after, "-o", place.change.parent, *words)

    return call


@pytest.mark.parametrize("date", ["before", "after"])
def test_a_series_fails_on_a_truncated_date(place: Place, series: Callable[..., Any], date: str) -> None:
    write_raster(getattr(place, date), AFTER, compress="none")
    cut(getattr(place, date), 0.5)
    code, out, error = series()
    assert (code, out) == (4, "") and "unreadable blocks" in error.splitlines()[-1]
    assert "after.tif" not in place.outputs()
    code, out, error = series("--max-unreadable", "60", "--log", "json")
    assert code == 0
    assert any(json.loads(line)["level"] == "warning" and date in line for line in error.splitlines())
    assert json.loads(out)[f"unreadable_share_{date}"] > 0.3


def test_features_record_unreadable_blocks(place: Place, series: Callable[..., Any]) -> None:
    damage(place.before, 6)
    bundle, features = place.root / "split", place.root / "before.features"
    code, _, error = place.call("encode", bundle, place.before, "-o", features)
    assert code == 4 and "1 unreadable block" in error and not features.exists()
    code, out, error = place.call("encode", bundle, place.before, "-o", features, "--max-unreadable", 5)
    assert code == 0 and "warning: " in error and "1 unreadable block (5 %" in error
    code, _, error = series("--features", features)
    assert code == 4 and "1 unreadable block (5 %" in error
    code, out, error = series("--features", features, "--max-unreadable", 5, "--log", "json")
    assert (code, json.loads(out)["unread"]) == (0, [1, 32 * 32])
    assert (read(place.change.with_name("after.tif"))[32:64, 64:96] == 255).all()
    code, _, error = series("--features", features)  # finished dates are checked as well
    assert code == 4 and "5 %" in error


# --- batch


def test_a_batch_names_the_truncated_scene(place: Place) -> None:
    write_raster(place.root / "in/cut.tif", AFTER, compress="none")
    cut(place.root / "in/cut.tif", -2 * BLOCK)
    table = place.root / "scenes.csv"
    table.write_text("id,before,after\ngood,in/before.tif,in/after.tif\nbad,in/before.tif,in/cut.tif\n")
    out = place.change.parent
    code, _, _ = place.call("batch", place.bundle, table, "-o", out)
    with (out / "results.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert code == 6 and (good["status"], bad["status"]) == ("done", "failed")
    assert "2 unreadable blocks (10 % of its pixels)" in bad["message"]
    assert (good["unread_blocks"], good["unreadable_share_after"]) == ("0", "0.0")
    assert (out / "good.tif").exists() and not (out / "bad.tif").exists()

    code, _, error = place.call("batch", place.bundle, table, "-o", out, "--max-unreadable", 10, "--log", "json")
    with (out / "results.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert code == 0 and bad["status"] == "done" and (out / "bad.tif").exists()
    assert (bad["unread_blocks"], bad["unread_pixels"], bad["unreadable_share_after"]) == ("2", "2048", "0.1")
    events = [json.loads(line) for line in error.splitlines()]
    assert any(event["level"] == "warning" and event.get("scene") == "bad" for event in events)

    assert place.call("batch", place.bundle, table, "-o", out)[0] == 6  # a lower limit also holds for finished scenes


# --- files that change


def test_a_replaced_raster_is_detected(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_raster(place.root / "other.tif", np.roll(AFTER, 7, 2), compress="none")
    write_raster(place.after, AFTER, compress="none")
    assert other.stat().st_size == place.after.stat().st_size
    os.utime(other, ns=(place.after.stat().st_atime_ns, place.after.stat().st_mtime_ns))

    class Replacing(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            if other.exists():
                other.rename(place.after)
            return super()._infer(context, arrays, batch)

    open_with(monkeypatch, fake_detector(lambda: Replacing(INTERFACE)))
    refused(place, "after.tif was changed while it was read")


def test_a_raster_modified_with_its_old_time_is_detected(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(place.after, AFTER, compress="none")
    found = place.after.stat()

    class Writing(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            with place.after.open("r+b") as file:
                file.seek(-BLOCK, os.SEEK_END)
                file.write(b"\x10" * BLOCK)
            os.utime(place.after, ns=(found.st_atime_ns, found.st_mtime_ns))
            return super()._infer(context, arrays, batch)

    open_with(monkeypatch, fake_detector(lambda: Writing(INTERFACE)))
    refused(place, "after.tif was changed while it was read")


def test_a_new_hard_link_to_a_raster_is_accepted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Linking(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            if not (place.root / "backup.tif").exists():
                os.link(place.after, place.root / "backup.tif")
            return super()._infer(context, arrays, batch)

    open_with(monkeypatch, fake_detector(lambda: Linking(INTERFACE)))
    assert place.predict()[0] == 0


def test_a_raster_replaced_while_it_is_hashed_is_detected(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = source.file_sha256

    def replacing(path: Path) -> str:
        if path == place.after:
            write_raster(place.root / "new.tif", np.roll(AFTER, 7, 2)).rename(path)
        return digest(path)

    monkeypatch.setattr(source, "file_sha256", replacing)
    with pytest.raises(InputError, match=r"after\.tif was changed while it was read"):
        predict_scene_files(place.bundle, place.before, place.after, place.change)
    assert place.outputs() == []


def inspect(before: Path, after: Path) -> None:
    with open_pair(before, after, align=False) as pair, inspected(pair, SceneOptions()):
        pass


@pytest.mark.parametrize("layout", ["tiles", "strips, not compressed", "big-endian BigTIFF", "planes"])
def test_a_file_truncated_at_any_length_is_refused(place: Place, layout: str) -> None:
    whole = write(place.after, AFTER, layout).read_bytes()
    inspect(place.before, place.after)
    for size in [*range(0, 700, 13), *np.linspace(700, len(whole) - 1, 40).astype(int)]:
        place.after.write_bytes(whole[:size])
        with pytest.raises(MisgnetError):
            inspect(place.before, place.after)

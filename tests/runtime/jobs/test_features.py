"""Tests files of one date's features: equal to the encoder's output, written atomically, never used if damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import GateFailed, InputError, UsageError
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.series.encode import EncodeReport, encode_file
from misgnet_runtime.jobs.series.features import open_features, record_type, valid_pixels
from misgnet_runtime.pixels import RGB8
from misgnet_runtime.raster.blending import lay_out
from misgnet_runtime.raster.declared import Declared
from support.bundles import FEATURES, SPLIT_FLOAT, TILE, edit, make_bundle
from support.ends import die_at, in_child
from support.fake_split import FakeSplit
from support.logs import Collected
from support.scenes import scene, write_raster

H, W = 150, 110
PIXELS, _ = scene(H, W)
RECORD = record_type(FEATURES, TILE)


class Place:
    """A split bundle, a raster, and a path for its features; the engine is a fake."""

    def __init__(self, root: Path) -> None:
        self.split = FakeSplit()
        self.bundle = make_bundle(root / "bundle", engines=[SPLIT_FLOAT])
        self.raster = write_raster(root / "reference.tif", PIXELS)
        self.file = root / "out" / "reference.features"
        self.logged = Collected()

    def run(self, options: SceneOptions | None = None) -> EncodeReport:
        opener = self.split.opener()
        return encode_file(self.bundle, self.raster, self.file, options, log=self.logged.log, opener=opener)

    def names(self) -> set[str]:
        return {path.name for path in self.file.parent.iterdir()} if self.file.parent.exists() else set()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- outputs


@pytest.mark.parametrize("size", [(H, W), (64, 65), (30, 200), (1, 1)])
def test_records_hold_the_encoders_output_tile_by_tile(place: Place, size: tuple[int, int]) -> None:
    pixels = PIXELS.repeat(2, 2)[:, : size[0], : size[1]]
    write_raster(place.raster, pixels)
    found = place.run(SceneOptions(overlap=16)).features
    with rasterio.open(place.raster) as dataset:
        layout = lay_out(*size, TILE, 16, (-round(dataset.transform.f / -0.5), -round(dataset.transform.c / 0.5)))
    tiles = [(top, left) for top in layout.rows.starts for left in layout.columns.starts]
    assert (found.footer.rows, found.footer.columns) == (list(layout.rows.starts), list(layout.columns.starts))
    records = np.memmap(place.file, RECORD, "r", shape=(len(tiles),))
    for (top, left), record in zip(tiles, records, strict=True):
        part = np.moveaxis(pixels[:, top : top + TILE, left : left + TILE], 0, 2)
        missing = [(0, TILE - part.shape[0]), (0, TILE - part.shape[1])]
        tile = np.pad(part, [*missing, (0, 0)], mode="symmetric")[None]
        for entry, values in zip(FEATURES, place.split.encode(tile), strict=True):
            assert np.array_equal(record[entry.name], values[0].astype(np.float16))
        (valid,) = valid_pixels(record[None], TILE)
        assert valid[: part.shape[0], : part.shape[1]].all() and valid.sum() == part.shape[0] * part.shape[1]


def test_the_file_size_is_logged_in_advance_and_correct(place: Place) -> None:
    report = place.run()
    tiles = len(report.features.footer.crc32)
    assert f"{tiles} tiles, {tiles * RECORD.itemsize / 2**20:.1f} MiB" in place.logged.messages[-1]
    assert 0 < place.file.stat().st_size - tiles * RECORD.itemsize < 4096
    assert place.names() == {"reference.features"} and f"{tiles} tiles" in report.lines()[0]


def test_the_footer_describes_the_input(place: Place) -> None:
    footer = place.run().features.footer
    assert footer.settings["the raster"] == hashlib.sha256(place.raster.read_bytes()).hexdigest()
    assert footer.settings["the engine"] == "cpu-float32 on a fake"
    assert footer.settings["the scaling"] == "bands 1,2,3, 8-bit values as they are"
    assert footer.settings["the grid"].startswith(f"{H} {W} PROJCS") and footer.settings["--overlap"] == "16"
    assert (footer.tile, footer.features) == (TILE, FEATURES)


def test_pixels_without_data_are_neutral_and_recorded(place: Place) -> None:
    pixels = PIXELS.copy()
    pixels[:, :, 100:] = 0
    write_raster(place.raster, pixels, nodata=0)
    found = place.run(SceneOptions(overlap=0)).features
    records = found.read(range(len(found.footer.crc32)))
    columns = found.footer.columns
    valid = valid_pixels(records, TILE).reshape(len(found.footer.rows), len(columns), TILE, TILE)
    for index, left in enumerate(columns):
        assert np.array_equal(valid[0, index].all(0), np.arange(left, left + TILE) < 100)
    last = np.moveaxis(pixels[:, :TILE, columns[-1] :], 0, 2).copy()
    last[:, 100 - columns[-1] :] = RGB8.neutral
    wanted = place.split.encode(last[None])[1][0].astype(np.float16)
    assert np.array_equal(records[len(columns) - 1]["feature2"], wanted)


def test_tiles_without_data_are_not_encoded(place: Place) -> None:
    write_raster(place.raster, np.zeros_like(PIXELS), nodata=0)
    found = place.run().features
    assert place.split.encoded == 0 and not found.read(range(2))["feature1"].any()


def test_unreadable_blocks_are_counted(place: Place) -> None:
    write_raster(place.raster, PIXELS, compress="none")
    place.raster.write_bytes(place.raster.read_bytes()[: -2 * 32 * 32 * 3])
    report = place.run(SceneOptions(max_unreadable=100))
    assert len(report.features.footer.holes) == report.figures()["unread"] == 2
    assert any("2 unreadable blocks" in warning for warning in place.logged.warnings)


# --- interruptions


def test_resume_after_kill_at_any_system_call_writes_identical_outputs(place: Place) -> None:
    place.run()
    whole = place.file.read_bytes()
    resumed = []
    for number in range(100):
        place.file.unlink()

        def killed_run(number: int = number) -> None:
            die_at(number)
            place.run()

        if in_child(killed_run) == 0:
            break
        assert not place.file.exists() or place.file.read_bytes() == whole
        resumed.append(place.run().resumed)
        assert place.file.read_bytes() == whole and place.names() == {"reference.features"}
    assert len(resumed) > 10 and {0, 2, 4, 6} == set(resumed)


def run_and_interrupt(place: Place, error: BaseException | None = None) -> None:
    """Interrupts a run in its third row of tiles."""
    encode, calls, ended = place.split.encode, 0, error or GateFailed("the end")

    def ending(images: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ended
        return encode(images)

    place.split.encode = ending  # type: ignore[method-assign]
    with pytest.raises(type(ended)) as caught:
        place.run()
    assert error is None or "rerun the same command to resume" in str(caught.value)
    place.split.encode = encode  # type: ignore[method-assign]
    assert place.names() == {".reference.features.progress"}


def test_an_interruption_keeps_finished_work(place: Place) -> None:
    run_and_interrupt(place, KeyboardInterrupt())
    assert place.run().resumed in {2, 4} and place.names() == {"reference.features"}


OTHERS: dict[str, tuple[Callable[[Place], object], SceneOptions, str]] = {
    "raster": (lambda p: write_raster(p.raster, PIXELS[:, ::-1]), SceneOptions(), "the raster"),
    "bundle": (lambda p: edit(p.bundle, lambda m: m.update(threshold=0.4)), SceneOptions(), "the bundle"),
    "scaling": (lambda p: None, SceneOptions(before=Declared(bands=(3, 2, 1))), "and now it is bands 3,2,1"),
    "batch": (lambda p: None, SceneOptions(execution=ExecutionOptions(batch=2)), "--batch 1, and now it is 2"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_input_bundle_or_option_is_refused(place: Place, case: str) -> None:
    change, options, words = OTHERS[case]
    run_and_interrupt(place)
    change(place)
    with pytest.raises(UsageError) as caught:
        place.run(options)
    assert words in str(caught.value) and "start over with --restart" in str(caught.value)
    assert place.run(replace(options, restart=True)).resumed == 0


def test_a_raster_that_changes_during_the_run_is_an_error(place: Place) -> None:
    encode = place.split.encode

    def touching(images: Any) -> Any:
        place.raster.touch()
        return encode(images)

    place.split.encode = touching  # type: ignore[method-assign]
    with pytest.raises(InputError, match="was changed while it was read"):
        place.run()
    assert not place.file.exists()


# --- refused inputs


@pytest.mark.parametrize(("factor", "words"), [(1e4, "float16, up to 65504"), (np.nan, "reaches nan")])
def test_features_beyond_float16_are_refused(place: Place, factor: float, words: str) -> None:
    place.split.factor = np.float32(factor)
    with pytest.raises(GateFailed, match=f"encoder's feature1 .*{words}"):
        place.run()
    assert not place.file.exists()


def test_a_full_disk_is_reported_with_sizes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000, total=2000))
    with pytest.raises(
        InputError, match=r"110 x 150 px, and a file of its features needs .* but only 1\.0 kB are free"
    ):
        place.run()
    assert not place.names()


def test_an_existing_file_is_kept(place: Place) -> None:
    place.run()
    with pytest.raises(UsageError, match=r"exists; .*--force"):
        place.run()
    place.file.write_bytes(b"old")
    place.run(SceneOptions(force=True))
    assert open_features(place.file).footer.tile == TILE


@pytest.mark.parametrize("name", ["reference.tif", "reference"])
def test_the_file_name_must_end_in_features(place: Place, name: str) -> None:
    with pytest.raises(UsageError, match=r"ends in \.features"):
        encode_file(place.bundle, place.raster, place.file.with_name(name))


def test_a_damaged_record_is_an_error(place: Place) -> None:
    found = place.run().features
    with place.file.open("r+b") as file:
        file.seek(RECORD.itemsize + 5)
        file.write(b"\xff")
    assert len(found.read(range(2, 4))) == 2
    with pytest.raises(InputError, match=r"tile 1 does not match its checksum; .*encode the raster again"):
        found.read(range(3))


def footer_changed(data: bytes, **fields: object) -> bytes:
    """Returns the file with changed fields in its footer, and a matching digest."""
    length = int.from_bytes(data[-16:-8], "little")
    start = len(data) - 48 - length
    content = json.dumps({**json.loads(data[start : start + length]), **fields}).encode()
    return data[:start] + content + hashlib.sha256(content).digest() + len(content).to_bytes(8, "little") + data[-8:]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is not a file of features, or is truncated"),
    "cut off": (lambda data: data[:-1], "is not a file of features, or is truncated"),
    "something else": (lambda data: b"II*\0" * 100, "is not a file of features, or is truncated"),
    "a length beyond the file": (lambda data: data[:-16] + b"\xff" * 8 + data[-8:], "or is truncated"),
    "a byte of the footer": (lambda data: data[:-60] + b"~" + data[-59:], "footer does not match its checksum"),
    "records missing": (lambda data: data[RECORD.itemsize :], "their size does not match their footer"),
    "another version": (lambda data: footer_changed(data, format=99), "have format 99"),
    "no version": (lambda data: footer_changed(data, format=None), "have an invalid footer"),
    "unknown words": (lambda data: footer_changed(data, extra=1), "have an invalid footer"),
    "a huge tile": (
        lambda data: footer_changed(data, tile=2**31 - 1),
        "have an invalid footer|their size does not match",
    ),
    "a negative shape": (
        lambda data: footer_changed(
            data, features=[{"name": "f", "dtype": "float32", "shape": [-1, -5], "layout": "NC"}]
        ),
        "have an invalid footer|their size does not match",
    ),
    "too few checksums": (lambda data: footer_changed(data, crc32=[]), "their size does not match their footer"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_an_incomplete_or_damaged_file_is_refused(place: Place, case: str) -> None:
    place.run()
    change, words = DAMAGES[case]
    place.file.write_bytes(change(place.file.read_bytes()))
    with pytest.raises(InputError, match=words):
        open_features(place.file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.features cannot be read: No such file"):
        open_features(tmp_path / "x.features")

"""Tests the same file as both dates, and metadata that show the wrong order: the run warns and continues."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from misgnet_runtime.cli import main as cli
from support.bundles import FLOAT, SPLIT_FLOAT, make_bundle, write_image
from support.commands import exit_code
from support.scenes import scene, write_raster

BEFORE, AFTER = scene(70, 80)
OLD, NEW = "2019:05:01 10:00:00", "2021:05:01 10:00:00"
ISO_OLD, ISO_NEW = "2019-05-01T10:00:00.123Z", "2021-05-01T10:00:00Z"
SAME, EXCHANGED = "are the same file", "was taken after AFTER"


def dated(path: Path, pixels: Any, *, tag: str | None = None, acquired: str | None = None) -> Path:
    write_raster(path, pixels)
    with rasterio.open(path, "r+") as dataset:
        if tag:
            dataset.update_tags(TIFFTAG_DATETIME=tag)
        if acquired:
            dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=acquired)
    return path


class Place:
    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])

    def warnings(self, *words: object) -> list[str]:
        """Runs a command that succeeds and returns its warnings."""
        code = exit_code(cli.main, "misgnet-run", "--log", "json", *words)
        captured = self._capsys.readouterr()
        assert code == 0, captured.err
        lines = [json.loads(line) for line in captured.err.splitlines()]
        return [line["message"] for line in lines if line["level"] == "warning"]

    def predict(self, before: Path, after: Path, out: str = "out.tif") -> list[str]:
        return self.warnings(
            "predict",
            self.bundle,
            before,
            after,
            "-o",
            self.root / out,
            "--force",
            "--restart" if out.endswith("f") else "--no-tuned",
        )


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capsys)


TIMES: dict[str, tuple[dict[str, str], dict[str, str], str | None]] = {
    "in order": ({"tag": OLD}, {"tag": NEW}, None),
    "exchanged": ({"tag": NEW}, {"tag": OLD}, EXCHANGED),
    "exchanged by IMAGERY": ({"acquired": ISO_NEW}, {"acquired": ISO_OLD}, EXCHANGED),
    "of two kinds": ({"acquired": ISO_NEW}, {"tag": OLD}, EXCHANGED),
    "acquisition counts, not processing": (
        {"tag": NEW, "acquired": ISO_OLD}, {"tag": OLD, "acquired": ISO_NEW}, None
    ),
    "one says nothing": ({"tag": NEW}, {}, None),
    "no time": ({"tag": "unknown"}, {"tag": OLD}, None),
    "at once": ({"acquired": ISO_NEW}, {"acquired": ISO_NEW}, "at the same time"),
}  # fmt: skip


@pytest.mark.parametrize("case", TIMES)
def test_dates_of_scenes_in_the_wrong_order_are_warned_of(place: Place, case: str) -> None:
    before, after, words = TIMES[case]
    paths = dated(place.root / "b.tif", BEFORE, **before), dated(place.root / "a.tif", AFTER, **after)
    found = place.predict(*paths)
    assert len(found) == (words is not None) and (not words or words in found[0])


@pytest.mark.parametrize("how", ["path", "link", "copy"])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_same_file_as_both_dates_gives_a_warning(place: Place, how: str, suffix: str) -> None:
    path, other = place.root / f"x{suffix}", place.root / f"y{suffix}"
    if suffix == ".tif":
        write_raster(path, BEFORE)
    else:
        write_image(path, np.moveaxis(BEFORE, 0, 2))
    if how == "link":
        other.hardlink_to(path)
    elif how == "copy":
        shutil.copy(path, other)
    found = place.predict(path, path if how == "path" else other, f"out{suffix}")
    assert len(found) == 1 and SAME in found[0]


def test_times_of_images_are_compared(place: Place) -> None:
    paths = place.root / "b.jpg", place.root / "a.jpg"
    for path, pixels, time in zip(paths, (BEFORE, AFTER), (NEW, OLD), strict=True):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[36867] = time
        Image.fromarray(np.moveaxis(pixels, 0, 2)).save(path, exif=exif)
    assert [EXCHANGED in words for words in place.predict(*paths, "out.png")] == [True]
    assert place.predict(paths[1], paths[0], "out.png") == []
    for path, pixels, time in zip(paths, (BEFORE, AFTER), (NEW, OLD), strict=True):
        Image.fromarray(np.moveaxis(pixels, 0, 2)).save(path, "TIFF", tiffinfo={306: time})
    assert [EXCHANGED in words for words in place.predict(*paths, "out.png")] == [True]


def test_an_image_with_a_damaged_exif_directory_is_accepted(place: Place) -> None:
    """The offset of the EXIF directory is before the start of the file."""
    pointer = struct.pack("<2sHIHHHIiI", b"II", 42, 8, 1, 0x8769, 9, 1, -1, 0)
    paths = place.root / "a.jpg", place.root / "b.jpg"
    for path, pixels in zip(paths, (BEFORE, AFTER), strict=True):
        Image.fromarray(np.moveaxis(pixels, 0, 2)).save(path, exif=b"Exif\0\0" + pointer)
    assert place.predict(*paths, "out.png") == []


def test_warnings_in_folders_name_the_pair(place: Place) -> None:
    for folder, pixels, time in (("A", BEFORE, NEW), ("B", AFTER, OLD)):
        dated(place.root / folder / "scene.tif", pixels, tag=time)
        write_image(place.root / folder / "image.png", np.moveaxis(BEFORE, 0, 2))
    found = place.warnings("predict", place.bundle, place.root / "A", place.root / "B", "-o", place.root / "out")
    assert len(found) == 2 and "image.png" in found[0] and SAME in found[0] and EXCHANGED in found[1]


def test_series_and_batch_and_watch_warn(place: Place) -> None:
    bundle = make_bundle(place.root / "split", engines=[SPLIT_FLOAT])
    before = dated(place.root / "in" / "p_before.tif", BEFORE, tag=NEW)
    after = dated(place.root / "in" / "p_after.tif", AFTER, tag=OLD)
    found = place.warnings("series", bundle, before, after, "-o", place.root / "series")
    assert [EXCHANGED in words for words in found] == [True]
    table = place.root / "table.csv"
    table.write_text(f"id,before,after,output\n1,{before},{after},batch.tif\n")
    found = place.warnings("batch", place.bundle, table, "-o", place.root / "results")
    assert [EXCHANGED in words for words in found] == [True]
    for date in ("before", "after"):
        write_image(before.parent / f"q_{date}.png", np.moveaxis(BEFORE, 0, 2))
    found = place.warnings("watch", place.bundle, before.parent, "-o", place.root / "watched", "--once")
    assert sorted(EXCHANGED in words for words in found) == [False, True] and any(SAME in words for words in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OLD, "2019-05-01T10:00:00+00:00"), (ISO_NEW, "2021-05-01T10:00:00+00:00"),
        ("2021-05-01T10:00:00+02:00", "2021-05-01T10:00:00+02:00"), ("2021-05-01", "2021-05-01T00:00:00+00:00"),
        ("", None), (None, None), ("0000:00:00 00:00:00", None), ("yesterday", None), ("9999:99:99", None),
    ],
)  # fmt: skip
def test_time_formats_are_parsed(text: str | None, expected: str | None) -> None:
    from misgnet_runtime.raster.metadata import parse_time

    found = parse_time(text)
    assert (found.isoformat() if found else None) == expected

"""Tests the preparation of the WHU-CD scene: exact pixels, nodata, resuming, damaged rasters and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

rasterio = pytest.importorskip("rasterio", reason="the WHU-CD scene needs the [geo] extra")

import typer
from rasterio.transform import from_origin
from rasterio.windows import Window
from typer.testing import CliRunner

from misgnet.cli.prepare import prepare as command
from misgnet.datasets import PrepareOptions, PrepareReport, prepare, writing
from misgnet.datasets.rasters import classify
from misgnet.datasets.scene import first_bad_row
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError, UsageError
from misgnet_runtime.log import use
from support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
HEIGHT, WIDTH, TILE = 196, 330, 32  # 7 x 11 tiles; the last row has 4 px, the last column 10
NAMES = {"before": "before/before.tif", "after": "after/after.tif", "label": "change label/change_label.tif"}
RNG = np.random.default_rng(3)
BEFORE, AFTER = RNG.integers(1, 256, (2, 3, HEIGHT, WIDTH), np.uint8)
LABEL = (RNG.random((1, HEIGHT, WIDTH)) < 0.3).astype(np.uint8) * np.uint8(255)
GRID = {"crs": "EPSG:2193", "transform": from_origin(1_570_000, 5_180_000, 0.2, 0.2)}


def write_raster(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype, **options}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)
    return path


def make_scene(root: Path, **options: object) -> Path:
    for role, pixels in (("before", BEFORE), ("after", AFTER), ("label", LABEL)):
        write_raster(root / NAMES[role], pixels, **options)
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_scene(tmp_path / "source", **GRID)


def run(source: Path, output: Path, **options: object) -> PrepareReport:
    return prepare("whu", source, output, PrepareOptions(**{"tile": TILE, **options}))


def refused(kind: type[MisgnetError], source: Path, output: Path, *words: str, **options: object) -> None:
    with pytest.raises(kind) as caught:
        run(source, output, **options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(output.glob("*/*/*"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def tiles(output: Path, part: str) -> dict[tuple[int, int], np.ndarray]:
    """Returns the tiles of a part in all splits by row and column, and checks that no position occurs twice."""
    paths = list(output.glob(f"*/{part}/*.png"))
    found = {tuple(map(int, path.stem.split("_")[1:])): pixels(path) for path in paths}
    assert len(found) == len(paths)
    return found


def padded(image: np.ndarray) -> np.ndarray:
    """Returns the scene (B, H, W) as (H, W, B), padded to whole tiles by reflection at its lower and right edge."""
    image = np.moveaxis(image, 0, 2)
    # a strip of 4 px is reflected repeatedly; NumPy does the same if axes are padded one at a time
    for axis in (0, 1):
        whole = image.shape[axis] // TILE * TILE
        body, rest = np.split(image, [whole], axis)
        widths = [(0, TILE - rest.shape[axis]) if a == axis else (0, 0) for a in range(3)]
        image = np.concatenate([body, np.pad(rest, widths, mode="symmetric")], axis)
    return image


def check_tiles(output: Path, before: np.ndarray, after: np.ndarray, label: np.ndarray) -> None:
    for part, image in (("A", before), ("B", after), ("label", label)):
        whole = padded(image)
        found = tiles(output, part)
        assert len(found) == 77
        for (row, column), tile in found.items():
            area = whole[row : row + TILE, column : column + TILE]
            assert np.array_equal(tile, area if part != "label" else area[..., 0])


LAYOUTS = {
    "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
    "striped": {"blockysize": 7, "compress": "lzw"},
    "by band": {"interleave": "band", "blockysize": 16},
    "one block": {"blockysize": HEIGHT, "compress": "deflate"},
    "big": {"BIGTIFF": "YES"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_hold_the_pixels_of_the_scene(tmp_path: Path, layout: str) -> None:
    report = run(make_scene(tmp_path / "source", **LAYOUTS[layout]), tmp_path / "out")
    check_tiles(tmp_path / "out", BEFORE, AFTER, LABEL)
    # 60 whole tiles are drawn at random: 10 columns of 6 rows; 7 + 11 - 1 tiles are mostly padding
    assert [(s.found, s.tiles) for s in report.splits] == [(48, 65), (6, 6), (6, 6)]
    assert (report.edge_tiles, report.splits[0].official) == (17, None)


def test_edge_tiles_go_to_train_or_are_omitted(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "keep")
    report = run(source, tmp_path / "drop", edges="drop")
    assert [s.tiles for s in report.splits] == [48, 6, 6]
    kept, dropped = (
        {name: data for name, data in tree(tmp_path / d).items() if name.endswith("png")} for d in ("keep", "drop")
    )
    assert dropped.items() <= kept.items()
    edges = {name.split("/")[0] for name in kept.keys() - dropped.keys()}
    assert edges == {"train"}
    refused(UsageError, source, tmp_path / "keep2", "--seed is -1", seed=-1)
    with pytest.raises(UsageError, match="edges keep, and now it is drop"):
        run(source, tmp_path / "keep", edges="drop")
    with pytest.raises(UsageError, match="seed 0, and now it is 5"):
        run(source, tmp_path / "keep", seed=5)


def test_split_depends_on_the_seed(source: Path, tmp_path: Path) -> None:
    names = []
    for folder, seed in (("one", 4), ("two", 4), ("three", 5)):
        run(source, tmp_path / folder, seed=seed)
        names.append({path.name for path in (tmp_path / folder / "test" / "A").iterdir()})
    assert names[0] == names[1] != names[2]


def test_scene_of_only_edge_tiles_requires_keep(tmp_path: Path) -> None:
    for role, image in (("before", BEFORE), ("after", AFTER), ("label", LABEL)):
        write_raster(tmp_path / "source" / NAMES[role], image[:, :10, :40])
    refused(InputError, tmp_path / "source", tmp_path / "out", "--edges keep", edges="drop")
    assert [s.tiles for s in run(tmp_path / "source", tmp_path / "out").splits] == [2, 0, 0]


# --- nodata


def test_alpha_masks_both_dates_and_the_label(source: Path, tmp_path: Path) -> None:
    nodata = np.zeros((HEIGHT, WIDTH), bool)
    nodata[20:50, 40:100] = True
    rgba = np.concatenate([BEFORE, np.where(nodata, 0, 200)[None].astype(np.uint8)])
    write_raster(source / NAMES["before"], rgba, **GRID)
    report = run(source, tmp_path / "out")
    check_tiles(tmp_path / "out", *(np.where(nodata, 0, image) for image in (BEFORE, AFTER, LABEL)))
    assert sum(s.tiles for s in report.splits) == 77


def test_nodata_of_either_date_masks_both(source: Path, tmp_path: Path) -> None:
    before, after = BEFORE.copy(), AFTER.copy()
    before[:, 100:140, :70] = 9
    before[0, 0, 0] = 9  # a pixel is nodata only if all bands have the value
    after[:, 120:196, 60:330] = 9
    write_raster(source / NAMES["before"], before, nodata=9, **GRID)
    write_raster(source / NAMES["after"], after, nodata=9, **GRID)
    nodata = (before == 9).all(axis=0) | (after == 9).all(axis=0)
    run(source, tmp_path / "out")
    check_tiles(tmp_path / "out", *(np.where(nodata, 0, image) for image in (before, after, LABEL)))


def test_internal_mask_is_used_and_nodata_of_the_label_is_not(source: Path, tmp_path: Path) -> None:
    nodata = np.zeros((HEIGHT, WIDTH), bool)
    nodata[:5] = True
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source / NAMES["after"], "r+") as dataset:
        dataset.write_mask(~nodata)
    write_raster(source / NAMES["label"], LABEL, nodata=0, **GRID)  # the value of unchanged pixels
    run(source, tmp_path / "out")
    check_tiles(tmp_path / "out", *(np.where(nodata, 0, image) for image in (BEFORE, AFTER, LABEL)))


def test_sidecar_files_of_a_raster_are_ignored(source: Path, tmp_path: Path) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(source / NAMES["after"], "r+") as dataset:
        dataset.write_mask(np.zeros((HEIGHT, WIDTH), bool))
    assert (source / "after" / "after.tif.msk").is_file()
    run(source, tmp_path / "out")
    check_tiles(tmp_path / "out", BEFORE, AFTER, LABEL)


@pytest.mark.parametrize("bits", [8, 1])
def test_labels_of_0_and_1_become_0_and_255(source: Path, tmp_path: Path, bits: int) -> None:
    write_raster(source / NAMES["label"], LABEL // 255, nbits=bits)
    run(source, tmp_path / "out")
    check_tiles(tmp_path / "out", BEFORE, AFTER, LABEL)


# --- repeated and interrupted runs


def test_second_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    stamps = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    content = tree(out)
    report = run(source, out)
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == stamps
    assert tree(out) == content
    assert [s.written for s in report.splits] == [0, 0, 0]


@pytest.mark.parametrize("after", [0, 40, 100, 230])
def test_rerun_after_interrupt_completes_the_output(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run(source, tmp_path / "whole")
    calls = []
    real = writing.encode_png

    def fail(image: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(image)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "encode_png", fail)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out")
    done = sum(len(unit["tiles"]) for unit in record_lines(tmp_path / "out")[1:])
    report = run(source, tmp_path / "out")
    assert sum(s.written for s in report.splits) == 77 - done
    assert done == after // 33 * 11
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def record_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "prepare.jsonl").read_bytes().splitlines()]


def test_damaged_tile_is_written_again_and_changed_raster_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    content = tree(out)
    (out / "train/B/whu_00192_00320.png").unlink()
    next((out / "val/A").iterdir()).write_bytes(b"")
    assert [s.written for s in run(source, out).splits] == [1, 1, 0]
    assert tree(out) == content
    write_raster(source / NAMES["after"], 255 - AFTER, **GRID)
    with pytest.raises(InputError, match=r"after raster .*after\.tif has changed"):
        run(source, out)
    assert tree(out) == content


# --- roles of the files


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("before.tif", "before"), ("x/After.TIF", "after"), ("change label/change_label.tif", "label"),
        ("2012/whole.tif", "before"), ("2016/images/whole.tif", "after"), ("A/scene.tif", "before"),
        ("t2/scene.tif", "after"), ("time1.tif", "before"), ("christchurch_2016_rgb.tif", "after"),
        ("gt/scene.tif", "label"), ("masks.tif", "label"), ("2012_2016.tif", None), ("A/2016.tif", "after"),
        ("before/before_label.tif", None), ("change_2012.tif", "label"), ("label_2012_2016.tif", "label"),
        ("aerial.tif", None), ("before/._before.tif", None), ("B/x/scene.tif", "after"),
    ],
)  # fmt: skip
def test_role_of_a_raster_follows_from_its_name(name: str, role: str | None) -> None:
    assert classify(Path(name))[0] == role


def test_other_rasters_of_the_download_are_skipped(source: Path, tmp_path: Path) -> None:
    write_raster(source / "before" / "before_label.tif", LABEL)
    (source / "after" / "._after.tif").write_bytes(b"resource fork")
    report = run(source, tmp_path / "out")
    assert {item.path.name for item in report.skipped} == {"before_label.tif", "._after.tif"}


def test_error_for_ambiguous_rasters_lists_the_candidates(source: Path, tmp_path: Path) -> None:
    write_raster(source / "2016" / "image.tif", AFTER)
    out = tmp_path / "out"
    candidates = "2016/image.tif", "after/after.tif"
    refused(InputError, source, out, "after raster", "is ambiguous: 2 files match", "--after FILE", *candidates)
    run(source, out, after=source / "2016" / "image.tif")
    (source / NAMES["before"]).rename(source / "early.tif")
    refused(InputError, source, tmp_path / "two", "before raster", "is missing", "early.tif", "--before FILE")
    run(source, tmp_path / "two", before=source / "early.tif", after=source / "2016" / "image.tif")
    assert tree(out / "test") == tree(tmp_path / "two" / "test")


def test_rasters_can_be_named_if_none_is_found(source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "whu.zip").write_bytes(b"PK")
    refused(InputError, empty, tmp_path / "out", "contains no .tif", "unpack whu.zip first")
    refused(InputError, tmp_path / "nowhere", tmp_path / "out", "does not exist")
    named = {role: source / name for role, name in NAMES.items()}
    run(empty, tmp_path / "out", **named)
    refused(UsageError, empty, tmp_path / "two", "--before and --after", **{**named, "after": named["before"]})
    refused(InputError, empty, tmp_path / "two", "gone.tif", **{**named, "after": empty / "gone.tif"})
    refused(UsageError, empty, tmp_path / "source", "contains the source", **named, force=True)


# --- hostile, damaged and unsuitable files


def vrt(source: Path) -> tuple[str, ...]:
    """Writes a VRT under the name of a raster; it could read any file of the machine."""
    secret = write_raster(source.parent / "secret.tif", AFTER)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    path = source / NAMES["after"]
    path.write_text(f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}">{bands}</VRTDataset>')
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), AFTER)  # GDAL by itself would read it
    return str(path), "cannot be opened as a GeoTIFF"


def wide(source: Path) -> tuple[str, ...]:
    path = source / NAMES["before"]
    declare(path, 4_000_000, 1_000_000, 4096)
    assert path.stat().st_size < 12_000_000
    return str(path), "4000000 x 1000000 px", "MiB"


def wide_block(source: Path) -> tuple[str, ...]:
    path = source / NAMES["before"]
    declare(path, 20_000, 20_000, 16384)
    return str(path), "a block of the file takes 768 MiB"


def tall(source: Path) -> tuple[str, ...]:
    for role, name in NAMES.items():
        declare(source / name, 64, 1 << 27, 4096, 1 if role == "label" else 3)
    return "8,388,608 tiles", "--tile"


def declare(path: Path, width: int, height: int, block: int, count: int = 3) -> None:
    """Writes a small file that declares many pixels."""
    options = {"tiled": True, "blockxsize": block, "blockysize": block, "SPARSE_OK": "TRUE", "BIGTIFF": "YES"}
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, **options, nodata=0):
        pass


def wide_values(source: Path) -> tuple[str, ...]:
    label = np.zeros_like(LABEL)
    label[0, 70:, :255] = np.arange(255)
    write_raster(source / NAMES["label"], label)
    return (
        str(source / NAMES["label"]),
        "the values 0, 1, 2, 3, 4, 5, ...",
        "rows 64 to 95",
        "first invalid one in row 70",
    )


def mixed_values(source: Path) -> tuple[str, ...]:
    label = LABEL // 255
    label[0, 150, 7] = 255
    write_raster(source / NAMES["label"], label)
    return "the values 0, 1, 255", "rows 128 to 159", "first invalid one in row 150"


def cut_short(role: str) -> Callable[[Path], tuple[str, ...]]:
    def change(source: Path) -> tuple[str, ...]:
        path = source / NAMES[role]
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
        return str(path), "damaged or truncated", "rows 128 to 159, columns 0 to 329"

    return change


def no_head(source: Path) -> tuple[str, ...]:
    path = source / NAMES["after"]
    path.write_bytes(path.read_bytes()[:100])
    return (str(path),)


def other(role: str, image: np.ndarray, *words: str, **options: object) -> Callable[[Path], tuple[str, ...]]:
    def change(source: Path) -> tuple[str, ...]:
        path = write_raster(source / NAMES[role], image, **options)
        return str(path), *words

    return change


MOVED = from_origin(1_570_000.2, 5_180_000, 0.2, 0.2)
UNSUITABLE = {
    "VRT": vrt, "declares terabytes": wide, "one huge block": wide_block, "endless": tall, "no head": no_head,
    "values": wide_values, "mixed values": mixed_values,
    "label of 3 bands": other("label", BEFORE, "3 bands of uint8; a label must have 1 band"),
    "date of 1 band": other("after", LABEL, "1 band of uint8; a date must have 3 bands"),
    "no alpha": other("after", np.concatenate([AFTER, LABEL]), "4 bands of uint8", alpha="no"),
    "16 bits": other("before", BEFORE.astype(np.uint16), "uint16"),
    "label of 16 bits": other("label", LABEL.astype(np.int16), "int16"),
    "another size": other("after", AFTER[:, :, :300], "300 x 196 px", "330 x 196 px"),
    "label of another size": other("label", LABEL[:, :100], "330 x 100 px", "330 x 196 px"),
    "another CRS": other("after", AFTER, "EPSG:2193", "EPSG:32759", **{**GRID, "crs": "EPSG:32759"}),
    "another place": other("label", LABEL, "1570000.2", "1570000.0", **{**GRID, "transform": MOVED}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUITABLE)
def test_error_names_the_unsuitable_raster(source: Path, tmp_path: Path, case: str) -> None:
    words = UNSUITABLE[case](source)
    refused(InputError, source, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["before", "after", "label"])
def test_error_names_a_truncated_raster_and_finished_tiles_are_kept(tmp_path: Path, role: str) -> None:
    source = make_scene(tmp_path / "source", blockysize=1)
    out = tmp_path / "out"
    run(source, tmp_path / "whole")
    good = (source / NAMES[role]).read_bytes()
    words = cut_short(role)(source)
    with pytest.raises(InputError) as caught:
        run(source, out)
    for word in words:
        assert word in str(caught.value)
    assert len(list(out.glob("*/A/*.png"))) == (0 if role == "label" else 44)
    (source / NAMES[role]).write_bytes(good)
    if role == "label":
        run(source, out)
        assert tree(out) == tree(tmp_path / "whole")
    else:  # its digest is in the header of the record
        with pytest.raises(InputError, match=f"the {role} raster .*--force"):
            run(source, out)


@pytest.mark.parametrize("role", ["before", "label"])
def test_incomplete_raster_is_refused(source: Path, tmp_path: Path, role: str) -> None:
    """A killed writer leaves unwritten blocks; in a label they would mean "unchanged"."""
    path, pixels = source / NAMES[role], LABEL if role == "label" else BEFORE
    for nodata in (None, 0):
        options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "SPARSE_OK": "TRUE", "nodata": nodata, **GRID}
        profile = {"width": WIDTH, "height": HEIGHT, "count": len(pixels), "dtype": "uint8", **options}
        with rasterio.open(path, "w", driver="GTiff", **profile) as dataset:
            dataset.write(pixels[:, :64], window=Window(0, 0, WIDTH, 64))
        if nodata is None:
            refused(InputError, source, tmp_path / "out", str(path), "18 of 24 blocks were never written")
    run(source, tmp_path / "out")
    assert (tiles(tmp_path / "out", "label")[128, 128] == 0).all()


def test_grids_less_than_half_a_pixel_apart_are_equal(source: Path, tmp_path: Path) -> None:
    write_raster(
        source / NAMES["label"], LABEL, crs="EPSG:2193", transform=from_origin(1_570_000.05, 5_180_000, 0.2, 0.2)
    )
    write_raster(source / NAMES["after"], AFTER)  # not georeferenced
    run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "white", "expected"),
    [
        ([[0, 0], [0, 0]], None, (None, None)), ([[0, 0], [0, 1]], None, (None, 1)),
        ([[0, 255], [1, 0]], None, (1, 255)), ([[0, 0], [7, 1]], None, (1, 7)),
        ([[0, 1], [0, 0]], 255, (0, 255)), ([[0, 1], [1, 1]], 1, (None, 1)),
    ],
)  # fmt: skip
def test_first_bad_row_finds_the_first_invalid_value(
    values: list[list[int]], white: int | None, expected: tuple[int | None, int | None]
) -> None:
    assert first_bad_row(np.array(values, np.uint8), white) == expected


def test_error_without_rasterio_names_the_install_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    refused(UnavailableError, source, tmp_path / "out", "pip install 'misgnet-export[geo]'")


def test_command_reports_edge_tiles(source: Path, tmp_path: Path) -> None:
    use("text")  # as the command does
    (source / NAMES["before"]).rename(source / "early.tif")
    app = typer.Typer()
    app.command()(command)
    arguments = ["whu", source, "-o", tmp_path / "out", "--tile", TILE, "--seed", 7, "--before", source / "early.tif"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0
    assert "tiles drawn" in result.output and "train also contains 17 edge tiles" in result.output
    result = CliRunner().invoke(app, [*map(str, arguments), "--edges", "drop", "--force"])
    assert result.exit_code == 0 and "edge tiles" not in result.output
    assert len(tiles(tmp_path / "out", "A")) == 60


# --- memory

# Uses VmHWM instead of ru_maxrss, which includes the memory of the parent process at the time of the fork.
PEAK = """
import re, sys
from pathlib import Path
from misgnet.datasets import PrepareOptions, prepare

report = prepare("whu", Path(sys.argv[1]), Path(sys.argv[2]), PrepareOptions(tile=1024))
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(sum(split.tiles for split in report.splits), int(peak) // 1024)
"""


def test_scene_is_never_completely_in_memory(tmp_path: Path) -> None:
    """A date of 4096 x 40960 px takes 480 MiB; a strip of both dates with its tiles takes about 60 MiB."""
    block = np.zeros((3, 512, 512), np.uint8)
    block[:, ::3] = 200
    for name, count in zip(NAMES.values(), (3, 3, 1), strict=True):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True)
        declare(path, 4096, 40960, 512, count)
        with rasterio.open(path, "r+") as dataset:
            for row in range(0, 40960, 8192):
                pixels = block[:count] if count == 3 else (block[:1] > 0).astype(np.uint8)
                dataset.write(pixels, window=Window(1024, row, 512, 512))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "runtime")))}
    command = [sys.executable, "-c", PEAK, tmp_path / "source", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 160
    assert peak < 400

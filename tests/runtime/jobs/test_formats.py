"""Tests bundles of other formats than 8-bit RGB through the whole runtime: commands, series, verify, and the API."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.transform import Affine

from misgnet_runtime import open_bundle
from misgnet_runtime.accuracy.evaluation_tiles import (
    ROLE,
    EvaluationTiles,
    evaluate_on_device,
    tiles_in_a_file,
    write_evaluation,
)
from misgnet_runtime.bundle import MANIFEST
from misgnet_runtime.bundle.golden import GoldenTiles, golden_of, write_golden
from misgnet_runtime.bundle.manifest import EngineKind, ModelEntry, decode_manifest
from misgnet_runtime.bundle.reader import Bundle, describe_files, read_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.detector import as_input
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.jobs.batch.run import run_batch
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.storage.schema import encode
from support.batches import Recorder, write_table
from support.bundles import FORMATS, TILE, bands_bundle, edit, expected_of, images_of, interface_of, name_of
from support.commands import exit_code
from support.logs import Collected
from support.scenes import PLACE, read, write_raster

SIZE = (110, 150)
NOWHERE = {"crs": None, "transform": None}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class Place:
    """A bundle of a format, and a pair of images, written as GeoTIFFs and as TIFFs without georeferencing."""

    def __init__(self, root: Path, pixels: PixelFormat) -> None:
        self.root, self.pixels = root, pixels
        self.bundle = bands_bundle(root / "bundle", pixels)
        self.dates = images_of(pixels, *SIZE)
        self.rasters = [self.write("rasters", name, date) for name, date in zip("AB", self.dates, strict=True)]
        self.plain = [self.write("plain", name, date, **NOWHERE) for name, date in zip("AB", self.dates, strict=True)]

    def write(self, folder: str, name: str, date: NDArray[Any], **options: Any) -> Path:
        return write_raster(self.root / folder / name / "x.tif", np.moveaxis(date, 2, 0), **options)

    def scene(self, *rasters: Path, **asked: Any) -> NDArray[np.float32]:
        """Returns the probability of change of a pair of rasters."""
        probability, change = self.root / "scene/p.tif", self.root / "scene/change.tif"
        options = SceneOptions(force=True, probability=probability, **asked)
        predict_scene_files(self.bundle, *rasters, change, options)
        return np.asarray(read(probability))

    def run(self, *words: object) -> int:
        return exit_code(cli.main, "misgnet-run", *words)


@pytest.fixture(params=FORMATS, ids=name_of)
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, request.param)


@pytest.fixture
def four(tmp_path: Path) -> Place:
    return Place(tmp_path, FORMATS[1])


def mask_of(path: Path) -> NDArray[np.bool_]:
    with Image.open(path) as image:
        return np.asarray(image) > 0


def test_a_scene_equals_the_same_pixels_predicted_as_arrays(place: Place) -> None:
    with open_bundle(place.bundle) as session:
        arrays = session.predict(*place.dates)
    assert np.array_equal(place.scene(*place.plain), arrays.probability)
    np.testing.assert_allclose(arrays.probability, expected_of(place.pixels, *place.dates), atol=1e-6)
    assert 0.05 < arrays.mask.mean() < 0.95


def test_a_pair_of_tiffs_gives_the_mask_of_the_arrays(place: Place) -> None:
    mask = place.root / "mask.png"
    assert place.run("predict", place.bundle, *place.plain, "-o", mask) == 0
    with open_bundle(place.bundle) as session:
        assert np.array_equal(mask_of(mask), session.predict(*place.dates).mask)


def test_a_folder_of_tiffs_and_geotiffs_gives_the_masks_of_pairs(place: Place) -> None:
    for name, path in zip("AB", place.rasters, strict=True):
        path.rename(place.root / "plain" / name / "y.tif")
    folders = place.root / "plain/A", place.root / "plain/B"
    assert place.run("predict", place.bundle, *folders, "-o", place.root / "o") == 0
    with open_bundle(place.bundle) as session:
        mask = session.predict(*place.dates).mask
    assert np.array_equal(mask_of(place.root / "o/x.png"), mask)
    assert (read(place.root / "o/y.tif") > 0).mean() == pytest.approx(mask.mean(), abs=1e-3)


def test_series_gives_the_map_of_predict(place: Place) -> None:
    assert place.run("series", place.bundle, *place.rasters, "-o", place.root / "series", "--probability") == 0
    found = read(place.root / "series/x.probability.tif")
    np.testing.assert_allclose(found, place.scene(*place.rasters), atol=1e-6)


def test_batch_gives_the_map_of_predict(place: Place) -> None:
    table = write_table(place.root / "t.csv", "id,before,after", f"one,{place.rasters[0]},{place.rasters[1]}")
    run_batch(place.bundle, table, place.root / "out", BatchOptions(), Recorder().listener())
    place.scene(*place.rasters)
    assert np.array_equal(read(place.root / "out/one.tif"), read(place.root / "scene/change.tif"))


def test_verify_and_info_pass(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"source": "onnx", "name": "net.onnx", "io": "stacked", "output": "classes:3", "changed": [1, 2],
             "parameters": 1234, "resolution": 0.5}  # fmt: skip
    edit(place.bundle, lambda values: values.update(model=model))
    assert place.run("verify", place.bundle) == 0
    assert "cpu-float32: 100.000 % of the golden tiles' pixels agree; encoder and head" in capsys.readouterr().out
    assert place.run("info", place.bundle) == 0
    printed = capsys.readouterr().out
    assert "network net.onnx (ONNX file), 1,234 parameters; both dates as stacked channels, NCHW" in printed
    assert "output classes:3, changed: 1, 2" in printed
    assert f"reads {place.pixels} (band 1" in printed
    assert "trained on 0.5 m per pixel" in printed


def test_bench_measures_tiles_and_a_scene(four: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--seconds", 0.1, "--rounds", 1, "--warm-up", 0, "--batch", 1, "--streams", 1, "--scene", *four.rasters
    assert four.run("--log", "json", "bench", four.bundle, *words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["scene"]["tiles"] == 6


def test_openvino_reads_the_format(tmp_path: Path, place: Place) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    bundle = bands_bundle(tmp_path / "openvino", place.pixels, kind="openvino")
    with open_bundle(bundle) as session:
        found = session.predict(*place.dates).probability
    np.testing.assert_allclose(found, expected_of(place.pixels, *place.dates), atol=1e-6)


def test_nodata_of_either_date_is_no_change(four: Place) -> None:
    for date in four.dates:
        date[date == 0] = 256
    four.dates[1][20:50, 30:90] = 0
    pair = [four.write("holes", name, date, nodata=0) for name, date in zip("AB", four.dates, strict=True)]
    found = four.scene(*pair)
    hole = np.zeros(SIZE, np.bool_)
    hole[20:50, 30:90] = True
    assert np.array_equal(np.isnan(found), hole)
    np.testing.assert_allclose(found[~hole], expected_of(four.pixels, *four.dates)[~hole], atol=1e-6)


def test_bands_and_scaling_are_declared_for_each_band(four: Place) -> None:
    stored = [np.concatenate([date[..., :1], date[..., ::-1]], 2) / 65535 for date in four.dates]  # 5 bands of floats
    pair = [four.write("floats", name, date.astype(np.float32)) for name, date in zip("AB", stored, strict=True)]
    with pytest.raises(InputError, match=r"5 bands, and the network reads 4.*--bands 1,2,3,4"):
        four.scene(*pair)
    with pytest.raises(InputError, match=r"float32.*16-bit samples.*the largest sample, 65535"):
        four.scene(*pair, both=Declared(bands=(5, 4, 3, 2)))
    found = four.scene(*pair, both=Declared(bands=(5, 4, 3, 2), scale=(1, 1, 1, 1), offset=(0,)))
    np.testing.assert_allclose(found, four.scene(*four.rasters), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bands", "1,2,3"), "--bands 1,2,3 names 3 bands, and the network reads 4"),
        (("--bands", "1,2,3,5"), "band 5 was requested"),
        (("--scale", "1,2,3"), "--scale has 3 numbers, and the network reads 4 bands"),
        (("--offset", "1,2"), "--offset has 2 numbers"),
        (("--bands", ",".join("1" * 17)), "expected 1 to 16 numbers"),
    ],
)
def test_options_of_another_number_of_bands_are_usage_errors(
    four: Place, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert four.run("predict", four.bundle, *four.rasters, "-o", four.root / "x.tif", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_8_bit_raster_needs_a_scaling_for_16_bits(four: Place) -> None:
    dates = [(date >> 8).astype(np.uint8) for date in four.dates]
    alpha = {"photometric": "MINISBLACK", "alpha": "no"}
    pair = [four.write("bytes", name, date, **alpha) for name, date in zip("AB", dates, strict=True)]
    with pytest.raises(InputError, match="uint8, and its conversion to 16-bit samples is not declared"):
        four.scene(*pair)
    found = four.scene(*pair, both=Declared(scale=(256 / 65535,)))
    np.testing.assert_allclose(found, expected_of(four.pixels, *four.dates), atol=1e-6)


def test_a_stretch_uses_all_16_bits(four: Place) -> None:
    four.scene(*four.rasters, both=Declared(stretch=(2, 98)))
    with rasterio.open(four.root / "scene/change.tif") as dataset:
        assert "bands 1,2,3,4, scale" in dataset.tags()["MISGNET_BEFORE_SCALING"]


def test_alpha_is_not_counted_as_a_band(four: Place) -> None:
    from rasterio.enums import ColorInterp

    full = np.full((*SIZE, 1), 65535, np.uint16)
    colours = (ColorInterp.gray, *(ColorInterp.undefined,) * 3, ColorInterp.alpha)
    pair = [
        four.write("alpha", name, np.concatenate([date, full], 2), colours=colours)
        for name, date in zip("AB", four.dates, strict=True)
    ]
    assert np.array_equal(four.scene(*pair), four.scene(*four.rasters))


def test_a_shifted_date_is_aligned(place: Place) -> None:
    transform = PLACE["transform"] * Affine.translation(8, 16)
    after = place.write("shifted", "B", place.dates[1], transform=transform)
    found = place.scene(place.rasters[0], after, align=True)
    covered = expected_of(place.pixels, place.dates[0][16:, 8:], place.dates[1][:-16, :-8])
    np.testing.assert_allclose(found[16:, 8:], covered, atol=1e-5)
    assert np.isnan(found[:16]).all() and np.isnan(found[:, :8]).all()


def test_a_quick_look_shows_stretched_bands(place: Place) -> None:
    place.scene(*place.rasters, quicklook=place.root / "look.png")
    with Image.open(place.root / "look.png") as image:
        shown = np.asarray(image)
    before = shown[64 : 64 + SIZE[0], 16 : 16 + SIZE[1]]  # below the texts of the first panel
    if place.pixels.bands == 1:
        assert np.array_equal(before, np.repeat(place.dates[0], 3, axis=2))
    else:
        assert (before == 0).mean() == pytest.approx(0.02, abs=0.01) and (before == 255).mean() > 0.015
        assert np.corrcoef(before[..., 1].ravel(), place.dates[0][..., 1].ravel())[0, 1] > 0.99


def test_arrays_of_another_format_are_refused(four: Place) -> None:
    with open_bundle(four.bundle) as session:
        with pytest.raises(InputError, match=r"uint8 .*it must be uint16 \(H, W, 4\)"):
            session.predict(*(date.astype(np.uint8) for date in four.dates))
        with pytest.raises(InputError, match=r"it must be uint16 \(H, W, 4\)"):
            session.predict(*(date[..., :3] for date in four.dates))


def test_16_bit_images_are_normalised_for_a_float32_graph(four: Place) -> None:
    interface = replace(interface_of(four.pixels), input="float32")
    tiles, _ = images_of(four.pixels, 2, TILE, TILE)
    wanted = (tiles / 65535 - 0.4) / 0.2
    np.testing.assert_allclose(as_input(tiles, interface), np.moveaxis(wanted, 3, 1), atol=1e-5)


# --- golden and evaluation tiles


def resealed(bundle: Path, role: str, path: str) -> Bundle:
    """Opens a bundle after one of its files was written; adds the file to the manifest."""
    manifest = decode_manifest(bundle / MANIFEST)
    roles = {**{file.path: (file.role, file.precision) for file in manifest.files}, path: (role, None)}
    (bundle / MANIFEST).write_bytes(encode(replace(manifest, files=describe_files(bundle, roles))))
    return read_bundle(bundle)


def evaluation(pixels: PixelFormat, labelled: bool) -> EvaluationTiles:
    """Returns tiles with the masks of the bundle's engine as reference and, if ``labelled``, as labels."""
    before, after = images_of(pixels, 2, TILE, TILE, seed=3)
    mask = expected_of(pixels, before, after) > 0.33
    names = np.array(["a@0,0", "b@0,0"], np.str_)
    owned = np.tile(np.array([0, TILE, 0, TILE], np.int64), (2, 1))
    return EvaluationTiles(
        before=before, after=after, label=mask if labelled else np.zeros_like(mask), reference=mask, owned=owned,
        names=names, sources=names,
    )  # fmt: skip


def of_another_form(tiles: Any, part: str) -> dict[str, Any]:
    """Returns the dates with another number of bands, or type of samples."""
    if part == "bands":
        return {"before": tiles.before[..., :3], "after": tiles.after[..., :3]}
    return {"before": tiles.before.astype(np.uint8), "after": tiles.after.astype(np.uint8)}


@pytest.mark.parametrize("part", ["bands", "samples"])
def test_golden_tiles_must_fit_the_manifest(four: Place, part: str) -> None:
    golden = golden_of(read_bundle(four.bundle))
    write_golden(four.bundle / "golden/tiles.npz", dataclasses.replace(golden, **of_another_form(golden, part)))
    with pytest.raises(InputError, match="do not hold tiles of 64 px with 4 x uint16"):
        golden_of(resealed(four.bundle, "golden tiles", "golden/tiles.npz"))


def test_golden_tiles_of_another_size_are_refused(four: Place) -> None:
    dates = images_of(four.pixels, 1, 32, 32)
    write_golden(four.bundle / "golden/tiles.npz", GoldenTiles(*dates, expected_of(four.pixels, *dates)))
    with pytest.raises(InputError, match="do not hold tiles of 64 px"):
        golden_of(resealed(four.bundle, "golden tiles", "golden/tiles.npz"))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_gate_runs_on_evaluation_tiles(place: Place, labelled: bool) -> None:
    write_evaluation(place.bundle / "tiles.npz", evaluation(place.pixels, labelled))
    bundle = resealed(place.bundle, ROLE, "tiles.npz")
    with open_detector(bundle) as (detector, entry, _):
        found = evaluate_on_device(bundle, entry, detector.probability, "a CPU")
    assert found.verdict is not None and found.verdict.passed
    assert found.verdict.rule == ("F1 drop" if labelled else "false alarms and agreement")


@pytest.mark.parametrize("part", ["bands", "samples"])
def test_evaluation_tiles_must_fit_the_manifest(four: Place, part: str) -> None:
    tiles = evaluation(four.pixels, True)
    write_evaluation(four.bundle / "tiles.npz", dataclasses.replace(tiles, **of_another_form(tiles, part)))
    bundle = resealed(four.bundle, ROLE, "tiles.npz")
    with (
        open_detector(bundle) as (detector, entry, _),
        pytest.raises(InputError, match="do not hold N tiles of 64 px with 4 x uint16"),
    ):
        evaluate_on_device(bundle, entry, detector.probability, "a CPU")


@pytest.mark.parametrize(
    ("tile", "pixels", "count"),
    [(256, RGB8, 8), (1024, RGB8, 8), (512, PixelFormat(13, "uint16"), 4), (1024, PixelFormat(16, "uint16"), 1)],
)
def test_files_of_evaluation_tiles_stay_small(tile: int, pixels: PixelFormat, count: int) -> None:
    assert tiles_in_a_file(tile, pixels) == count


@pytest.mark.parametrize("kind", ["rtx", "tensorrt"])
def test_tensorrt_cannot_read_16_bits(tmp_path: Path, kind: EngineKind) -> None:
    with pytest.raises(InputError, match="has a TensorRT engine, which cannot read uint16 input"):
        read_bundle(bands_bundle(tmp_path / "bundle", FORMATS[1], kind=kind))


# --- resolution


@pytest.mark.parametrize(("trained", "warned"), [(0.5, False), (0.25, False), (1.1, True), (0.2, True), (None, False)])
def test_another_resolution_than_trained_on_is_reported(four: Place, trained: float | None, warned: bool) -> None:
    model = ModelEntry("onnx", "net.onnx", resolution=trained)
    bundle, log = read_bundle(four.bundle), Collected()
    bundle = dataclasses.replace(bundle, manifest=replace(bundle.manifest, model=model))
    predict_scene_files(bundle, *four.rasters, four.root / "c.tif", log=log.log)
    assert any("0.5 m per pixel, but the network was trained on" in message for message in log.messages) == warned


@pytest.mark.parametrize("pixels", FORMATS, ids=name_of)
def test_the_mean_is_the_neutral_value(pixels: PixelFormat) -> None:
    assert interface_of(pixels).pixels == pixels

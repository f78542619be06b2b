"""Builds bundles of small foreign networks in ONNX files, and compares their maps with a plain loop over the file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("torch", reason="the build needs the [export] extra")
rasterio = pytest.importorskip("rasterio", reason="maps of GeoTIFFs need rasterio")

from misgnet.synthetic import write_split
from misgnet_export.cli.main import main as export_main
from misgnet_export.pipeline import throughput
from misgnet_runtime.bundle import IMAGENET_MEAN, IMAGENET_STD, Manifest, read_bundle
from misgnet_runtime.cli.main import main as run_main
from misgnet_runtime.inference.throughput import Task, Timing
from support.commands import exit_code
from support.foreign_networks import (
    CHANGED,
    IOS,
    KINDS,
    ForeignNetwork,
    Io,
    export,
    of_single_pairs,
    pairs_of_tiles,
    plain_loop,
    raw_network,
)
from support.scenes import write_raster

TILE = 64
# Kind of output and form of the interface for each way to take both dates; the default tier builds these.
FEW: list[tuple[Io, str, tuple[str, ...]]] = [
    ("pair", "logits2", ()),
    ("pair", "probability2", ("--output-form", "mask")),
    ("stacked", "logit1", ("--input", "float32")),
    ("stacked", "classes:4", ("--output-form", "logits")),
    ("time", "probability1", ()),
]
OTHERS = [pair for pair in itertools.product(IOS, KINDS) if pair not in [(io, kind) for io, kind, _ in FEW]]


@pytest.fixture(scope="module", autouse=True)
def _no_timings() -> Iterator[None]:
    """Replaces the measurement of throughput, which takes most of the time of such a build."""

    def measured(tasks: Sequence[Task], **_: object) -> list[Timing]:
        return [Timing(one.entry.name, one.entry.precision, one.batch, 9, 1, 1, 1, 100.0) for one in tasks]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "measure", measured)
        yield


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes 16 calibration tiles, and 4 to evaluate, in PNG and as GeoTIFFs."""
    folder = tmp_path_factory.mktemp("foreign")
    write_split(folder / "train", 16, 70, TILE)
    write_split(folder / "test", 4, 71, TILE)
    for date in "AB":
        pixels = np.asarray(Image.open(folder / "test" / date / "pair_00000.png"))
        write_raster(folder / f"{date}.tif", pixels.transpose(2, 0, 1))
    return folder


def pairs(tiles: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the tiles to evaluate, (4, T, T, 3) of both dates."""
    before, after = (
        np.stack([np.asarray(Image.open(path)) for path in sorted((tiles / "test" / date).iterdir())]) for date in "AB"
    )
    return before, after


def build(model: onnx.ModelProto, tiles: Path, folder: Path, *options: object) -> Manifest:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    words = [
        "build", path, "--calib", tiles / "train", "--eval", tiles / "test", "--calib-tiles", 16, "--target", "cpu",
        "--observer", "max", "--repair", "never", "--control-minutes", 0, "--max-f1-drop", 5, "-o", folder / "bundle",
    ]  # fmt: skip
    assert exit_code(export_main, "misgnet-export", *words, *options) == 0
    return read_bundle(folder / "bundle").manifest


def described(kind: str) -> list[str]:
    changed = ["--changed", ",".join(map(str, CHANGED))] if kind.startswith("classes") else []
    return ["--normalization", "imagenet", "--model-output", kind, *changed]


def run(*words: object) -> None:
    assert exit_code(run_main, "misgnet-run", *words) == 0


def assert_maps_equal(bundle: Path, tiles: Path, expected: NDArray[np.float64]) -> None:
    """Maps a pair, a folder and a GeoTIFF pair with the float engine; compares each with ``expected`` (4, T, T)."""
    output = bundle.parent
    options = ("--engine", "cpu-float32")
    first = [tiles / "test" / date / "pair_00000.png" for date in "AB"]
    run("predict", bundle, *first, "-o", output / "pair.png", *options)
    assert_mask(output / "pair.png", expected[0])
    run("predict", bundle, tiles / "test" / "A", tiles / "test" / "B", "-o", output / "folder", *options)
    for index, probability in enumerate(expected):
        assert_mask(output / "folder" / f"pair_{index:05d}.png", probability)
    run("predict", bundle, tiles / "A.tif", tiles / "B.tif", "-o", output / "map.tif", *options)
    assert_mask(output / "map.tif", expected[0])
    run("verify", bundle)


def assert_mask(path: Path, probability: NDArray[np.float64]) -> None:
    with rasterio.open(path) as file:
        mask = file.read(1) > 0
    clear = np.abs(probability - 0.5) > 1e-4
    assert np.array_equal(mask[clear], (probability > 0.5)[clear]), path


def assert_telling(expected: NDArray[np.float64]) -> None:
    assert 0.05 < (expected > 0.5).mean() < 0.95 and (np.abs(expected - 0.5) > 1e-4).mean() > 0.99


@pytest.mark.parametrize(
    ("io", "kind", "options"), [*FEW, *(pytest.param(*pair, (), marks=pytest.mark.slow) for pair in OTHERS)]
)
def test_bundle_maps_as_the_file_does(io: Io, kind: str, options: tuple[str, ...], tiles: Path, tmp_path: Path) -> None:
    model = export(ForeignNetwork(io, kind), TILE, torchscript=True)
    manifest = build(model, tiles, tmp_path, *described(kind), *options)
    assert manifest.model is not None and (manifest.model.io, manifest.model.output) == (io, kind)
    expected = plain_loop(model, *pairs(tiles), io, kind, IMAGENET_MEAN, IMAGENET_STD)
    assert_telling(expected)
    assert_maps_equal(tmp_path / "bundle", tiles, expected)


@pytest.mark.slow
def test_file_of_open_cd_builds_with_three_options(tmp_path: Path) -> None:
    tiles, size = tmp_path / "tiles", 512
    write_split(tiles / "train", 4, 72, 2 * size)  # 16 tiles
    write_split(tiles / "test", 2, 73, size)
    model = export(ForeignNetwork("stacked", "logits2"), size, opset=11, dynamic=False, torchscript=True)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 6, size, size]
    options = ("--model-io", "stacked", "--normalization", "imagenet", "--model-output", "logits2")
    manifest = build(model, tiles, tmp_path, *options)
    assert manifest.tile == size and manifest.interface.max_batch == 16
    expected = plain_loop(model, *pairs(tiles), "stacked", "logits2", IMAGENET_MEAN, IMAGENET_STD)
    assert_telling(expected)
    run("predict", tmp_path / "bundle", tiles / "test" / "A", tiles / "test" / "B", "-o", tmp_path / "folder")
    for index, probability in enumerate(expected):
        assert_mask(tmp_path / "folder" / f"pair_{index:05d}.png", probability)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_network_of_single_pairs_builds(target: str, tiles: Path, tmp_path: Path) -> None:
    """The largest batch is 1, and every command works with that."""
    if target == "openvino":
        pytest.importorskip("openvino")
    model = of_single_pairs(
        export(ForeignNetwork("stacked", "logits2"), TILE, opset=11, dynamic=False, torchscript=True)
    )
    manifest = build(model, tiles, tmp_path, *described("logits2"), "--target", target)
    assert manifest.interface.max_batch == 1
    expected = plain_loop(model, *pairs(tiles), "stacked", "logits2", IMAGENET_MEAN, IMAGENET_STD)
    assert_maps_equal(tmp_path / "bundle", tiles, expected)
    run("bench", tmp_path / "bundle", "--seconds", 0.1, "--rounds", 1, "--warm-up", 0)
    assert exit_code(export_main, "misgnet-export", "parity", tmp_path / "bundle", "--eval", tiles / "test") == 0


@pytest.mark.slow
def test_network_of_raw_pixels_with_channels_last_builds(tiles: Path, tmp_path: Path) -> None:
    build(raw_network("uint8", TILE), tiles, tmp_path, "--model-output", "probability1", "--threshold", 0.1)
    before, after = (dates.astype(np.float64) for dates in pairs(tiles))
    expected = np.abs(before - after).mean(-1) / 255 + 0.4  # at 0.5 is the threshold
    assert_telling(expected)
    assert_maps_equal(tmp_path / "bundle", tiles, expected)


@pytest.mark.slow
def test_plan_batches_beyond_the_only_batch_are_refused(tiles: Path, tmp_path: Path, capsys: Any) -> None:
    model = of_single_pairs(export(ForeignNetwork("stacked", "logits2"), TILE, dynamic=False, torchscript=True))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    words = [
        "build", tmp_path / "net.onnx", "--calib", tiles / "train", "--eval", tiles / "test", "-o", tmp_path / "b",
        "--target", "tensorrt", "--on-device", "--plan-batches", "1,4", *described("logits2"),
    ]  # fmt: skip
    assert exit_code(export_main, "misgnet-export", *words) == 2
    assert "--plan-batches has 4, but the network accepts only batches up to 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bands", "samples", "options"),
    [(1, "uint8", ()), (4, "uint16", ()), (13, "uint16", ("--input", "float32")), (4, "uint8", ())],
)
def test_other_bands_and_16_bit_samples_build(
    bands: int, samples: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    """Tiles are GeoTIFFs without labels; the masks' agreement decides."""
    dates = pairs_of_tiles(20, TILE, bands, samples)
    for date, tiles in zip("AB", dates, strict=True):
        for index, pixels in enumerate(tiles):
            folder = tmp_path / ("test" if index < 4 else "train") / date
            write_raster(folder / f"tile_{index:02d}.tif", pixels.transpose(2, 0, 1), photometric="MINISBLACK")
    largest = float(np.iinfo(samples).max)
    model = export(ForeignNetwork("stacked", "logit1", bands), TILE, torchscript=True)
    declared = ("--model-output", "logit1", "--mean", 0.4, "--std", 0.25, "--samples", samples)
    manifest = build(model, tmp_path, tmp_path, *declared, *options)
    assert manifest.interface.pixels.bands == bands and manifest.interface.samples == samples
    expected = plain_loop(
        model, dates[0][:4], dates[1][:4], "stacked", "logit1", (0.4,) * bands, (0.25,) * bands, largest
    )
    assert_telling(expected)
    first = [tmp_path / "test" / date / "tile_00.tif" for date in "AB"]
    run("predict", tmp_path / "bundle", *first, "-o", tmp_path / "map.tif", "--engine", "cpu-float32")
    assert_mask(tmp_path / "map.tif", expected[0])
    run("verify", tmp_path / "bundle")

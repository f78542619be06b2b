"""Tests that a run opens each input raster once, for any outputs, and thresholds each pixel of its map once."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pytest.importorskip("pyogrio")

from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.jobs.series.encode import encode_file
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.jobs.series.series import Listener, run_series
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.watch.service import watch_folder
from misgnet_runtime.raster import writer
from misgnet_runtime.raster.declared import Declared
from support.bundles import FLOAT, INTERFACE, SPLIT_FLOAT, FakeEngine, fake_detector, make_bundle
from support.fake_split import FakeSplit
from support.logs import Collected
from support.scenes import read, scene, write_raster

H, W = 90, 70
INPUTS = "inputs"
STRETCHED = Declared(stretch=(2.0, 98.0))
FAKE = fake_detector(lambda: FakeEngine(INTERFACE))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often rasterio opens each input, by name."""
    counts: Counter[str] = Counter()
    real = rasterio.open

    def counted(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode == "r" and Path(os.fspath(path)).parent.name == INPUTS:
            counts[Path(path).name] += 1
        return real(path, mode, *rest, **options)

    monkeypatch.setattr(rasterio, "open", counted)
    return counts


@pytest.fixture
def thresholded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of pixels of each call of the threshold."""
    sizes: list[int] = []
    real = writer.classify

    def counted(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
        sizes.append(probabilities.size)
        return real(probabilities, threshold)

    monkeypatch.setattr(writer, "classify", counted)
    return sizes


def rasters(folder: Path, names: list[str]) -> list[Path]:
    """Returns the alternating dates of two scenes."""
    pixels = scene(H, W)
    return [write_raster(folder / INPUTS / f"{name}.tif", pixels[number % 2]) for number, name in enumerate(names)]


def all_products(folder: Path, **options: Any) -> SceneOptions:
    return SceneOptions(
        probability=folder / "p.tif",
        vector=folder / "change.gpkg",
        quicklook=folder / "look.png",
        report=folder / "report.html",
        **options,
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("change.tif", {}), ("change.png", {}), ("change.tif", {"cog": True}), ("change.tif", {"align": True})],
    ids=["raster", "mask", "cog", "aligned"],
)
def test_pair_with_all_outputs_is_opened_and_thresholded_once(
    name: str, options: dict[str, Any], tmp_path: Path, opened: Counter[str], thresholded: list[int]
) -> None:
    bundle, dates = make_bundle(tmp_path / "bundle", engines=[FLOAT]), rasters(tmp_path, ["before", "after"])
    out = tmp_path / "out"
    asked = all_products(out, both=STRETCHED, **options)
    report = predict_scene_files(bundle, dates[0], dates[1], out / name, asked, opener=FAKE)
    assert (opened["before.tif"], opened["after.tif"]) == (1, 1)
    assert sum(thresholded) == H * W
    assert report.polygons and sorted(path.name for path in out.iterdir()) == sorted([
        name, "p.tif", "change.gpkg", "look.png", "report.html",
    ])  # fmt: skip


def test_resumed_run_opens_each_raster_once(
    tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only the products remain to be written."""
    bundle, dates = make_bundle(tmp_path / "bundle", engines=[FLOAT]), rasters(tmp_path, ["before", "after"])
    asked, change = all_products(tmp_path / "out"), tmp_path / "out" / "change.tif"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("misgnet_runtime.raster.quicklook.write_quicklook", full)
        with pytest.raises(Exception, match="No space left"):
            predict_scene_files(bundle, *dates, change, asked, opener=FAKE)
    opened.clear()
    assert predict_scene_files(bundle, *dates, change, asked, opener=FAKE).resumed == H
    assert (opened["before.tif"], opened["after.tif"]) == (1, 1)


def test_encoding_opens_its_raster_once(tmp_path: Path, opened: Counter[str]) -> None:
    bundle, (date,) = make_bundle(tmp_path / "bundle", engines=[SPLIT_FLOAT]), rasters(tmp_path, ["date"])
    options = SceneOptions(before=STRETCHED)
    encode_file(bundle, date, tmp_path / "date.features", options, opener=FakeSplit().opener())
    assert opened["date.tif"] == 1


def series(root: Path, options: SeriesOptions) -> None:
    bundle, (first, *later) = make_bundle(root / "bundle", engines=[SPLIT_FLOAT]), rasters(root, list("abcd"))
    listener = Listener(Collected().log, lambda *_: None)
    run_series(
        bundle, first, later, root / "out", options=options, listener=listener, opener=FakeSplit().opener()
    )  # fmt: skip


def test_series_opens_its_reference_once_and_dates_to_inspect_and_to_run(
    tmp_path: Path, opened: Counter[str], thresholded: list[int]
) -> None:
    options = SeriesOptions(scene=SceneOptions(both=STRETCHED), quicklook=True, vector=True)
    series(tmp_path, options)
    assert opened == {"a.tif": 1, "b.tif": 2, "c.tif": 2, "d.tif": 2}
    assert sum(thresholded) == 3 * H * W
    assert read(tmp_path / "out" / "c.tif").max() in (0, 1)


def test_consecutive_series_opens_a_pair_once_to_inspect_and_once_to_run(tmp_path: Path, opened: Counter[str]) -> None:
    series(tmp_path, SeriesOptions(consecutive=True))
    assert opened == {"a.tif": 1, "b.tif": 4, "c.tif": 4, "d.tif": 2}


def test_watcher_opens_a_raster_for_its_header_and_to_run(tmp_path: Path, opened: Counter[str]) -> None:
    """A pair refused by its headers is never read completely: headers come first, then both digests, then the run."""
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    rasters(tmp_path, ["s_before", "s_after"])
    options = WatchOptions(settle=0, once=True, probability=True, quicklook=True)
    report = watch_folder(bundle, tmp_path / INPUTS, tmp_path / "out", options, Collected().log)
    assert report.done == 1
    assert opened == {"s_before.tif": 2, "s_after.tif": 2}

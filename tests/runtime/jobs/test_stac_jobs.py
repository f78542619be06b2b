"""Tests STAC Items in series, batches and on the command line: the maps are those of the files themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pytest.importorskip("pystac", reason="STAC Items of results need the [stac] extra")

from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.batch import run as batch_run
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.jobs.batch.run import BatchReport, run_batch
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.jobs.series.series import Listener, run_series
from misgnet_runtime.raster.declared import Declared
from support.batches import BatchWorkspace, InProcess, Recorder, results
from support.bundles import SPLIT_FLOAT, make_bundle
from support.commands import exit_code
from support.fake_split import FakeSplit
from support.logs import Collected
from support.scenes import read, scene, write_raster
from support.stac import COLOURS, single_band_assets, three_bands, write_item

STATED = {"data_type": "uint8"}


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Writes two dates, each as one file with an item, and as one file for each band with an item."""
    folder.mkdir(exist_ok=True)
    for name, pixels, year in zip(("before", "after"), scene(80, 100), (2023, 2024), strict=True):
        write_raster(folder / f"{name}.tif", pixels)
        for colour, band in zip(COLOURS, pixels, strict=True):
            write_raster(folder / f"{name}_{colour}.tif", band[None])
        assets = single_band_assets(**STATED)
        for asset in assets.values():
            asset["href"] = asset["href"].replace("./", f"./{name}_")
        assets["visual"] = three_bands(f"{name}.tif", **STATED)
        write_item(folder / f"{name}.json", assets, f"{year}-06-01T10:20:31Z")
    return folder / "before.json", folder / "after.json"


@pytest.mark.parametrize("consecutive", [False, True])
def test_a_series_of_items_has_the_maps_of_the_files(tmp_path: Path, consecutive: bool) -> None:
    bundle, split = make_bundle(tmp_path / "bundle", engines=[SPLIT_FLOAT]), FakeSplit()
    before, after = write_pair(tmp_path / "in")
    logged, done = Collected(), list[str]()

    def run(folder: str, *dates: Path, stac: bool, assets: tuple[str, ...] | None = None) -> list[str]:
        done.clear()
        scene_options = SceneOptions(both=Declared(assets=assets))
        options = SeriesOptions(consecutive=consecutive, stac_item=stac, scene=scene_options)
        listener = Listener(logged.log, lambda path, _: done.append(path.name))
        run_series(
            bundle, dates[0], dates[1:], tmp_path / folder, options=options, listener=listener, opener=split.opener()
        )  # fmt: skip
        return done

    assert run("items", before, after, stac=True, assets=COLOURS) == ["after.tif"]
    assert any("(assets red,green,blue): bands red, green, blue" in message for message in logged.messages)
    assert json.loads((tmp_path / "items/after.json").read_text())["properties"]["start_datetime"].startswith("2023")
    run("files", before.with_suffix(".tif"), after.with_suffix(".tif"), stac=False)
    assert np.array_equal(read(tmp_path / "items/after.tif"), read(tmp_path / "files/after.tif"))
    assert run("items", before, after, stac=True, assets=COLOURS) == []
    later = json.loads(after.read_text())
    later["properties"]["datetime"] = "2025-06-01T10:20:31Z"
    after.write_text(json.dumps(later))
    with pytest.raises(UsageError, match="exists"):
        run("items", before, after, stac=True, assets=COLOURS)


def test_a_batch_takes_items_and_notices_changes_of_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "ProcessPool", InProcess)
    workspace = BatchWorkspace(tmp_path, make_bundle(tmp_path / "bundle"), tmp_path / "out")
    write_pair(tmp_path / "in")
    columns = {"assets": '"red,green,blue"', "after_assets": "visual", "stac_item": "items/a.json"}
    workspace.rows = [f"a,in/before.json,in/after.json,{','.join(columns.values())}", "b,in/before.tif,in/after.tif,,,"]

    def run() -> BatchReport:
        return run_batch(
            workspace.bundle, workspace.table(*columns), workspace.out, BatchOptions(), Recorder().listener()
        )

    assert (run().done, run().earlier) == (2, 2)
    assert np.array_equal(read(workspace.out / "a.tif"), read(workspace.out / "b.tif"))
    assert results(workspace)["a"]["products"] == "items/a.json"
    item = json.loads((workspace.out / "items/a.json").read_text())
    assert item["assets"]["change"]["href"] == "../a.tif"
    write_raster(tmp_path / "in/before_green.tif", scene(80, 100)[1][:1])
    assert run().earlier == 1


def test_predict_takes_items(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    before, after = write_pair(tmp_path / "in")

    def predict(*dates: Path, output: str, more: str = "") -> int:
        words = ("misgnet-run", "predict", bundle, *dates, "-o", tmp_path / output, *more.split())
        return exit_code(cli.main, *words)

    item = tmp_path / "change.json"
    some = "--assets visual --after-assets red,green,blue"
    assert predict(before, after, output="change.tif", more=f"{some} --stac-item {item}") == 0
    assert predict(before, after, output="change.png", more=some) == 0
    assert json.loads(item.read_text())["id"] == "change"
    assert predict(before, after, output="x.tif", more="--assets visual --after-assets nir") == 4
    files = before.with_suffix(".tif"), after.with_suffix(".tif")
    assert predict(*files, output="x.tif", more="--assets visual") == 2
    assert predict(before, after, output="x.tif", more="--assets red,,") == 2
    assert not (tmp_path / "x.tif").exists()

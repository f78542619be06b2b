"""Operations that run a bundle on images, folders, scenes, series, batches and a watched folder."""

from __future__ import annotations

import csv
from pathlib import Path

from looking import State, files

from support.bundles import INT8, SPLIT_FLOAT, images, make_bundle, write_image


def _pair(root: Path, name: str = "", size: int = 100) -> None:
    for date, pixels in zip(("before", "after"), images(size, 64, seed=len(name)), strict=True):
        write_image(root / "in" / date / f"{name}.png", pixels)


def image(root: Path) -> None:
    make_bundle(root / "bundle")
    _pair(root, "a")
    write_image(root / "out/mask.png", images(8, 8)[0])


def run_image(root: Path) -> None:
    from misgnet_runtime.jobs.image import predict_files

    predict_files(
        root / "bundle",
        root / "in/before/a.png",
        root / "in/after/a.png",
        root / "out/mask.png",
        engine="cpu",
        force=True,
    )


def folders(root: Path) -> None:
    make_bundle(root / "bundle")
    for name in ("a", "bb", "ccc"):
        _pair(root, name)


def run_folders(root: Path) -> None:
    from misgnet_runtime.engines.options import ExecutionOptions
    from misgnet_runtime.jobs.folder import predict_folders
    from misgnet_runtime.jobs.scene.options import SceneOptions

    options = SceneOptions(engine="cpu", execution=ExecutionOptions(batch=1))
    predict_folders(root / "bundle", root / "in/before", root / "in/after", root / "out", options)


_PRODUCTS = {
    "probability": "p.tif",
    "vector": "v.gpkg",
    "quicklook": "q.png",
    "report": "r.html",
    "stac_item": "i.json",
}


def _rasters(root: Path, *names: str, height: int = 150) -> None:
    import rasterio

    from support.scenes import scene, write_raster

    for seed, name in enumerate(names):
        before, after = scene(height, 90, seed // 2)
        path = write_raster(root / "in" / f"{name}.tif", after if seed % 2 else before)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=f"2026:05:{seed + 1:02} 10:20:31")


def scene(root: Path) -> None:
    make_bundle(root / "bundle")
    _rasters(root, "before", "after")
    (root / "out").mkdir()
    for name in ("change.tif", *_PRODUCTS.values()):
        (root / "out" / name).write_bytes(b"old")


def run_scene(root: Path) -> None:
    from misgnet_runtime.engines.options import ExecutionOptions
    from misgnet_runtime.jobs.scene.options import SceneOptions
    from misgnet_runtime.jobs.scene.predict import predict_scene_files

    options = SceneOptions(
        engine="cpu",
        execution=ExecutionOptions(batch=1),
        force=True,
        **{name: root / "out" / file for name, file in _PRODUCTS.items()},  # type: ignore[arg-type]
    )
    paths = root / "in/before.tif", root / "in/after.tif", root / "out/change.tif"
    predict_scene_files(root / "bundle", *paths, options)


def series(root: Path) -> None:
    make_bundle(root / "bundle", engines=[SPLIT_FLOAT, INT8])
    _rasters(root, "one", "two", "three")


def run_series(root: Path) -> None:
    from misgnet_runtime.engines.options import ExecutionOptions
    from misgnet_runtime.jobs.scene.options import SceneOptions
    from misgnet_runtime.jobs.series.options import SeriesOptions
    from misgnet_runtime.jobs.series.series import Listener, run_series
    from misgnet_runtime.log import collector

    options = SeriesOptions(scene=SceneOptions(engine="cpu-float32", execution=ExecutionOptions(batch=1)))
    dates = [root / f"in/{name}.tif" for name in ("two", "three")]
    listener = Listener(collector()[0], lambda *_: None)
    run_series(root / "bundle", root / "in/one.tif", dates, root / "out", options=options, listener=listener)


def batch(root: Path) -> None:
    make_bundle(root / "bundle")
    _rasters(root, "a1", "a2", "b1", "b2", height=80)
    rows = [
        "id,before,after,probability",
        "a,in/a1.tif,in/a2.tif,yes",
        "b,in/b1.tif,in/b2.tif,no",
        "c,in/a1.tif,in/none.tif,no",
    ]
    (root / "scenes.csv").write_text("\n".join([*rows, ""]))


def run_batch(root: Path) -> None:
    """Runs in this process, because faults are not injected into separate workers. Scene c fails as expected."""
    from misgnet_runtime.errors import StorageError
    from misgnet_runtime.jobs.batch import run as batch_run
    from misgnet_runtime.jobs.batch.options import BatchOptions
    from support.batches import InProcess, Recorder

    batch_run.ProcessPool = InProcess  # type: ignore[assignment, misc]
    options = BatchOptions(words={"engine": "cpu", "batch": "1"})
    report = batch_run.run_batch(root / "bundle", root / "scenes.csv", root / "out", options, Recorder().listener())
    if set(report.failed) != {"c"}:
        raise StorageError(str(report.failed))


def read_batch(root: Path) -> State:
    table = root / "out/results.csv"
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    # The table of an interrupted run correctly lists waiting and failed scenes, so only done scenes are compared.
    done = {row["id"]: row["changed_share"] for row in rows if row["status"] == "done"}
    assert all((root / "out" / f"{name}.tif").exists() for name in done), "a scene that is done has no change raster"
    return {**files("out/*.tif")(root), **{f"row {name}": share for name, share in done.items()}}


def watch(root: Path) -> None:
    make_bundle(root / "bundle")
    _rasters(root, "a_before", "a_after", height=80)


def run_watch(root: Path) -> None:
    from misgnet_runtime.errors import StorageError
    from misgnet_runtime.jobs.watch.options import WatchOptions
    from misgnet_runtime.jobs.watch.service import watch_folder
    from misgnet_runtime.log import current

    report = watch_folder(root / "bundle", root / "in", root / "out", WatchOptions(once=True, settle=0.0), current())
    if report.failed:
        raise StorageError("the pair failed")

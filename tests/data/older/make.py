# mypy: ignore-errors
# ruff: noqa: I001 - the modules are those of that commit
"""Writes files of an older version, commit 060c2ba, for tests/test_older_versions.py.

They are a bundle, a tuning, a checkpoint's header, and the progress of interrupted runs. To write them again, check
out that commit and install it in its own virtual environment; then::

    rm -r tests/data/older/made
    PYTHONPATH=OLDER/tests OLDER/.venv/bin/python tests/data/older/make.py tests/data/older/made

All pixels come from the synthetic generator, with the seeds below. All input files have the same modification time.
"""

# ruff: noqa: I001 - modules of an earlier version

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from misgnet_runtime.batch import record as batch
from misgnet_runtime.batch.table import Shard
from misgnet_runtime.folders import predict_folders
from misgnet_runtime.scenes.options import SceneOptions
from misgnet_runtime.scenes.predict import predict_scene_files
from misgnet_runtime.watch import work
from misgnet_runtime.watch.options import WatchOptions
from misgnet_runtime.watch.service import watch_folder
from PIL import Image

import bundles
from ends import in_child
from misgnet.datasets import PrepareOptions, prepare
from misgnet.synthetic.pairs import make_pair
from misgnet_runtime.log import current

MODIFIED = 1_700_000_000  # seconds since 1970; no raster has a reference system: its text depends on PROJ's version
SCENE = SceneOptions(engine="cpu-float32", overlap=16, batch=1, streams=1, tuned=False)


def pixels(seed: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    """Returns both dates, uint8 (H, W, 3), and the label, uint8 (H, W); few distinct values keep the files small."""
    made = make_pair(seed, 256)
    dates = [date[:height, :width] & 0xE0 for date in (made.before, made.after)]
    return [*dates, 255 * made.label[:height, :width].astype(np.uint8)]


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, optimize=True)
    os.utime(path, (MODIFIED, MODIFIED))


def write_raster(path: Path, image: np.ndarray) -> None:
    height, width, count = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype="uint8", compress="deflate",
        transform=rasterio.Affine(0.5, 0, 0, 0, -0.5, 0),
    ) as dataset:  # fmt: skip
        dataset.write(image.transpose(2, 0, 1))


def write_bundle(root: Path) -> None:
    """Writes a bundle whose graphs output the mean absolute difference of the dates."""
    bundles.images = lambda *_: np.array([pixels(0)[:2]]).swapaxes(0, 1)  # for its golden tiles
    bundles.make_bundle(root, engines=(bundles.SPLIT_FLOAT, bundles.INT8))
    bundles.edit(root, lambda manifest: manifest.update(threshold=0.15))


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(body: Callable[[], object]) -> None:
    assert in_child(body) == signal.SIGKILL


def kill_at(count: int) -> Callable[[int, int], None]:
    """Returns a progress callback that kills the process after ``count`` steps."""
    return lambda done, _: kill() if done == count else None


def leave_scene(root: Path, bundle: Path) -> None:
    for name, date in zip(("before.tif", "after.tif"), pixels(1, 192), strict=False):
        write_raster(root / name, date)
    rasters = root / "before.tif", root / "after.tif"
    killed(lambda: predict_scene_files(bundle, *rasters, root / "change.tif", SCENE, progress=kill_at(2)))


def leave_folder(root: Path, bundle: Path) -> None:
    for seed, name in enumerate("abc", 2):
        for part, date in zip("AB", pixels(seed), strict=False):
            write_image(root / part / f"{name}.png", date)
    masks = root / "A", root / "B", root / "masks"
    killed(lambda: predict_folders(bundle, *masks, engine="cpu-float32", batch=1, tuned=False, progress=kill_at(2)))


def leave_watcher(root: Path, bundle: Path) -> None:
    """Leaves a watcher's output with two finished pairs, and a third whose results are complete but not renamed yet."""

    def watch() -> None:
        watch_folder(bundle, root / "in", root / "out", WatchOptions(scene=SCENE, settle=0, once=True), current())

    for seed, name in enumerate("abc", 5):
        for date, image in zip(("before", "after"), pixels(seed), strict=False):
            write_image(root / "in" / f"{name}_{date}.png", image)
        if name == "b":
            watch()
    work.Worker._finish = kill
    killed(watch)


def leave_batch(root: Path) -> None:
    root.mkdir()
    time, digest = datetime(2026, 1, 1, tzinfo=timezone.utc), "0" * 64
    with batch.open_record(root, Shard()) as record:
        record.add(batch.Started(time, batch.FORMAT, digest))
        record.add(batch.Begun(time, "a", digest, ("a.tif",)))
        figures = {"changed_share": 0.5, "nodata_share": 0.0, "unread": [0, 0], "seconds": 1.0, "engine": "cpu-float32"}
        record.add(batch.Done(time, "a", digest, ("a.tif",), 1, "here", figures))
        record.add(batch.Begun(time, "b", digest, ("b.tif",)))
        record.add(batch.Failed(time, "b", 3, "the reason"))
        record.add(batch.Begun(time, "c", digest, ("c.tif",)))


def leave_dataset(root: Path) -> None:
    for seed, name in enumerate(("train/a", "train/b", "val/c", "test/d"), 8):
        for part, image in zip(("A", "B", "label"), pixels(seed), strict=True):
            write_image(root / "source" / Path(name).parent / part / f"{Path(name).name}.png", image)
    options = PrepareOptions(tile=64)
    killed(lambda: prepare("levir", root / "source", root / "tiles", options, kill_at(2)))


def tune(target: Path, bundle: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("misgnet-run"), "tune", bundle, "--engine", "cpu-float32"]
        subprocess.run([*command, "--minutes", "0.05"], env={**os.environ, "MISGNET_CACHE": folder}, check=True)
        (made,) = Path(folder).rglob("*.json")
        shutil.copy(made, target)


def train(target: Path) -> None:
    """Keeps only the header of a trained checkpoint, because its numbers take 40 MB."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, split in enumerate(("train", "val")):
            for part, image in zip(("A", "B", "label"), pixels(number), strict=True):
                write_image(root / "tiles" / split / part / "a.png", image)
        command = [Path(sys.executable).with_name("misgnet"), "train", root / "tiles", "-o", root / "run"]
        subprocess.run([*command, "--steps", "1", "--batch", "1", "--tile", "64", "--device", "cpu"], check=True)
        with (root / "run/best.safetensors").open("rb") as checkpoint:
            size = checkpoint.read(8)
            header = size + checkpoint.read(int.from_bytes(size, "little"))
        target.write_bytes(gzip.compress(header, mtime=0))


if __name__ == "__main__":
    made = Path(sys.argv[1])
    write_bundle(made / "bundle")
    (made / "scene").mkdir()
    leave_scene(made / "scene", made / "bundle")
    leave_folder(made / "folder", made / "bundle")
    leave_watcher(made / "watch", made / "bundle")
    leave_batch(made / "batch")
    leave_dataset(made / "dataset")
    tune(made / "tuning.json", made / "bundle")
    train(made / "checkpoint.safetensors.head.gz")

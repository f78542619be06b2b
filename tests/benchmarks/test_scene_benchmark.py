"""Tests of ``benchmarks/scene_throughput.py`` and ``scene_pairs.py``: generated pairs, alternation and table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from benchmarks import scene_throughput
from benchmarks.scene_pairs import cells, make_label, make_scene
from benchmarks.scene_throughput import Bench, Trial, table
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError
from misgnet_runtime.measure.bench.scene import SceneRun, SceneTask
from support.bundles import FLOAT, INT8, images, make_bundle, write_image


def test_cells_cover_a_square_exactly_once() -> None:
    count = np.zeros((50, 50), int)
    for top, left, height, width in cells(50, 16, 24):
        count[top : top + height, left : left + width] += 1
    assert (count == 1).all()


def test_a_scene_is_filled_with_the_images_of_a_folder(tmp_path: Path) -> None:
    pixels = images(3, 32, 48)[0]
    for number, image in enumerate(pixels):
        write_image(tmp_path / "A" / f"{number}.png", image)
    with rasterio.open(make_scene(tmp_path / "scene.tif", tmp_path / "A", 100)) as dataset:
        found = dataset.read().transpose(1, 2, 0)
        assert (dataset.crs.to_epsg(), dataset.res, dataset.block_shapes[0]) == (32633, (0.5, 0.5), (512, 512))
    np.testing.assert_array_equal(found[:32, :48], pixels[0])
    np.testing.assert_array_equal(found[:32, 96:], pixels[2][:, :4])
    np.testing.assert_array_equal(found[32:64, :48], pixels[0])
    np.testing.assert_array_equal(found[96:, 48:96], pixels[1][:4])


def test_the_label_of_a_scene_has_the_places_of_its_images(tmp_path: Path) -> None:
    changed = np.zeros((2, 32, 48), np.uint8)
    changed[1, 4, 5] = 255
    for number, label in enumerate(changed):
        write_image(tmp_path / f"{number}.png", label)
    found = make_label(tmp_path, 100)
    assert found.dtype == bool and found.shape == (100, 100)
    assert np.argwhere(found).tolist() == [[4, 53], [36, 5], [68, 53]]


def test_images_of_several_sizes_or_none_are_refused(tmp_path: Path) -> None:
    for number, width in enumerate((32, 48)):
        write_image(tmp_path / "A" / f"{number}.png", images(32, width)[0])
    for folder in ("A", "nothing"):
        with pytest.raises(InputError, match=r"PNG images? of"):
            make_scene(tmp_path / "scene.tif", tmp_path / folder, 64)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    root = make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8])
    return Bench.of(scene_throughput.parser().parse_args([str(root), "A", "B", "--streams", "3", "--threads", "2"]))


def test_the_engine_alone_is_measured_before_and_after_each_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([10.0, 12.0, 16.0, 20.0, 20.0])
    tasks: list[SceneTask] = []

    def ran(task: SceneTask) -> SceneRun:
        tasks.append(task)
        return SceneRun(90, 10.0, 300 << 20)

    monkeypatch.setattr(Bench, "engine_speed", lambda _: next(speeds))
    monkeypatch.setattr(scene_throughput, "run_scene", ran)
    pairs = {side: (Path(f"{side}_a.tif"), Path(f"{side}_b.tif")) for side in (4, 16)}
    found = list(bench.trials(pairs, 2, Path("out")))
    assert [trial.side for trial in found] == [4, 16, 4, 16]
    assert [trial.engine_pairs_per_second for trial in found] == [11.0, 14.0, 18.0, 20.0]
    assert found[3] == Trial(
        side=16, tiles=90, seconds=10.0, tiles_per_second=9.0, engine_pairs_per_second=20.0, share=0.45, peak_mib=300.0
    )
    assert {(task.engine, task.execution) for task in tasks} == {
        ("cpu", ExecutionOptions(threads=2, streams=3, batch=1))
    }
    assert len({task.output for task in tasks}) == 4


def test_the_table_compares_memory() -> None:
    peaks = (4, 200.0), (16, 210.0), (16, 220.0)
    trials = [
        vars(
            Trial(
                side=side,
                tiles=90,
                seconds=10.0,
                tiles_per_second=9.0,
                engine_pairs_per_second=10.0,
                share=0.9,
                peak_mib=peak,
            )
        )
        for side, peak in peaks
    ]
    machine = {"processor": "a processor", "cores": 2, "memory_gib": 8.0, "features": []}
    report = {"machine": machine, "engine": "cpu", "trials": trials}
    report["settings"] = {"batch": 4, "streams": 1, "threads": 2}
    shown = table(report)
    assert "| 16 | 90 | 10.0 | 9.00 | 10.00 | 0.900 | 220 |" in shown
    assert shown.endswith("memory of 16 px over that of 4 px: 1.100")

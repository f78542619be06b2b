"""Many scenes of one table: nothing is lost or done twice, whoever is killed; here and on a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from support.batches import ray_of_two

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.cli import app as console
from misgnet_runtime.cli.main import app
from misgnet_runtime.errors import ScenesFailed, UnavailableError, UsageError
from misgnet_runtime.jobs.batch import run as batch_run
from misgnet_runtime.jobs.batch.ray import Slots, ray_slots
from misgnet_runtime.jobs.batch.run import BatchReport, runs_on_gpu
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.jobs.batch.worker import Setup, Task, work_folder
from support.batches import InProcess, Place, Told, opened, results
from support.bundles import edit, make_bundle
from support.commands import exit_code
from support.paths import ROOT
from support.scenes import read, scene, write_raster


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, make_bundle(tmp_path / "bundle"), tmp_path / "out")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[InProcess]:
    pools: list[InProcess] = []

    def pool(setup: Setup, size: int) -> InProcess:
        pools.append(InProcess(setup, size))
        return pools[-1]

    monkeypatch.setattr(batch_run, "ProcessPool", pool)
    return pools


def test_one_bad_scene_stops_no_other_and_the_same_command_goes_on(place: Place, here: list[InProcess]) -> None:
    for name in ("a", "b", "c", "d"):
        place.add(name)
    (place.root / "in/b_after.tif").unlink()
    (place.root / "in/c_before.tif").write_bytes(b"no GeoTIFF")
    told = Told()
    report = place.run(told)
    assert (report.done, report.earlier, list(report.failed)) == (2, 0, ["b", "c"])
    assert "is no file" in told.failed["b"] and "GeoTIFF" in told.failed["c"]
    rows = results(place)
    assert [row["status"] for row in rows.values()] == ["done", "failed", "failed", "done"]
    assert rows["a"]["output"] == "a.tif" and float(rows["a"]["changed_share"]) > 0.1 and rows["a"]["height"] == "80"
    assert rows["b"]["message"] == told.failed["b"] and rows["b"]["changed_share"] == ""
    with pytest.raises(ScenesFailed, match=r"2 of 4 scenes failed: b \(the after raster .* is no file\), c "):
        report.raise_failed()
    assert not (place.out / ".batch").exists()

    bytes_before = (place.out / "a.tif").stat().st_mtime_ns
    rows_before, place.rows = place.rows, []
    for name in ("a", "b", "c", "d", "e"):
        if name in ("b", "c", "e"):
            place.add(name)
    place.rows = [*rows_before, place.rows[-1]]
    report = place.run(told)
    assert here[-1].given == ["b", "c", "e"] and (report.done, report.earlier, report.failed) == (5, 2, {})
    assert (place.out / "a.tif").stat().st_mtime_ns == bytes_before
    for name in "abcde":
        assert (read(place.out / f"{name}.tif") == place.alone(name)).all()
    report.raise_failed()
    assert len(here) == 2 and place.run().earlier == 5 and len(here) == 2, "nothing is left to open an engine for"


def test_changed_files_and_options_are_done_again(place: Place, here: list[InProcess]) -> None:
    place.add("a")
    place.add("b")
    place.run()
    rows, place.rows = place.rows, []
    place.add("a", 90)
    place.rows = rows
    place.run()
    assert here[-1].given == ["a"] and read(place.out / "a.tif").shape == (90, 100)
    place.run(words={"quicklook": "yes"})
    assert here[-1].given == ["a", "b"] and (place.out / "b.png").exists()
    (place.out / "b.png").unlink()
    place.run(words={"quicklook": "yes"})
    assert here[-1].given == ["b"] and (place.out / "b.png").exists()


def test_another_bundle_is_refused_but_with_force(place: Place, here: list[InProcess]) -> None:
    place.add("a")
    place.run()
    edit(place.bundle, lambda values: values.update(bundle_version=2))
    with pytest.raises(UsageError, match=r"holds the results of the bundle .* with --force"):
        place.run()
    assert place.run(words={"force": "yes"}).done == 1 and here[-1].given == ["a"]


def test_shares_make_one_table_in_the_end(place: Place, here: list[InProcess]) -> None:
    for name in "abcde":
        place.add(name)
    for index in range(2):
        place.run(shard=Shard(index, 2))
    assert [pool.given for pool in here] == [["a", "c", "e"], ["b", "d"]]
    assert list(results(place, "results-1-of-2.csv")) == ["b", "d"]
    report = place.run()
    assert (report.done, report.earlier) == (5, 5) and list(results(place)) == list("abcde")


def test_a_run_that_is_interrupted_writes_what_it_has(
    place: Place, here: list[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.add("a")
    place.add("b")
    given = InProcess.give

    def give(self: InProcess, place: int, task: Task) -> None:
        if task.scene.id == "b":
            os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does
        given(self, place, task)

    monkeypatch.setattr(InProcess, "give", give)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        place.run()
    assert [row["status"] for row in results(place).values()] == ["done", "waiting"]
    monkeypatch.setattr(InProcess, "give", given)
    assert place.run().done == 2 and here[-1].given == ["b"]


def test_parquet_beside_csv(place: Place, here: list[InProcess]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    place.add("a")
    place.add("b")
    (place.root / "in/b_after.tif").unlink()
    assert [path.name for path in place.run().tables] == ["results.csv", "results.parquet"]
    rows = parquet.read_table(place.out / "results.parquet").to_pylist()
    assert [(row["id"], row["status"], row["height"]) for row in rows] == [("a", "done", 80), ("b", "failed", None)]
    assert isinstance(rows[0]["changed_share"], float)


# Processes that are killed


def kill_the_holder(folder: Path, after: Callable[[], bool]) -> Thread:
    """End the process that holds the scene of ``folder``, as soon as ``after``."""

    def kill() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            for link in Path("/proc").glob("[0-9]*/fd/*") if after() else ():
                with suppress(OSError):
                    if link.readlink() == folder / "lock":
                        os.kill(int(link.parts[2]), signal.SIGKILL)
                        return
            time.sleep(0.01)

    thread = Thread(target=kill, daemon=True)
    thread.start()
    return thread


def forty(place: Place) -> None:
    """37 scenes, of them one that takes a while, and three that are broken each in its own way."""
    for index in range(40):
        place.add(f"s{index}", *((1300, 900) if index == 9 else (60 + index, 64)))
    (place.root / "in/s3_before.tif").write_bytes(b"no GeoTIFF")
    (place.root / "in/s20_after.tif").unlink()
    write_raster(place.root / "in/s33_after.tif", scene(60, 60)[1])


def check_forty(place: Place, report: BatchReport, told: Told) -> None:
    assert (report.done, sorted(report.failed)) == (37, ["s20", "s3", "s33"])
    for name, words in (("s3", "GeoTIFF"), ("s20", "no file"), ("s33", "differ in size")):
        assert words in report.failed[name]
    assert any(line.startswith("s9: ") and "it is tried again" in line for line in told.logged.warnings)
    rows = results(place)
    assert rows["s9"]["attempts"] == "2" and {rows[f"s{i}"]["status"] for i in range(40) if i not in (3, 20, 33)} == {
        "done"
    }
    for name in ("s0", "s9", "s39"):
        assert (read(place.out / f"{name}.tif") == place.alone(name)).all()
    outputs = sorted(path.stem for path in place.out.glob("*.tif"))
    assert outputs == sorted(f"s{i}" for i in range(40) if i not in (3, 20, 33))


def killed_in_the_middle(place: Place, told: Told, **options: Any) -> BatchReport:
    folder = work_folder(place.out, "s9")
    journal = folder / ".output.tif.progress/journal.jsonl"
    thread = kill_the_holder(folder, lambda: journal.exists() and b'"type":"band"' in journal.read_bytes())
    report = place.run(told, **options)
    thread.join()
    return report


def test_forty_scenes_by_two_processes_of_which_one_is_killed(place: Place) -> None:
    forty(place)
    told = Told()
    report = killed_in_the_middle(place, told, workers=2, words={"batch": "1"})
    assert "s9: its worker was killed by SIGKILL; out of memory, maybe; it is tried again" in told.logged.warnings
    check_forty(place, report, told)
    assert int(results(place)["s9"]["resumed"]) > 0, "what the killed worker had on the disk is not computed again"


def test_workers_end_with_a_driver_that_is_killed(place: Place) -> None:
    place.add("big", 2000, 1500)
    command = [sys.executable, "-m", "misgnet_runtime.cli", "batch", str(place.bundle), str(place.table())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    driver = subprocess.Popen([*command, "-o", str(place.out)], env=environment, stderr=subprocess.DEVNULL)
    lock, holders = work_folder(place.out, "big") / "lock", list[Path]()
    end = time.monotonic() + 30
    while not holders and time.monotonic() < end:
        time.sleep(0.02)
        holders = holders_of(lock)
    driver.kill()
    driver.wait()
    assert len(holders) == 1
    while (left := holders_of(lock)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left
    with opened(place.out) as record:
        assert record.begun["big"] == 1


def holders_of(path: Path) -> list[Path]:
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink() == path:
                found.append(link.parents[1])
    return found


# Ray


@pytest.mark.parametrize(
    ("resources", "on_gpu", "workers", "cores", "expected"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, True, None, 1, Slots(4, 1, 1)),
        ({"CPU": 16.0, "GPU": 4.0}, False, None, 1, Slots(16, 0, 1)),
        ({"CPU": 16.0}, True, None, 4, Slots(4, 0, 4)),
        ({"CPU": 2.0, "GPU": 4.0}, True, None, 1, Slots(2, 1, 1)),
        ({"CPU": 16.0}, False, 3, 4, Slots(3, 0, 4)),
    ],
)
def test_a_cluster_is_cut_into_slots(
    resources: dict[str, float], on_gpu: bool, workers: int | None, cores: int, expected: Slots
) -> None:
    assert ray_slots(resources, on_gpu, workers, cores) == expected


def test_a_cluster_without_room_is_told() -> None:
    with pytest.raises(UsageError, match="has 2 CPUs, and a worker takes 4"):
        ray_slots({"CPU": 2.0}, False, None, 4)


def test_gpus_are_asked_for_where_an_engine_is_for_one(tmp_path: Path) -> None:
    from support.bundles import FLOAT, RTX

    bundle = read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX]))
    assert runs_on_gpu(bundle, "auto") and runs_on_gpu(bundle, "rtx-sm86") and not runs_on_gpu(bundle, "cpu-float32")


def test_without_ray_the_install_line_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    place.add("a")
    with pytest.raises(UnavailableError, match=r"pip install 'misgnet-export\[ray\]'"):
        place.run(ray="auto")
    assert results(place)["a"]["status"] == "waiting"


def test_forty_scenes_on_a_cluster_of_two_workers_of_which_one_is_killed(
    place: Place, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_of_two(tmp_path_factory.mktemp("r"), monkeypatch) as address:
        forty(place)
        told = Told()
        report = killed_in_the_middle(place, told, ray=address, words={"batch": "1"})
        assert "2 actors of 1 core and 0 GPUs each" in told.logged.messages
        assert any("s9: its worker died (ActorDiedError" in line for line in told.logged.warnings)
        check_forty(place, report, told)


# The command


def test_the_command_ends_with_its_own_code(
    place: Place, here: list[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    place.add("a", 80, 100, "yes")
    place.add("b", 80, 100, "")
    (place.root / "in/b_after.tif").unlink()
    words = ["batch", place.bundle, place.table("cog"), "-o", place.out, "--ray", "none", "--overlap", 0]
    words += ["--probability", "--log", "json"]
    assert exit_code(lambda: console.run_app(app), "misgnet-run", *words) == 6
    said, errors = capsys.readouterr()
    *lines, last = map(json.loads, said.splitlines())
    assert [line["scene"] for line in lines] == ["a"] and lines[0]["outputs"] == ["a.probability.tif", "a.tif"]
    assert (last["done"], list(last["failed"])) == (1, ["b"])
    assert "1 of 2 scenes failed: b (the after raster" in json.loads(errors.splitlines()[-1])["message"]
    from misgnet_runtime.raster.geotiff import read_tags

    assert read_tags(place.out / "a.tif")["MISGNET_OVERLAP"] == "0"


def test_a_kubernetes_job_does_it_in_shares(place: Place, here: list[InProcess]) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    job = yaml.safe_load((ROOT / "examples/kubernetes/batch-job.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert spec["completions"] == spec["parallelism"] == spec["maxFailedIndexes"] and pod["restartPolicy"] == "Never"
    codes = spec["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert {ScenesFailed.exit_code, UsageError.exit_code} == set(codes["values"])
    (container,) = pod["containers"]
    assert codes["containerName"] == container["name"] and container["command"] == ["misgnet-run"]
    for index in range(12):
        place.add(f"s{index}")
    place.table().rename(place.root / "data.csv")
    names = {"/data/bundle": str(place.bundle), "/data/scenes.csv": str(place.root / "data.csv")}
    for index in range(spec["completions"]):
        values = {"$(JOB_COMPLETION_INDEX)": str(index), "$(CPUS)": "1", "/data/changes": str(place.out)}
        arguments = [names.get(word, word) for word in container["args"]]
        for name, value in values.items():
            arguments = [word.replace(name, value) for word in arguments]
        assert exit_code(lambda: console.run_app(app), "misgnet-run", *arguments) == 0
    assert sorted(path.stem for path in place.out.glob("*.tif")) == sorted(f"s{i}" for i in range(12))

"""Tests of batch jobs with killed processes: no scene is lost or processed twice, on this machine and on Ray."""

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
from support.batches import BatchWorkspace, InProcess, Recorder, opened, results
from support.bundles import edit, make_bundle
from support.commands import exit_code
from support.paths import ROOT
from support.scenes import read, scene, write_raster


@pytest.fixture
def workspace(tmp_path: Path) -> BatchWorkspace:
    return BatchWorkspace(tmp_path, make_bundle(tmp_path / "bundle"), tmp_path / "out")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[InProcess]:
    pools: list[InProcess] = []

    def pool(setup: Setup, size: int) -> InProcess:
        pools.append(InProcess(setup, size))
        return pools[-1]

    monkeypatch.setattr(batch_run, "ProcessPool", pool)
    return pools


def test_a_bad_scene_does_not_stop_others_and_a_rerun_processes_the_rest(
    workspace: BatchWorkspace, here: list[InProcess]
) -> None:
    for name in ("a", "b", "c", "d"):
        workspace.add(name)
    (workspace.root / "in/b_after.tif").unlink()
    (workspace.root / "in/c_before.tif").write_bytes(b"no GeoTIFF")
    recorder = Recorder()
    report = workspace.run(recorder)
    assert (report.done, report.earlier, list(report.failed)) == (2, 0, ["b", "c"])
    assert "does not exist or is not a regular file" in recorder.failed["b"] and "GeoTIFF" in recorder.failed["c"]
    rows = results(workspace)
    assert [row["status"] for row in rows.values()] == ["done", "failed", "failed", "done"]
    assert rows["a"]["output"] == "a.tif" and float(rows["a"]["changed_share"]) > 0.1 and rows["a"]["height"] == "80"
    assert rows["b"]["message"] == recorder.failed["b"] and rows["b"]["changed_share"] == ""
    with pytest.raises(
        ScenesFailed, match=r"2 of 4 scenes failed: b \(the after raster .* is not a regular file\), c "
    ):
        report.raise_failed()
    assert not (workspace.out / ".batch").exists()

    bytes_before = (workspace.out / "a.tif").stat().st_mtime_ns
    rows_before, workspace.rows = workspace.rows, []
    for name in ("a", "b", "c", "d", "e"):
        if name in ("b", "c", "e"):
            workspace.add(name)
    workspace.rows = [*rows_before, workspace.rows[-1]]
    report = workspace.run(recorder)
    assert here[-1].given == ["b", "c", "e"] and (report.done, report.earlier, report.failed) == (5, 2, {})
    assert (workspace.out / "a.tif").stat().st_mtime_ns == bytes_before
    for name in "abcde":
        assert (read(workspace.out / f"{name}.tif") == workspace.alone(name)).all()
    report.raise_failed()
    assert len(here) == 2 and workspace.run().earlier == 5 and len(here) == 2, (
        "no scene is left, so no engine is opened"
    )


def test_scenes_with_changed_files_or_options_are_processed_again(
    workspace: BatchWorkspace, here: list[InProcess]
) -> None:
    workspace.add("a")
    workspace.add("b")
    workspace.run()
    rows, workspace.rows = workspace.rows, []
    workspace.add("a", 90)
    workspace.rows = rows
    workspace.run()
    assert here[-1].given == ["a"] and read(workspace.out / "a.tif").shape == (90, 100)
    workspace.run(words={"quicklook": "yes"})
    assert here[-1].given == ["a", "b"] and (workspace.out / "b.png").exists()
    (workspace.out / "b.png").unlink()
    workspace.run(words={"quicklook": "yes"})
    assert here[-1].given == ["b"] and (workspace.out / "b.png").exists()


def test_page_and_styles_are_written_and_named_after_their_scene(
    workspace: BatchWorkspace, here: list[InProcess]
) -> None:
    pytest.importorskip("shapely", reason="pages need the [geo] extra")
    workspace.add("a")
    workspace.run(words={"report": "yes", "style": "yes", "probability": "p/x.tif"})
    names = {path.relative_to(workspace.out).as_posix() for path in workspace.out.rglob("*.*") if path.is_file()}
    assert {"a.tif", "a.html", "a.qml", "p/x.tif", "p/x.qml"} <= names
    assert not [name for name in names if name.startswith(".batch")]
    assert "<h1>Change map of a</h1>" in (workspace.out / "a.html").read_text()


def test_another_bundle_is_refused_unless_forced(workspace: BatchWorkspace, here: list[InProcess]) -> None:
    workspace.add("a")
    workspace.run()
    edit(workspace.bundle, lambda values: values.update(bundle_version=2))
    with pytest.raises(UsageError, match=r"holds results of bundle .* with --force"):
        workspace.run()
    assert workspace.run(words={"force": "yes"}).done == 1 and here[-1].given == ["a"]


def test_results_of_all_shards_form_one_table(workspace: BatchWorkspace, here: list[InProcess]) -> None:
    for name in "abcde":
        workspace.add(name)
    for index in range(2):
        workspace.run(shard=Shard(index, 2))
    assert [pool.given for pool in here] == [["a", "c", "e"], ["b", "d"]]
    assert list(results(workspace, "results-1-of-2.csv")) == ["b", "d"]
    report = workspace.run()
    assert (report.done, report.earlier) == (5, 5) and list(results(workspace)) == list("abcde")


def test_an_interrupted_run_writes_the_results_table(
    workspace: BatchWorkspace, here: list[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.add("a")
    workspace.add("b")
    given = InProcess.give

    def give(self: InProcess, slot: int, task: Task) -> None:
        if task.scene.id == "b":
            os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does
        given(self, slot, task)

    monkeypatch.setattr(InProcess, "give", give)
    with pytest.raises(KeyboardInterrupt, match="rerun the command to resume"):
        workspace.run()
    assert [row["status"] for row in results(workspace).values()] == ["done", "waiting"]
    monkeypatch.setattr(InProcess, "give", given)
    assert workspace.run().done == 2 and here[-1].given == ["b"]


def test_results_are_also_written_as_parquet(workspace: BatchWorkspace, here: list[InProcess]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    workspace.add("a")
    workspace.add("b")
    (workspace.root / "in/b_after.tif").unlink()
    assert [path.name for path in workspace.run().tables] == ["results.csv", "results.parquet"]
    rows = parquet.read_table(workspace.out / "results.parquet").to_pylist()
    assert [(row["id"], row["status"], row["height"]) for row in rows] == [("a", "done", 80), ("b", "failed", None)]
    assert isinstance(rows[0]["changed_share"], float)


# Killed processes


def kill_the_holder(folder: Path, after: Callable[[], bool]) -> Thread:
    """Kills the process that holds the lock of the scene in ``folder``, once ``after()`` is true."""

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


def forty(workspace: BatchWorkspace) -> None:
    """Adds 40 scenes: 37 valid ones, one of which takes longer, and three that are broken in different ways."""
    for index in range(40):
        workspace.add(f"s{index}", *((1300, 900) if index == 9 else (60 + index, 64)))
    (workspace.root / "in/s3_before.tif").write_bytes(b"no GeoTIFF")
    (workspace.root / "in/s20_after.tif").unlink()
    write_raster(workspace.root / "in/s33_after.tif", scene(60, 60)[1])


def check_forty(workspace: BatchWorkspace, report: BatchReport, recorder: Recorder) -> None:
    assert (report.done, sorted(report.failed)) == (37, ["s20", "s3", "s33"])
    for name, words in (("s3", "GeoTIFF"), ("s20", "not a regular file"), ("s33", "differ in size")):
        assert words in report.failed[name]
    assert any(line.startswith("s9: ") and "it will be retried" in line for line in recorder.logged.warnings)
    rows = results(workspace)
    assert rows["s9"]["attempts"] == "2" and {rows[f"s{i}"]["status"] for i in range(40) if i not in (3, 20, 33)} == {
        "done"
    }
    for name in ("s0", "s9", "s39"):
        assert (read(workspace.out / f"{name}.tif") == workspace.alone(name)).all()
    outputs = sorted(path.stem for path in workspace.out.glob("*.tif"))
    assert outputs == sorted(f"s{i}" for i in range(40) if i not in (3, 20, 33))


def killed_in_the_middle(workspace: BatchWorkspace, recorder: Recorder, **options: Any) -> BatchReport:
    folder = work_folder(workspace.out, "s9")
    journal = folder / ".output.tif.progress/journal.jsonl"
    thread = kill_the_holder(folder, lambda: journal.exists() and b'"type":"band"' in journal.read_bytes())
    report = workspace.run(recorder, **options)
    thread.join()
    return report


def test_forty_scenes_with_two_processes_one_of_which_is_killed(workspace: BatchWorkspace) -> None:
    forty(workspace)
    recorder = Recorder()
    report = killed_in_the_middle(workspace, recorder, workers=2, words={"batch": "1"})
    assert (
        "s9: its worker was killed by SIGKILL; possibly out of memory; it will be retried" in recorder.logged.warnings
    )
    check_forty(workspace, report, recorder)
    assert int(results(workspace)["s9"]["resumed"]) > 0, (
        "rows that the killed worker had written are not computed again"
    )


def test_workers_exit_if_the_driver_is_killed(workspace: BatchWorkspace) -> None:
    workspace.add("big", 2000, 1500)
    command = [sys.executable, "-m", "misgnet_runtime", "batch", str(workspace.bundle), str(workspace.table())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    driver = subprocess.Popen([*command, "-o", str(workspace.out)], env=environment, stderr=subprocess.DEVNULL)
    lock, holders = work_folder(workspace.out, "big") / "lock", list[Path]()
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
    with opened(workspace.out) as record:
        assert record.attempts["big"] == 1


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
def test_a_cluster_is_divided_into_slots(
    resources: dict[str, float], on_gpu: bool, workers: int | None, cores: int, expected: Slots
) -> None:
    assert ray_slots(resources, on_gpu, workers, cores) == expected


def test_a_cluster_that_is_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match="has 2 CPUs, but each worker requires 4"):
        ray_slots({"CPU": 2.0}, False, None, 4)


def test_gpus_are_requested_if_an_engine_runs_on_a_gpu(tmp_path: Path) -> None:
    from support.bundles import FLOAT, RTX

    bundle = read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX]))
    assert runs_on_gpu(bundle, "auto") and runs_on_gpu(bundle, "rtx-sm86") and not runs_on_gpu(bundle, "cpu-float32")


def test_a_missing_ray_is_reported_with_the_install_command(
    workspace: BatchWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    workspace.add("a")
    with pytest.raises(UnavailableError, match=r"pip install 'misgnet-export\[ray\]'"):
        workspace.run(ray="auto")
    assert results(workspace)["a"]["status"] == "waiting"


def test_forty_scenes_on_a_ray_cluster_with_two_workers_one_of_which_is_killed(
    workspace: BatchWorkspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_of_two(tmp_path_factory.mktemp("r"), monkeypatch) as address:
        forty(workspace)
        recorder = Recorder()
        report = killed_in_the_middle(workspace, recorder, ray=address, words={"batch": "1"})
        assert "2 actors of 1 core and 0 GPUs each" in recorder.logged.messages
        assert any("s9: its worker died (ActorDiedError" in line for line in recorder.logged.warnings)
        check_forty(workspace, report, recorder)


# The command


def test_the_command_exits_with_the_code_for_failed_scenes(
    workspace: BatchWorkspace, here: list[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.add("a", 80, 100, "yes")
    workspace.add("b", 80, 100, "")
    (workspace.root / "in/b_after.tif").unlink()
    words = ["batch", workspace.bundle, workspace.table("cog"), "-o", workspace.out, "--ray", "none", "--overlap", 0]
    words += ["--probability", "--log", "json"]
    assert exit_code(lambda: console.run_app(app), "misgnet-run", *words) == 6
    output, errors = capsys.readouterr()
    *lines, last = map(json.loads, output.splitlines())
    assert [line["scene"] for line in lines] == ["a"] and lines[0]["outputs"] == ["a.probability.tif", "a.tif"]
    assert (last["done"], list(last["failed"])) == (1, ["b"])
    assert "1 of 2 scenes failed: b (the after raster" in json.loads(errors.splitlines()[-1])["message"]
    from misgnet_runtime.raster.geotiff import read_tags

    assert read_tags(workspace.out / "a.tif")["MISGNET_OVERLAP"] == "0"


def test_the_kubernetes_job_processes_all_shards(workspace: BatchWorkspace, here: list[InProcess]) -> None:
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
        workspace.add(f"s{index}")
    workspace.table().rename(workspace.root / "data.csv")
    names = {"/data/bundle": str(workspace.bundle), "/data/scenes.csv": str(workspace.root / "data.csv")}
    for index in range(spec["completions"]):
        values = {"$(JOB_COMPLETION_INDEX)": str(index), "$(CPUS)": "1", "/data/changes": str(workspace.out)}
        arguments = [names.get(word, word) for word in container["args"]]
        for name, value in values.items():
            arguments = [word.replace(name, value) for word in arguments]
        assert exit_code(lambda: console.run_app(app), "misgnet-run", *arguments) == 0
    assert sorted(path.stem for path in workspace.out.glob("*.tif")) == sorted(f"s{i}" for i in range(12))

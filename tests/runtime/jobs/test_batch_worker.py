"""Tests of a batch worker, including workers that are killed at any moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.jobs.batch import worker as batch_worker
from misgnet_runtime.jobs.batch.worker import SceneWorker, Setup, Task, work_folder
from support.batches import KEY, BatchWorkspace
from support.bundles import FakeEngine, fake_detector, make_bundle
from support.ends import die_at, in_child
from support.scenes import read


@pytest.fixture
def workspace(tmp_path: Path) -> BatchWorkspace:
    return BatchWorkspace(tmp_path, make_bundle(tmp_path / "bundle"), tmp_path / "out")


def test_the_engine_is_reopened_only_for_scenes_with_other_options(workspace: BatchWorkspace) -> None:
    requests: list[tuple[object, ...]] = []
    one = workspace.add("one")

    def opening(bundle: object, engine: str, execution: ExecutionOptions, *, optimise_for: object) -> object:
        requests.append((engine, execution, optimise_for))
        return fake_detector(lambda: FakeEngine(read_bundle(workspace.bundle).manifest.interface))()

    setup = replace(workspace.setup(), execution=ExecutionOptions(threads=3, streams=2))
    worker = SceneWorker(setup, opener=opening)
    worker.start()
    for name, words in (("a", {}), ("b", {}), ("c", {"threads": "1"}), ("d", {"threads": "1"})):
        outcome = worker.run(Task(replace(one, id=name, words=words), KEY))
        assert outcome.figures, outcome.message
    assert requests == [("auto", ExecutionOptions(threads=threads, streams=2), "throughput") for threads in (3, 1)]


def test_another_bundle_on_a_node_is_refused(workspace: BatchWorkspace) -> None:
    worker = SceneWorker(replace(workspace.setup(), digest="1" * 64))
    with pytest.raises(InputError, match="differs from the bundle with which the run was started"):
        worker.start()


def test_errors_of_a_scene_are_returned_as_its_outcome(
    workspace: BatchWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = workspace.add("one")
    worker = SceneWorker(workspace.setup())
    worker.start()
    outcomes = []
    for error in (InputError("bad"), StorageError("full"), RuntimeError("CUDA error")):

        def raising(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(batch_worker, "predict_opened", raising)
            outcome = worker.run(Task(one, KEY))
        outcomes.append((outcome.message, outcome.retry, outcome.restart_worker))
    assert outcomes == [("bad", False, False), ("full", True, False), ("RuntimeError: CUDA error", True, True)]
    assert worker.run(Task(one, KEY)).figures, "the engine is reopened"


@pytest.mark.slow
def test_resume_after_a_killed_worker_writes_identical_outputs(
    workspace: BatchWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills the worker at every call that changes the disk, one run each, until a run survives all of them."""
    one = replace(workspace.add("one", 90, 60), words={"probability": "yes"})
    calls: list[int] = []

    opener = fake_detector(lambda: FakeEngine(read_bundle(workspace.bundle).manifest.interface))
    expected = None
    for moment in range(60):
        setup = replace(workspace.setup(), output=workspace.root / f"out{moment}")

        def doomed(setup: Setup = setup, moment: int = moment) -> None:
            worker = SceneWorker(setup, opener=opener)
            worker.start()
            die_at(moment)
            assert worker.run(Task(one, KEY)).figures

        killed = in_child(doomed)
        worker = SceneWorker(setup, opener=opener)
        worker.start()
        report = work_folder(setup.output, "one") / "report.json"
        whole = report.exists()
        with monkeypatch.context() as patched:
            if whole:
                patched.setattr(batch_worker, "predict_opened", lambda *_, **__: pytest.fail("computed twice"))
            outcome = worker.run(Task(one, KEY))
        assert outcome.figures, outcome.message
        files = [(setup.output / name).read_bytes() for name in ("one.tif", "one.probability.tif")]
        expected = expected or files
        assert files == expected
        calls.append(whole)
        if not killed:
            break
    assert not killed and len(calls) > 5 and any(calls) and not all(calls)


def test_an_attempt_with_other_files_or_options_is_not_resumed(workspace: BatchWorkspace) -> None:
    one = workspace.add("one", 150, 90)
    worker = SceneWorker(workspace.setup())
    worker.start()
    folder = work_folder(workspace.out, "one")
    assert worker.run(Task(one, KEY)).figures
    (folder / "output.tif").write_bytes(b"of an earlier table")
    (folder / "report.json").write_text("{}")
    assert worker.run(Task(one, "1" * 64)).figures
    assert (read(workspace.out / "one.tif") == workspace.alone("one")).all()

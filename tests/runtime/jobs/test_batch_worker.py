"""What a worker makes of a scene, also where it is killed at any moment."""

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
from support.batches import KEY, Place
from support.bundles import FakeEngine, fake_detector, make_bundle
from support.ends import die_at, in_child
from support.scenes import read


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, make_bundle(tmp_path / "bundle"), tmp_path / "out")


def test_the_engine_is_opened_once_and_for_scenes_that_ask_for_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[tuple[object, ...]] = []
    one = place.add("one")

    def opening(bundle: object, engine: str, execution: ExecutionOptions, *, optimise_for: object) -> object:
        wishes.append((engine, execution, optimise_for))
        return fake_detector(lambda: FakeEngine(read_bundle(place.bundle).manifest.interface))()

    monkeypatch.setattr(batch_worker, "open_detector", opening)
    worker = SceneWorker(replace(place.setup(), execution=ExecutionOptions(threads=3, streams=2)))
    worker.start()
    for name, words in (("a", {}), ("b", {}), ("c", {"threads": "1"}), ("d", {"threads": "1"})):
        outcome = worker.run(Task(replace(one, id=name, words=words), KEY))
        assert outcome.figures, outcome.message
    assert wishes == [("auto", ExecutionOptions(threads=threads, streams=2), "throughput") for threads in (3, 1)]


def test_another_bundle_on_a_node_is_refused(place: Place) -> None:
    worker = SceneWorker(replace(place.setup(), digest="1" * 64))
    with pytest.raises(InputError, match="is another one"):
        worker.start()


def test_whatever_a_scene_raises_is_its_outcome(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    one = place.add("one")
    worker = SceneWorker(place.setup())
    worker.start()
    outcomes = []
    for error in (InputError("bad"), StorageError("full"), RuntimeError("CUDA error")):

        def raising(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(batch_worker, "predict_opened", raising)
            outcome = worker.run(Task(one, KEY))
        outcomes.append((outcome.message, outcome.again, outcome.sick))
    assert outcomes == [("bad", False, False), ("full", True, False), ("RuntimeError: CUDA error", True, True)]
    assert worker.run(Task(one, KEY)).figures, "the engine is opened anew"


def test_a_killed_worker_leaves_what_the_next_one_goes_on_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every call that makes something lasting, until one run lives through all of them."""
    one = replace(place.add("one", 90, 60), words={"probability": "yes"})
    calls: list[int] = []

    def fake() -> FakeEngine:
        return FakeEngine(read_bundle(place.bundle).manifest.interface)

    monkeypatch.setattr(batch_worker, "open_detector", fake_detector(fake))
    expected = None
    for moment in range(60):
        setup = replace(place.setup(), output=place.root / f"out{moment}")

        def doomed(setup: Setup = setup, moment: int = moment) -> None:
            worker = SceneWorker(setup)
            worker.start()
            die_at(moment)
            assert worker.run(Task(one, KEY)).figures

        killed = in_child(doomed)
        worker = SceneWorker(setup)
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


def test_what_was_begun_with_other_files_or_options_is_begun_anew(place: Place) -> None:
    one = place.add("one", 150, 90)
    worker = SceneWorker(place.setup())
    worker.start()
    folder = work_folder(place.out, "one")
    assert worker.run(Task(one, KEY)).figures
    (folder / "output.tif").write_bytes(b"of an earlier table")
    (folder / "report.json").write_text("{}")
    assert worker.run(Task(one, "1" * 64)).figures
    assert (read(place.out / "one.tif") == place.alone("one")).all()

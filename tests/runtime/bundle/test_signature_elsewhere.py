"""Tests that a command's signature requirement also applies in the processes that it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography: pip install 'misgnet-export[verify]'")
pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing import policy
from misgnet_runtime.bundle.signing.policy import VARIABLE, Trust
from misgnet_runtime.errors import InputError
from misgnet_runtime.jobs.batch import run as batch_run
from misgnet_runtime.jobs.batch.pool import Event, Pool, ProcessPool, Unusable
from misgnet_runtime.jobs.batch.worker import SceneWorker, Setup
from misgnet_runtime.measure.bench.matrix import make_matrix, tasks_of
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.measure.bench.scene import SceneTask, run_scene
from support.batches import BatchWorkspace, InProcess, ray_of_two
from support.bundles import make_bundle
from support.scenes import scene, write_raster
from support.signatures import make_key, prepare, sign_folder, write_public

KEY = make_key()
UNSIGNED = "it is not signed: it has no model.sig"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sets a state folder and removes the environment's requirement; child processes inherit both."""
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield tmp_path / "state"
    policy.use_key(None)
    policy.use_allow_older(False)


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(write_public(tmp_path / "key.pub", KEY))


@pytest.fixture
def workspace(tmp_path: Path) -> BatchWorkspace:
    return BatchWorkspace(tmp_path, prepare(make_bundle(tmp_path / "bundle")), tmp_path / "out")


def test_worker_checks_the_signature_before_opening(workspace: BatchWorkspace, trust: Trust) -> None:
    setup = replace(workspace.setup(), trust=trust)
    with pytest.raises(InputError, match=UNSIGNED):
        SceneWorker(setup).start()
    sign_folder(workspace.bundle, KEY)
    assert SceneWorker(setup).start().engine.startswith("cpu")


def test_batch_passes_the_key_to_its_workers(
    workspace: BatchWorkspace, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers may run in another folder, so they get the key's absolute path, and the path of the user's bundle."""
    given: list[Setup] = []

    def pool(setup: Setup, size: int) -> InProcess:
        given.append(setup)
        return InProcess(setup, size)

    monkeypatch.setattr(batch_run, "ProcessPool", pool)
    sign_folder(workspace.bundle, KEY)
    workspace.bundle.chmod(0o777)
    workspace.add("a")
    monkeypatch.chdir(trust.key.parent)
    policy.use_key(Path(trust.key.name))
    policy.use_allow_older(True)
    assert workspace.run().done == 1
    assert (given[0].trust, given[0].bundle) == (Trust(trust.key, True), workspace.bundle)


def first_event(pool: Pool) -> Event:
    try:
        pool.start(0)
        end = time.monotonic() + 60
        while not (events := pool.wait()):
            assert time.monotonic() < end
        return events[0]
    finally:
        pool.close()


def test_worker_process_refuses_an_unsigned_bundle(workspace: BatchWorkspace, trust: Trust) -> None:
    event = first_event(ProcessPool(replace(workspace.setup(), trust=trust), 1))
    assert isinstance(event, Unusable) and UNSIGNED in event.reason


def test_worker_process_runs_a_signed_bundle(workspace: BatchWorkspace, trust: Trust) -> None:
    sign_folder(workspace.bundle, KEY)
    workspace.bundle.chmod(0o777)  # each process makes its own copy
    workspace.add("a")
    policy.use_key(trust.key)
    assert workspace.run().failed == {}


def test_ray_actor_refuses_an_unsigned_bundle(
    workspace: BatchWorkspace, trust: Trust, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from misgnet_runtime.jobs.batch.ray import RayPool, Slots, ray_cluster

    with ray_of_two(tmp_path_factory.mktemp("r"), monkeypatch) as address, ray_cluster(address) as ray:
        event = first_event(RayPool(ray, replace(workspace.setup(), trust=trust), Slots(1, 0, 1)))
    assert isinstance(event, Unusable) and UNSIGNED in event.reason


def test_bench_of_a_scene_refuses_an_unsigned_bundle(tmp_path: Path, workspace: BatchWorkspace, trust: Trust) -> None:
    """The bundle may have been replaced after bench checked it."""
    before, after = (write_raster(tmp_path / f"{n}.tif", pixels) for n, pixels in enumerate(scene(64, 64)))
    output = tmp_path / "change.tif"
    task = SceneTask(bundle=workspace.bundle, before=before, after=after, output=output, engine="cpu", trust=trust)
    with pytest.raises(InputError, match=UNSIGNED):
        run_scene(task)
    sign_folder(workspace.bundle, KEY)
    assert run_scene(task).tiles == 1


def test_measuring_process_opens_the_checked_copy(workspace: BatchWorkspace, trust: Trust, state: Path) -> None:
    """The measuring process opens an engine's files in the private copy that bench and tune have checked."""
    sign_folder(workspace.bundle, KEY)
    workspace.bundle.chmod(0o777)
    bundle, options = read_bundle(workspace.bundle, trust), BenchOptions(engines=("cpu",))
    (task,) = tasks_of(bundle, make_matrix(bundle, options), options, 1, 1)
    for path in (Path(task.root), Path(task.root, task.golden)):
        assert path.is_relative_to(state) and path.exists()

"""Builds tables of small scenes, and worker pools that respond at once or run in the test's own process."""

from __future__ import annotations

import csv
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.jobs.batch.driver import Driver, Listener
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.jobs.batch.pool import Event, Finished, Ready
from misgnet_runtime.jobs.batch.record import Done, Failed, Record, open_record
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.jobs.batch.run import BatchReport, run_batch
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.jobs.batch.worker import Hello, Outcome, SceneWorker, Setup, Task
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from support.logs import Collected
from support.paths import ROOT
from support.scenes import read, scene, write_raster

FIGURES = {"changed_share": 0.5, "unread": [0, 0]}
KEY = "0" * 64


def write_table(path: Path, header: str, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@dataclass
class Recorder:
    """Records log messages and scene outcomes of a batch run."""

    logged: Collected = field(default_factory=Collected)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def listener(self) -> Listener:
        return Listener(self.logged.log, self._ended)

    def _ended(self, end: Done | Failed) -> None:
        if isinstance(end, Failed):
            self.failed[end.scene] = end.message
        else:
            self.done.append(end.scene)


class FakePool:
    """A pool that responds at once, with ``respond(slot, scene, number of times the scene was given)``."""

    def __init__(self, size: int, respond: Callable[[int, str, int], Event] | None = None) -> None:
        self.size, self._respond = size, respond or (lambda slot, scene, time: Finished(slot, Outcome(FIGURES)))
        self.given: list[str] = []
        self.started: list[int] = []
        self.closed = False
        self._events: list[Event] = []

    def start(self, slot: int) -> None:
        self.started.append(slot)
        self._events.append(self.start_event(slot))

    def start_event(self, slot: int) -> Event:
        return Ready(slot, Hello(f"here:{slot}", "a fake"))

    def give(self, slot: int, task: Task) -> None:
        self.given.append(task.scene.id)
        self._events.append(self._respond(slot, task.scene.id, self.given.count(task.scene.id)))

    def wait(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self.closed = True


def tasks(*names: str, **words: str) -> list[Task]:
    return [Task(Scene(name, Path("a"), Path("b"), words), KEY) for name in names]


@contextmanager
def opened(output: Path, shard: Shard | None = None) -> Iterator[Record]:
    with open_record(output, shard or Shard()) as record:
        yield record


def drive(
    todo: list[Task], output: Path, pool: FakePool, record: Record, recorder: Recorder, *, retries: int = 2,
    ready_seconds: float = 30.0,
) -> None:  # fmt: skip
    listener = recorder.listener()
    Driver(todo, output, pool, record, retries=retries, listener=listener, ready_seconds=ready_seconds).run()
    assert pool.closed


@dataclass
class BatchWorkspace:
    """A bundle, raster pairs, a table of them, and an output folder."""

    root: Path
    bundle: Path
    out: Path
    rows: list[str] = field(default_factory=list)

    def add(self, name: str, height: int = 80, width: int = 100, *cells: str) -> Scene:
        before, after = scene(height, width, len(self.rows))
        paths = [
            write_raster(self.root / f"in/{name}_{date}.tif", pixels)
            for date, pixels in (("before", before), ("after", after))
        ]
        self.rows.append(",".join([name, *(f"in/{path.name}" for path in paths), *cells]))
        return Scene(name, *paths, {})

    def table(self, *columns: str) -> Path:
        return write_table(self.root / "scenes.csv", ",".join(["id", "before", "after", *columns]), *self.rows)

    def setup(self) -> Setup:
        return Setup(
            bundle=self.bundle, digest=read_bundle(self.bundle).digest(), output=self.out, engine=SceneOptions()
        )

    def run(self, recorder: Recorder | None = None, **options: Any) -> BatchReport:
        listener = (recorder or Recorder()).listener()
        return run_batch(self.bundle, self.table(), self.out, BatchOptions(**options), listener)

    def alone(self, name: str) -> np.ndarray:
        """Returns the change raster that predict writes for one scene."""
        output = self.root / f"alone_{name}.tif"
        dates = (self.root / f"in/{name}_{date}.tif" for date in ("before", "after"))
        predict_scene_files(self.bundle, *dates, output)
        return read(output)


class InProcess(FakePool):
    """A pool of real workers in the test's own process."""

    def __init__(self, setup: Setup, size: int) -> None:
        super().__init__(size)
        self._setup = setup
        self._workers: dict[int, SceneWorker] = {}

    def start_event(self, slot: int) -> Event:
        self._workers[slot] = SceneWorker(self._setup)
        return Ready(slot, self._workers[slot].start())

    def give(self, slot: int, task: Task) -> None:
        self.given.append(task.scene.id)
        self._events.append(Finished(slot, self._workers[slot].run(task)))


def results(workspace: BatchWorkspace, name: str = "results.csv") -> dict[str, dict[str, str]]:
    with (workspace.out / name).open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@contextmanager
def ray_of_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Starts a Ray cluster of two CPUs, yields its address, and stops it after the block."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (
        ("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0"), ("OMP_NUM_THREADS", "1"),
        ("PYTHONPATH", str(ROOT / "runtime")),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        f"--temp-dir={folder}", "--include-dashboard=false", "--object-store-memory=100000000",
    ]  # fmt: skip
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 120
            while b"Ray runtime started" not in (folder / "ray.log").read_bytes():
                assert head.poll() is None and time.monotonic() < end, (folder / "ray.log").read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait(30)

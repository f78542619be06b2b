"""Runs workers as actors of an existing Ray cluster: one per GPU, or one per group of CPU cores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from misgnet_runtime.children import away_from_working_directory
from misgnet_runtime.errors import MisgnetError, UnavailableError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.jobs.batch.pool import Died, Event, Finished, Ready, Unusable
from misgnet_runtime.jobs.batch.worker import Hello, Outcome, SceneWorker, Setup, Task

_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Slots:
    """Worker slots of a Ray cluster."""

    count: int
    # Per actor.
    gpus: int
    cores: int


def ray_slots(resources: Mapping[str, float], on_gpu: bool, workers: int | None, cores: int) -> Slots:
    """Returns the worker slots of a cluster.

    Args:
        resources: The cluster's resources, as reported by Ray.
        on_gpu: Whether the engine runs on a GPU. If so, and the cluster has GPUs, each GPU is a slot; otherwise each
            group of ``cores`` CPU cores is one.
        workers: Maximum number of slots (default: no limit).
        cores: CPU cores per worker.

    Raises:
        UsageError: The cluster is too small for one worker.
    """
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    found = Slots(min(gpus, cpus // cores), 1, cores) if on_gpu and gpus else Slots(cpus // cores, 0, cores)
    if found.count < 1:
        raise UsageError(
            f"the Ray cluster has {plural(cpus, 'CPU')}, but each worker requires {cores}; choose fewer with --cores"
        )
    return Slots(min(found.count, workers or found.count), found.gpus, found.cores)


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Yields the module ``ray``, connected to the cluster at ``address`` ("auto": the cluster of this machine).

    Raises:
        UnavailableError: Ray is not installed, or no cluster was found.
    """
    try:
        import ray
    except ImportError as error:
        raise UnavailableError("--ray requires Ray: pip install 'misgnet-export[ray]', or run without --ray") from error
    mine = not ray.is_initialized()
    if mine:
        try:
            with away_from_working_directory():  # Ray's workers search the driver's working directory at every import
                ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(
                f"no Ray cluster found at '{address}' ({error}); start one with `ray start --head`, "
                "pass its address, or run without --ray"
            ) from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


class RayPool:
    """A pool with one actor per slot; Ray starts actors as the cluster has free resources."""

    def __init__(self, ray: Any, setup: Setup, slots: Slots) -> None:
        self.size, self._ray, self._setup = slots.count, ray, setup
        self._actor = ray.remote(_Actor).options(
            num_cpus=slots.cores, num_gpus=slots.gpus, max_restarts=0, max_task_retries=0
        )
        self._workers: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}

    def start(self, slot: int) -> None:
        self._end(slot)
        worker = self._actor.remote(self._setup)
        self._workers[slot] = worker
        self._calls[worker.start.remote()] = slot

    def give(self, slot: int, task: Task) -> None:
        self._calls[self._workers[slot].run.remote(task)] = slot

    def wait(self) -> list[Event]:
        if not self._calls:
            return []
        calls = list(self._calls)
        finished, rest = self._ray.wait(calls, num_returns=1, timeout=_WAIT_SECONDS)
        if finished and rest:
            finished += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [self._event(call) for call in finished]

    def close(self) -> None:
        for slot in list(self._workers):
            self._end(slot)

    def _event(self, call: Any) -> Event:
        slot = self._calls.pop(call)
        try:
            reply = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._end(slot)
            return Died(slot, f"its worker died ({_first_sentence(error)})")
        if isinstance(reply, Hello):
            return Ready(slot, reply)
        return Finished(slot, reply) if isinstance(reply, Outcome) else Unusable(slot, str(reply))

    def _end(self, slot: int) -> None:
        worker = self._workers.pop(slot, None)
        if worker is not None:
            self._calls = {call: other for call, other in self._calls.items() if other != slot}
            self._ray.kill(worker)


class _Actor:
    """A worker in a Ray process. It returns its own errors, so they can be distinguished from errors raised by Ray."""

    def __init__(self, setup: Setup) -> None:
        self._worker = SceneWorker(setup)

    def start(self) -> Hello | str:
        try:
            return self._worker.start()
        except MisgnetError as error:
            return str(error)

    def run(self, task: Task) -> Outcome:
        return self._worker.run(task)


def _first_sentence(error: Exception) -> str:
    """Returns the first line of a message; Ray appends a page of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]

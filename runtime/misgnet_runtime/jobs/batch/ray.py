"""Workers as actors of a Ray cluster that is there already: one for each GPU, or for each slot of CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from misgnet_runtime.children import away_from_working_directory
from misgnet_runtime.errors import MisgnetError, UnavailableError, UsageError
from misgnet_runtime.jobs.batch.pool import Died, Ended, Event, Ready, Unusable
from misgnet_runtime.jobs.batch.worker import Hello, Outcome, SceneWorker, Setup, Task

_LOOK = 1.0  # seconds of a wait


@dataclass(frozen=True)
class Slots:
    """So many actors, each with so many GPUs and cores for itself."""

    count: int
    gpus: int
    cores: int


def ray_slots(resources: Mapping[str, float], on_gpu: bool, workers: int | None, cores: int) -> Slots:
    """One for each GPU of the cluster where the engine runs on one and there are any, else for each ``cores`` cores.

    ``resources``: as Ray counts them; ``workers``: at most so many. Raises UsageError where the cluster has no slot.
    """
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    found = Slots(min(gpus, cpus // cores), 1, cores) if on_gpu and gpus else Slots(cpus // cores, 0, cores)
    if found.count < 1:
        raise UsageError(f"the Ray cluster has {cpus} CPUs, and a worker takes {cores}; choose fewer with --cores")
    return Slots(min(found.count, workers or found.count), found.gpus, found.cores)


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to the cluster at ``address``, "auto" for the one of this machine.

    Raises UnavailableError where Ray is not installed or no cluster is there.
    """
    try:
        import ray
    except ImportError as error:
        raise UnavailableError(
            "--ray was asked for, and Ray is not installed; pip install 'misgnet-export[ray]', or leave --ray out"
        ) from error
    mine = not ray.is_initialized()
    if mine:
        try:
            with away_from_working_directory():  # Ray's workers search the driver's for every import
                ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(
                f"no Ray cluster was found at '{address}' ({error}); start one with: ray start --head, "
                "or name its address, or leave --ray out"
            ) from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


class RayPool:
    """An actor at each place; Ray begins them as the cluster has room."""

    def __init__(self, ray: Any, setup: Setup, slots: Slots) -> None:
        self.size, self._ray, self._setup = slots.count, ray, setup
        self._actor = ray.remote(_Actor).options(
            num_cpus=slots.cores, num_gpus=slots.gpus, max_restarts=0, max_task_retries=0
        )
        self._workers: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}

    def start(self, place: int) -> None:
        self._end(place)
        worker = self._actor.remote(self._setup)
        self._workers[place] = worker
        self._calls[worker.start.remote()] = place

    def give(self, place: int, task: Task) -> None:
        self._calls[self._workers[place].run.remote(task)] = place

    def wait(self) -> list[Event]:
        if not self._calls:
            return []
        calls = list(self._calls)
        ended, rest = self._ray.wait(calls, num_returns=1, timeout=_LOOK)
        if ended and rest:
            ended += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [self._event(call) for call in ended]

    def close(self) -> None:
        for place in list(self._workers):
            self._end(place)

    def _event(self, call: Any) -> Event:
        place = self._calls.pop(call)
        try:
            said = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._end(place)
            return Died(place, f"its worker died ({_first_sentence(error)})")
        if isinstance(said, Hello):
            return Ready(place, said)
        return Ended(place, said) if isinstance(said, Outcome) else Unusable(place, str(said))

    def _end(self, place: int) -> None:
        worker = self._workers.pop(place, None)
        if worker is not None:
            self._calls = {call: other for call, other in self._calls.items() if other != place}
            self._ray.kill(worker)


class _Actor:
    """A worker in a process of Ray's; what it answers can be told apart from what Ray raises."""

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
    """Ray's messages go on with a page of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:300]

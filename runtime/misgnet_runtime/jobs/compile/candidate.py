"""Compiles or finds a candidate plan, which is kept in memory only until it has been verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from misgnet_runtime.bundle.manifest import PlanProfile
from misgnet_runtime.engines.cuda import CudaDriver
from misgnet_runtime.engines.tensorrt import Plan, PlanCompatibility, PlanOptions, compile_plan
from misgnet_runtime.engines.tensorrt.bindings import parse_version
from misgnet_runtime.engines.tensorrt.plan_cache import FORMAT, PlanKey, PlanRecord, PlanStore
from misgnet_runtime.engines.tensorrt.progress import Share
from misgnet_runtime.errors import InputError, MisgnetError, UnavailableError
from misgnet_runtime.jobs.compile.memory import BuilderMemory


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A plan that has not been verified yet."""

    key: PlanKey
    data: bytes
    compatibility: PlanCompatibility
    # Build time.
    seconds: float
    # Memory limits of the build.
    memory: BuilderMemory
    # Its optimization profiles, with what one inference of each costs.
    profiles: Sequence[PlanProfile] = ()
    # Whether an earlier run compiled it.
    cached: bool = False
    # Remarks of the build, for the log.
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def measured(self, stream_bytes: int) -> Candidate:
        """Returns a copy with the memory of one stream, which is known once the plan has been opened."""
        return replace(self, compatibility=replace(self.compatibility, stream_bytes=stream_bytes))

    def record(self, created: str) -> PlanRecord:
        return PlanRecord(
            format=FORMAT, created=created, key=self.key, sha256=self.sha256, size=len(self.data),
            cuda_driver=self.compatibility.cuda_driver, stream_bytes=self.compatibility.stream_bytes,
            workspace_bytes=self.memory.workspace_bytes, builder_bytes=self.memory.builder_bytes, seconds=self.seconds,
            profiles=list(self.profiles),
        )  # fmt: skip


def find_or_compile(
    store: PlanStore, key: PlanKey, graph: bytes, driver: CudaDriver, *, memory: Callable[[], BuilderMemory],
    share: Share, again: bool = False,
) -> Candidate:  # fmt: skip
    """Returns the cached plan for ``key``, or compiles ``graph``.

    Args:
        store: The plan cache.
        key: Everything that determines the plan.
        graph: The ONNX graph.
        driver: The CUDA driver.
        memory: Returns the memory limits of a build; called only if one is needed.
        share: Receives the progress of the build, 0 to 1.
        again: Whether to ignore the cached plan.

    Raises:
        UnavailableError: The build fails, or this version of TensorRT rejects the graph.
    """
    found = None if again else store.cached(key)
    if found and parse_version(found[0].cuda_driver) <= parse_version(driver.version()):
        record, data = found
        made_with = BuilderMemory(record.workspace_bytes, record.builder_bytes)
        return Candidate(
            key=key, data=data, compatibility=record.compatibility, seconds=record.seconds, memory=made_with,
            profiles=record.profiles, cached=True,
        )  # fmt: skip
    limits = memory()
    plan = _compile(store, key, graph, driver, memory=limits, share=share)
    return Candidate(
        key=key, data=plan.data, compatibility=replace(plan.compatibility, cuda_driver=driver.version()),
        seconds=plan.seconds, memory=limits, profiles=plan.profiles, notes=plan.notes,
    )  # fmt: skip


def _compile(
    store: PlanStore, key: PlanKey, graph: bytes, driver: CudaDriver, *, memory: BuilderMemory, share: Share
) -> Plan:
    options = PlanOptions(
        vendor=key.vendor, compute_capabilities=(key.compute_capability,) if key.vendor == "rtx" else (),
        profiles=key.profiles, workspace_bytes=memory.workspace_bytes,
        builder_bytes=memory.builder_bytes, optimization_level=key.optimization_level,
    )  # fmt: skip
    timings = store.timings(key) if key.vendor == "tensorrt" else None
    try:
        return compile_plan(graph, options, timing_cache=timings, share=share, driver=driver)
    except InputError as error:
        raise UnavailableError(f"{key.vendor} {key.vendor_version} cannot compile the graph: {error}") from error
    except MisgnetError as error:
        if type(error) is not MisgnetError:
            raise
        raise UnavailableError(
            f"{error}; if memory was insufficient, stop other programs or choose another --workspace"
        ) from error

"""What is kept of a plan that was compiled here: what it was made of, what it is bound to, and what it proved."""

from __future__ import annotations

import hashlib

import msgspec

from misgnet_runtime.accuracy.parity import EngineParity
from misgnet_runtime.bundle.fields import EngineName, FilePath
from misgnet_runtime.engines.tensorrt.compatibility import PlanFacts
from misgnet_runtime.storage.schema import Count, Positive, Sha256, Struct

FORMAT = 1


class PlanKey(Struct, frozen=True):
    """What decides a plan. ``workspace_bytes``: as asked for; None is what the free memory gave."""

    vendor: str
    vendor_version: str
    compute_capability: str
    platform: str
    graph_sha256: Sha256
    batches: tuple[Positive, Positive, Positive]
    workspace_bytes: Count | None = None
    optimization_level: Count | None = None

    def name(self) -> str:
        return _digest(self)


class PlanRecord(Struct, frozen=True):
    """A plan: SHA-256 and size of its bytes, the driver it was built with, and what a stream takes of the device.

    ``workspace_bytes`` and ``builder_bytes``: what the builder was allowed; ``seconds``: what it took.
    """

    format: int
    created: str
    key: PlanKey
    sha256: Sha256
    size: Count
    cuda_driver: str
    stream_bytes: Count
    workspace_bytes: Count
    builder_bytes: Count
    seconds: float

    @property
    def facts(self) -> PlanFacts:
        key = self.key
        return PlanFacts(
            key.vendor, key.vendor_version, (key.compute_capability,), key.platform, self.cuda_driver, self.size,
            self.stream_bytes,
        )  # fmt: skip


class Slot(Struct, frozen=True):
    """What a plan may be active for: an engine of a bundle on a kind of GPU. ``bundle_sha256``: of the manifest."""

    bundle_sha256: Sha256
    engine: EngineName
    compute_capability: str
    platform: str

    def name(self) -> str:
        return f"active-{_digest(self)}"


class Activation(Struct, frozen=True):
    """The plans that are used in a slot, by their graphs' files, and how they proved themselves.

    ``golden``: what the golden tiles showed; ``parity``: the gate's verdict, where the bundle has evaluation tiles.
    """

    format: int
    created: str
    slot: Slot
    device: str
    plans: dict[FilePath, PlanRecord]
    golden: str
    parity: EngineParity | None = None


def _digest(value: Struct) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:32]

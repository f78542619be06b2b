"""Where plans that were compiled here lie: ``plans/`` in the user's cache.

    SHA256.plan          a plan, named by its digest
    KEY.json             its record, named by what decided it
    active-SLOT.json     which plans an engine of a bundle uses
    VENDOR-VERSION-CAPABILITY.timing    kernel timings, which make the next build quick

A plan is written first, its record then, and what is active last, each whole or not at all: whenever a process is
killed, what was active before is active still, or what it was about to activate is. Only plans that proved themselves
are ever written.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import TypeVar

import msgspec

from misgnet_runtime.accuracy.parity import EngineParity
from misgnet_runtime.bundle.fields import EngineName, FilePath
from misgnet_runtime.engines.tensorrt.compatibility import PlanCompatibility
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import KERNEL_TIMINGS_BYTES, PLAN_RECORD_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.storage.private import PrivateFolder
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Positive, Sha256, Struct, encode

FORMAT = 1
_PLAN, _RECORD, _ACTIVE = ".plan", ".json", "active-"


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
    def compatibility(self) -> PlanCompatibility:
        key = self.key
        return PlanCompatibility(
            vendor=key.vendor, vendor_version=key.vendor_version, compute_capabilities=(key.compute_capability,),
            platform=key.platform, cuda_driver=self.cuda_driver, plan_bytes=self.size, stream_bytes=self.stream_bytes,
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


Kept = TypeVar("Kept", PlanRecord, Activation)


class PlanStore:
    """The plans of this user on this machine."""

    def __init__(self) -> None:
        self._folder = PrivateFolder.of("plans")

    def prepare(self) -> None:
        """Before anything slow: StorageError where nothing could be kept, InputError where others could change it."""
        self._folder.prepare()

    def compiling(self) -> AbstractContextManager[None]:
        """For one process at a time: two builders at once would take memory from each other. Others wait."""
        return self._folder.locked("compiles plans")

    def sweep(self) -> None:
        """While ``compiling``: remove what killed processes left, unfinished files and plans that nothing names."""
        names = self._folder.names()
        wanted: set[str] = set()
        for name in names:
            if name.endswith(_RECORD) and not name.startswith("."):
                wanted.update(record.sha256 + _PLAN for record in self._named_in(name))
        for name in names:
            if name.startswith(".") or (name.endswith(_PLAN) and name not in wanted):
                self._folder.remove(name)

    def _named_in(self, name: str) -> list[PlanRecord]:
        if name.startswith(_ACTIVE):
            active = self._read_or_tell(name, Activation)
            return list(active.plans.values()) if active else []
        record = self._read_or_tell(name, PlanRecord)
        return [record] if record else []

    def cached(self, key: PlanKey) -> tuple[PlanRecord, bytes] | None:
        """The plan of ``key`` and its record, where it was made before; a damaged one is told, and as good as none."""
        record = self._read_or_tell(key.name() + _RECORD, PlanRecord)
        if record is None or record.key != key:
            return None
        try:
            return record, self.plan(record)
        except InputError as error:
            current().warning(f"{error}; it is compiled again")
            return None

    def plan(self, record: PlanRecord) -> bytes:
        """The bytes of a plan; InputError where they are not there, or not those of the record."""
        name = record.sha256 + _PLAN
        path = self._folder.path / name
        try:
            data = self._folder.read(name, record.size)
        except OSError as error:
            raise InputError(f"plan {path} cannot be read: {error.strerror}") from error
        if data is None:
            raise InputError(f"plan {path} is not there")
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise InputError(f"plan {path} has other bytes than were compiled")
        return data

    def keep(self, record: PlanRecord, data: bytes) -> None:
        """Write a plan and its record. StorageError where the disk refuses."""
        self._folder.write(record.sha256 + _PLAN, data)
        self._folder.write_sealed(record.key.name() + _RECORD, encode(record))

    def activate(self, activation: Activation) -> None:
        """Use these plans from now on."""
        self._folder.write_sealed(activation.slot.name() + _RECORD, encode(activation))

    def active(self, slot: Slot) -> Activation | None:
        """Which plans are used; InputError where others could have changed what is kept here."""
        found = self._read(slot.name() + _RECORD, Activation)
        return found if found and found.slot == slot else None

    def discard(self, slot: Slot, key: PlanKey, sha256: str) -> None:
        """A plan that failed is neither active nor found again, whatever it showed before."""
        active = self._read_or_tell(slot.name() + _RECORD, Activation)
        if active and any(record.sha256 == sha256 for record in active.plans.values()):
            self._folder.remove(slot.name() + _RECORD)
        record = self._read_or_tell(key.name() + _RECORD, PlanRecord)
        if record and record.sha256 == sha256:
            self._folder.remove(key.name() + _RECORD)
            self._folder.remove(sha256 + _PLAN)

    def timings(self, key: PlanKey) -> TimingFile:
        return TimingFile(self._folder, f"{key.vendor}-{key.vendor_version}-{key.compute_capability}.timing")

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        """A record, None where there is none; InputError where it is damaged or of another version."""
        path = self._folder.path / name
        try:
            data = self._folder.read_sealed(name, PLAN_RECORD_BYTES)
            found = None if data is None else msgspec.json.decode(data, type=kind)
        except (OSError, *JSON_ERRORS) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if found is not None and found.format != FORMAT:
            raise InputError(f"{path} has format {found.format}, this version reads {FORMAT}")
        return found

    def _read_or_tell(self, name: str, kind: type[Kept]) -> Kept | None:
        """The same, where one that is no use is as good as none."""
        try:
            return self._read(name, kind)
        except InputError as error:
            current().warning(str(error))
            return None


class TimingFile:
    """A CacheFile of a private folder, behind its digest."""

    def __init__(self, folder: PrivateFolder, name: str) -> None:
        self.name = name
        self._folder = folder

    def read(self) -> bytes:
        data = self._folder.read_sealed(self.name, KERNEL_TIMINGS_BYTES)
        if data is None:
            raise FileNotFoundError(self.name)
        return data

    def write(self, data: bytes) -> None:
        self._folder.write_sealed(self.name, data)


def _digest(value: Struct) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:32]

"""Stores plans that were compiled on this machine, in ``plans/`` of the user's cache.

    SHA256.plan          a plan, named by its digest
    KEY.json             its record, named by the digest of the plan's key
    active-SLOT.json     the plans that an engine of a bundle uses
    choice-SCOPE.json    what was measured of a bundle's engines on a device, and the engine that was chosen
    VENDOR-VERSION-CAPABILITY-DEVICE.timing    kernel timings, which speed up the next build

Tactics that are fast on one board need not be on another of the same compute capability, nor fit its memory, and a disk
may move from one to the other. Plans and timings are therefore kept for the name of the device, too.

A plan is written first, then its record, then the activation, each atomically: if a process is killed at any time,
either the previous or the new activation is in force. Only verified plans are written.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import msgspec

from misgnet_runtime.accuracy.parity import EngineParity
from misgnet_runtime.bundle.fields import EngineName, FilePath
from misgnet_runtime.bundle.manifest import PlanProfile
from misgnet_runtime.engines.tensorrt.compatibility import PlanCompatibility
from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import KERNEL_TIMINGS_BYTES, PLAN_RECORD_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.storage.private import PrivateFolder
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Positive, Sha256, Struct, encode

FORMAT = 2
_PLAN, _RECORD, _ACTIVE, _CHOICE = ".plan", ".json", "active-", "choice-"


class PlanKey(Struct, frozen=True):
    """Identifies a plan by everything that determines it."""

    vendor: str
    vendor_version: str
    device: str  # see device_name
    compute_capability: str
    platform: str
    graph_sha256: Sha256
    profiles: tuple[tuple[Positive, Positive, Positive], ...]
    workspace_bytes: Count | None = None  # as requested; None: derived from the free memory
    optimization_level: Count | None = None

    def name(self) -> str:
        return _digest(self)


class PlanRecord(Struct, frozen=True):
    """Describes a stored plan."""

    format: int
    created: str  # ISO 8601, UTC
    key: PlanKey
    sha256: Sha256  # of the plan's bytes
    size: Count  # bytes
    cuda_driver: str  # CUDA version of the driver that it was built with
    stream_bytes: Count  # device memory per stream, with the smallest profile alone
    workspace_bytes: Count  # limit that the builder was given
    builder_bytes: Count  # limit that the builder was given
    seconds: float  # duration of the build
    profiles: list[PlanProfile] = msgspec.field(default_factory=list)  # with what one inference of each costs

    @property
    def compatibility(self) -> PlanCompatibility:
        key = self.key
        return PlanCompatibility(
            vendor=key.vendor, vendor_version=key.vendor_version, compute_capabilities=(key.compute_capability,),
            platform=key.platform, cuda_driver=self.cuda_driver, plan_bytes=self.size, stream_bytes=self.stream_bytes,
        )  # fmt: skip


class Slot(Struct, frozen=True):
    """Identifies the engine of a bundle, and the device, that plans are active for."""

    bundle_sha256: Sha256  # of the manifest
    engine: EngineName
    device: str  # see device_name
    compute_capability: str
    platform: str

    def name(self) -> str:
        return f"active-{_digest(self)}"


class Activation(Struct, frozen=True):
    """The plans that are active in a slot, with the results that verified them."""

    format: int
    created: str  # ISO 8601, UTC
    slot: Slot
    device: str
    plans: dict[FilePath, PlanRecord]  # by the graph's file
    golden: str  # result of the golden tiles
    parity: EngineParity | None = None  # verdict of the gate, if the bundle has evaluation tiles


class Record(Protocol):
    """What all records of the store have."""

    @property
    def format(self) -> int: ...


Kept = TypeVar("Kept", bound=Record)


class PlanStore:
    """The plans of this user on this machine."""

    def __init__(self) -> None:
        self._folder = PrivateFolder.of("plans")

    def prepare(self) -> None:
        """Checks the directory before slow work: StorageError if not writable, InputError if others can write to it."""
        self._folder.prepare()

    def compiling(self) -> AbstractContextManager[None]:
        """Returns a lock that one process holds at a time: two builders at once would compete for memory."""
        return self._folder.locked("compiles plans")

    def sweep(self) -> None:
        """Removes unfinished files and unreferenced plans that killed processes left; call it while ``compiling``."""
        names = self._folder.names()
        wanted: set[str] = set()
        for name in names:
            if name.endswith(_RECORD) and not name.startswith((".", _CHOICE)):
                wanted.update(record.sha256 + _PLAN for record in self._named_in(name))
        for name in names:
            if name.startswith(".") or (name.endswith(_PLAN) and name not in wanted):
                self._folder.remove(name)

    def _named_in(self, name: str) -> list[PlanRecord]:
        if name.startswith(_ACTIVE):
            active = self._read_or_warn(name, Activation)
            return list(active.plans.values()) if active else []
        record = self._read_or_warn(name, PlanRecord)
        return [record] if record else []

    def cached(self, key: PlanKey) -> tuple[PlanRecord, bytes] | None:
        """Returns the plan of ``key`` and its record if it is stored; a damaged plan is logged and ignored."""
        record = self._read_or_warn(key.name() + _RECORD, PlanRecord)
        if record is None or record.key != key:
            return None
        try:
            return record, self.plan(record)
        except InputError as error:
            current().warning(f"{error}; it is compiled again")
            return None

    def plan(self, record: PlanRecord) -> bytes:
        """Reads the bytes of a plan; raises InputError if they are missing or do not match the record."""
        name = record.sha256 + _PLAN
        path = self._folder.path / name
        try:
            data = self._folder.read(name, record.size)
        except OSError as error:
            raise InputError(f"plan {path} cannot be read: {error.strerror}") from error
        if data is None:
            raise InputError(f"plan {path} is missing")
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise InputError(f"plan {path} was changed after it was compiled")
        return data

    def keep(self, record: PlanRecord, data: bytes) -> None:
        """Writes a plan and its record; raises StorageError if the disk refuses."""
        self._folder.write(record.sha256 + _PLAN, data)
        self._folder.write_sealed(record.key.name() + _RECORD, encode(record))

    def activate(self, activation: Activation) -> None:
        """Makes these plans the active ones of their slot."""
        self._folder.write_sealed(activation.slot.name() + _RECORD, encode(activation))

    def active(self, slot: Slot) -> Activation | None:
        """Returns the active plans of a slot; raises InputError if other users could have changed the record."""
        found = self._read(slot.name() + _RECORD, Activation)
        return found if found and found.slot == slot else None

    def elsewhere(self, slot: Slot) -> list[str]:
        """Returns the devices that plans of the slot's engine were compiled on, for a message."""
        found = [self._read_or_warn(name, Activation) for name in self._names(_ACTIVE)]
        slots = [one.slot for one in found if one]
        return sorted(
            one.device for one in slots if (one.bundle_sha256, one.engine) == (slot.bundle_sha256, slot.engine)
        )

    def has_choices(self) -> bool:
        """Returns whether any choice is stored: without one, callers need not query the GPU."""
        return bool(self._names(_CHOICE))

    def keep_choice(self, scope: Struct, choice: Struct) -> None:
        """Writes the record of a choice; raises StorageError if the disk refuses."""
        self._folder.write_sealed(f"{_CHOICE}{_digest(scope)}{_RECORD}", encode(choice))

    def choice(self, scope: Struct, kind: type[Kept]) -> Kept | None:
        """Reads the record of a choice; None if there is none. Raises InputError if it is damaged."""
        return self._read(f"{_CHOICE}{_digest(scope)}{_RECORD}", kind)

    def _names(self, prefix: str) -> list[str]:
        try:
            return [name for name in self._folder.names() if name.startswith(prefix)]
        except FileNotFoundError:  # the folder does not exist
            return []

    def discard(self, slot: Slot, key: PlanKey, sha256: str) -> None:
        """Deactivates and removes a plan that failed."""
        active = self._read_or_warn(slot.name() + _RECORD, Activation)
        if active and any(record.sha256 == sha256 for record in active.plans.values()):
            self._folder.remove(slot.name() + _RECORD)
        record = self._read_or_warn(key.name() + _RECORD, PlanRecord)
        if record and record.sha256 == sha256:
            self._folder.remove(key.name() + _RECORD)
            self._folder.remove(sha256 + _PLAN)

    def timings(self, key: PlanKey) -> TimingFile:
        device = hashlib.sha256(key.device.encode()).hexdigest()[:8]
        name = f"{key.vendor}-{key.vendor_version}-{key.compute_capability}-{device}.timing"
        return TimingFile(self._folder, name)

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        """Reads a record; None if it does not exist. Raises InputError if it is damaged or of another format."""
        path = self._folder.path / name
        try:
            data = self._folder.read_sealed(name, PLAN_RECORD_BYTES)
            found = None if data is None else msgspec.json.decode(data, type=kind)
        except (OSError, *JSON_ERRORS) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if found is not None and found.format != FORMAT:
            raise InputError(f"{path} has format {found.format}; this version reads format {FORMAT}")
        return found

    def _read_or_warn(self, name: str, kind: type[Kept]) -> Kept | None:
        """Reads a record; logs one that cannot be used and returns None."""
        try:
            return self._read(name, kind)
        except InputError as error:
            current().warning(str(error))
            return None


class TimingFile:
    """A CacheFile in a private directory, protected by a digest."""

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

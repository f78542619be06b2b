"""What ``misgnet-run tune`` measured: a JSON file for each bundle and machine in the user's cache, and its use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from misgnet_runtime.bundle.fields import EngineName
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import MOST_STREAMS, ExecutionOptions, is_on_cpu, streams_for_scenes
from misgnet_runtime.engines.cuda import first_device, open_driver
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.limits import TUNING_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.machine import describe_machine, installed_versions, usable_cores
from misgnet_runtime.storage.private import NoFolderError, PrivateFolder
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Positive, Sha256, Struct, encode

Goal = Literal["latency", "throughput"]  # optimise for one pair at a time, or for many
FORMAT = 2

# Distributions whose versions change how fast an engine of that kind is.
_LIBRARIES = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "rtx": ("tensorrt-rtx",),
    "tensorrt": ("tensorrt",),
}


class Setting(Struct, frozen=True):
    """How an engine was run: batches in flight at once, and tiles per inference call."""

    streams: Positive
    batch: Positive

    def words(self) -> str:
        """For a person: "2 streams, batch 1"."""
        return f"{plural(self.streams, 'stream')}, batch {self.batch}"


ONE_PAIR = Setting(1, 1)  # for latency: nothing else is in flight


class Measurement(Struct, frozen=True):
    """An engine with one setting, measured in alternating rounds with the default."""

    engine: EngineName
    setting: Setting
    pairs_per_second: float  # median of the rounds
    ratio: float  # median of the rounds' ratios to the default
    spread: float  # of these ratios, from their first to their third quartile
    rounds: list[float]  # pairs/s of each


class Place(Struct, frozen=True):
    """The bundle and the machine that a tuning is for."""

    bundle_sha256: Sha256  # of the manifest
    processor: str
    cores: Count

    @classmethod
    def of(cls, bundle: Bundle) -> Place:
        machine = describe_machine()
        processor = ", ".join(str(machine[key]) for key in ("processor", "model") if key in machine)
        return cls(bundle.digest(), processor, usable_cores())


class Tuning(Struct, frozen=True):
    """What is kept of a bundle on one machine."""

    format: int
    created: str  # ISO 8601, UTC
    place: Place
    gpu: str  # empty: none, or no engine of the bundle is for one
    libraries: dict[str, str]  # versions by distribution
    latency: EngineName  # the engine that is fastest for one pair
    throughput: EngineName  # the engine that is fastest for many
    settings: dict[EngineName, Setting]  # the fastest of each engine for many
    measurements: list[Measurement]

    def engine(self, goal: Goal) -> str:
        return self.latency if goal == "latency" else self.throughput

    def setting(self, engine: str, goal: Goal) -> Setting | None:
        """How to run ``engine``; None where it was not measured."""
        return self.settings.get(engine) and (ONE_PAIR if goal == "latency" else self.settings[engine])


@dataclass(frozen=True)
class ResolvedOptions:
    """How an engine is run, and what to report of that; empty where nothing was tuned."""

    execution: ExecutionOptions
    note: str = ""


@dataclass(frozen=True)
class Tuned:
    """What is kept for a goal, if anything; without a goal nothing is looked for."""

    goal: Goal | None
    tuning: Tuning | None

    @classmethod
    def of(cls, bundle: Bundle, goal: Goal | None) -> Tuned:
        return cls(goal, kept(bundle) if goal else None)

    @property
    def engine(self) -> str | None:
        """The engine that was measured fastest."""
        return self.tuning.engine(self.goal) if self.tuning and self.goal else None

    def order(self, entries: list[EngineEntry]) -> list[EngineEntry]:
        """``entries``, the one that was measured fastest first, if it is among them."""
        return sorted(entries, key=lambda entry: entry.name != self.engine)

    def resolve(self, entry: EngineEntry, requested: ExecutionOptions) -> ResolvedOptions:
        """What is requested comes first, then what was tuned, then as many streams as keep the device busy."""
        setting = self.tuning.setting(entry.name, self.goal) if self.tuning and self.goal else None
        if setting is None:
            return ResolvedOptions(replace(requested, streams=requested.streams or streams_for_scenes(entry)))
        found = Setting(requested.streams or setting.streams, requested.batch or setting.batch)
        note = "tuned here" if found == setting else "tuned here, but for the requested options"
        execution = replace(requested, streams=found.streams, batch=found.batch)
        return ResolvedOptions(execution, f"; {note}: {found.words()}")


def prepare() -> None:
    """Before anything slow: StorageError where nothing could be kept, InputError where others could change it."""
    _folder().prepare()


def keep(tuning: Tuning) -> Path:
    """Write the tuning, whole or not at all; the file's path."""
    folder = _folder()
    folder.prepare()
    return folder.write_sealed(_name_of(tuning.place), encode(tuning))


def kept(bundle: Bundle) -> Tuning | None:
    """What is kept of this bundle on this machine. One that is of no use is logged, and as good as not there."""
    place, where = Place.of(bundle), ""
    try:
        folder = _folder()
        for name in (_name_of(place), *_earlier_names(bundle, place)):
            where = f" in {folder.path / name}"
            if (data := folder.read_sealed(name, TUNING_BYTES)) is not None:
                return _checked(_decode(data), bundle, place)
    except NoFolderError:
        return None
    except (InputError, OSError, *JSON_ERRORS) as error:
        reason = " ".join(str(error).split())
        current().warning(
            f"the tuning of bundle {bundle.name}{where} is not used: {reason}; run misgnet-run tune {bundle.name}"
        )
    return None


def gpu_of(bundle: Bundle) -> str:
    """The GPU of this machine; empty where there is none, or no engine of ``bundle`` is for one."""
    if all(map(is_on_cpu, bundle.manifest.engines)):
        return ""
    try:
        device = first_device(open_driver())
    except UnavailableError:
        return ""
    return f"{device.name} ({device.compute_capability})"


def libraries_of(bundle: Bundle) -> dict[str, str]:
    """Versions of what is installed here of the libraries that run the engines of ``bundle``."""
    kinds = {entry.kind for entry in bundle.manifest.engines}
    return installed_versions(name for kind in sorted(kinds) for name in _LIBRARIES[kind])


class _Format(msgspec.Struct):
    """Of a tuning of any version."""

    format: int


def _decode(data: bytes) -> Tuning:
    if (found := msgspec.json.decode(data, type=_Format).format) != FORMAT:
        raise InputError(f"it has format {found}, this version reads {FORMAT}")
    return msgspec.json.decode(data, type=Tuning)


def _checked(found: Tuning, bundle: Bundle, place: Place) -> Tuning:
    """``found``; InputError where it does not hold for ``bundle`` at ``place``."""
    if found.place != place:
        raise InputError("it is of another bundle or machine")
    if (gpu := gpu_of(bundle)) != found.gpu:
        raise InputError(f"it was measured with {found.gpu or 'no GPU'}, here is {gpu or 'none'}")
    here = libraries_of(bundle)
    for name in sorted(here.keys() | found.libraries.keys()):
        if (then := found.libraries.get(name)) != (now := here.get(name)):
            raise InputError(f"it was measured with {name} {then or '(none)'}, here is {now or 'none'}")
    engines = {entry.name for entry in bundle.manifest.engines}
    if not {found.latency, found.throughput} <= found.settings.keys() <= engines:
        raise InputError("it names engines that the bundle or it does not have")
    largest = bundle.manifest.interface.max_batch
    if any(each.batch > largest or each.streams > MOST_STREAMS for each in found.settings.values()):
        raise InputError("it has settings that this bundle cannot be run with")
    return found


def _folder() -> PrivateFolder:
    return PrivateFolder.of("tuning")


def _name_of(place: Struct) -> str:
    return f"{hashlib.sha256(msgspec.json.encode(place)).hexdigest()[:32]}.json"


class _EarlierPlace(Struct, frozen=True):
    """What the name of a file of format 1 was made from: there was one for each engine."""

    bundle_sha256: str
    engine: str
    processor: str
    cores: int
    gpu: str
    library: str = ""


def _earlier_names(bundle: Bundle, place: Place) -> Iterator[str]:
    if not _folder().path.is_dir():  # nothing was ever kept: the GPU need not be asked for
        return
    gpu = gpu_of(bundle)
    for entry in bundle.manifest.engines:
        own = "" if is_on_cpu(entry) else gpu
        yield _name_of(
            _EarlierPlace(
                bundle_sha256=place.bundle_sha256, engine=entry.name, processor=place.processor, cores=place.cores,
                gpu=own,
            )
        )  # fmt: skip

"""Saves the measurements of ``misgnet-run tune`` and applies them: a JSON file per bundle and machine in the cache."""

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
from misgnet_runtime.engines import LIBRARIES, MOST_STREAMS, ExecutionOptions, is_on_cpu, streams_for_scenes
from misgnet_runtime.engines.cuda import first_device, open_driver
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.limits import TUNING_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.machine import describe_machine, installed_versions, usable_cores
from misgnet_runtime.storage.private import NoFolderError, PrivateFolder
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Positive, Sha256, Struct, encode

OptimiseFor = Literal["latency", "throughput"]  # one pair at a time, or many
FORMAT = 2


class Setting(Struct, frozen=True):
    """Settings that an engine is run with."""

    # Batches in flight at once.
    streams: Positive
    # Tiles per inference call.
    batch: Positive

    def describe(self) -> str:
        """Formats the settings for a message: "2 streams, batch 1"."""
        return f"{plural(self.streams, 'stream')}, batch {self.batch}"


ONE_PAIR = Setting(1, 1)  # optimised for latency: nothing else is in flight


class Measurement(Struct, frozen=True):
    """The throughput of an engine with one setting, measured in alternating rounds with the default."""

    engine: EngineName
    setting: Setting
    # Median of the rounds.
    pairs_per_second: float
    # Median of the rounds' ratios to the default setting.
    ratio: float
    # Interquartile range of these ratios.
    spread: float
    # Pairs per second of each round.
    rounds: list[float]


class Scope(Struct, frozen=True):
    """The bundle and the machine that a tuning applies to."""

    # Digest of the manifest, which states the digest of every file.
    bundle_sha256: Sha256
    # Processor and, if known, model of the machine.
    processor: str
    # Number of usable CPU cores.
    cores: Count

    @classmethod
    def of(cls, bundle: Bundle) -> Scope:
        machine = describe_machine()
        processor = ", ".join(str(machine[key]) for key in ("processor", "model") if key in machine)
        return cls(bundle.digest(), processor, usable_cores())


class Tuning(Struct, frozen=True):
    """The saved tuning of a bundle on one machine."""

    # Version of this file format.
    format: int
    # ISO 8601, UTC.
    created: str
    # Bundle and machine that the tuning applies to.
    place: Scope
    # GPU and its compute capability; empty: no GPU, or no engine of the bundle uses one.
    gpu: str
    # Versions of the libraries that run the engines.
    libraries: dict[str, str]
    # Engine with the lowest latency for one pair.
    latency: EngineName
    # Engine with the highest throughput.
    throughput: EngineName
    # Setting with the highest throughput, by engine.
    settings: dict[EngineName, Setting]
    # All measurements.
    measurements: list[Measurement]

    def engine(self, optimise_for: OptimiseFor) -> str:
        return self.latency if optimise_for == "latency" else self.throughput

    def setting(self, engine: str, optimise_for: OptimiseFor) -> Setting | None:
        """Returns the settings of ``engine``, or None if it was not measured."""
        return self.settings.get(engine) and (ONE_PAIR if optimise_for == "latency" else self.settings[engine])


@dataclass(frozen=True)
class ResolvedOptions:
    """The options that an engine is run with."""

    execution: ExecutionOptions
    note: str = ""  # reported to the user; empty if nothing was tuned


@dataclass(frozen=True)
class Tuned:
    """The saved tuning to apply, if any; ``optimise_for`` None ignores saved tunings."""

    optimise_for: OptimiseFor | None
    tuning: Tuning | None

    @classmethod
    def of(cls, bundle: Bundle, optimise_for: OptimiseFor | None) -> Tuned:
        return cls(optimise_for, kept(bundle) if optimise_for else None)

    @property
    def engine(self) -> str | None:
        """The engine that was measured fastest."""
        return self.tuning.engine(self.optimise_for) if self.tuning and self.optimise_for else None

    def order(self, entries: list[EngineEntry]) -> list[EngineEntry]:
        """Returns ``entries`` with the engine that was measured fastest first, if it is among them."""
        return sorted(entries, key=lambda entry: entry.name != self.engine)

    def resolve(self, entry: EngineEntry, requested: ExecutionOptions) -> ResolvedOptions:
        """Resolves options: requested ones first, then tuned ones, then enough streams to keep the device busy."""
        setting = self.tuning.setting(entry.name, self.optimise_for) if self.tuning and self.optimise_for else None
        if setting is None:
            return ResolvedOptions(replace(requested, streams=requested.streams or streams_for_scenes(entry)))
        found = Setting(requested.streams or setting.streams, requested.batch or setting.batch)
        note = "tuned here" if found == setting else "tuned here, except for the requested options"
        execution = replace(requested, streams=found.streams, batch=found.batch)
        return ResolvedOptions(execution, f"; {note}: {found.describe()}")


def prepare() -> None:
    """Checks the directory before slow work: StorageError if not writable, InputError if others can write to it."""
    _folder().prepare()


def keep(tuning: Tuning) -> Path:
    """Writes the tuning atomically and returns the file's path."""
    folder = _folder()
    folder.prepare()
    return folder.write_sealed(_name_of(tuning.place), encode(tuning))


def kept(bundle: Bundle) -> Tuning | None:
    """Reads the tuning of this bundle on this machine; None if there is none. An unusable one is logged and ignored."""
    scope, where = Scope.of(bundle), ""
    try:
        folder = _folder()
        for name in (_name_of(scope), *_earlier_names(bundle, scope)):
            where = f" in {folder.path / name}"
            if (data := folder.read_sealed(name, TUNING_BYTES)) is not None:
                return _checked(_decode(data), bundle, scope)
    except NoFolderError:
        return None
    except (InputError, OSError, *JSON_ERRORS) as error:
        reason = " ".join(str(error).split())
        current().warning(
            f"the tuning of bundle {bundle.name}{where} is not used: {reason}; run misgnet-run tune {bundle.name}"
        )
    return None


def gpu_of(bundle: Bundle) -> str:
    """Returns the GPU of this machine; empty if there is none, or no engine of ``bundle`` uses one."""
    if all(map(is_on_cpu, bundle.manifest.engines)):
        return ""
    try:
        device = first_device(open_driver())
    except UnavailableError:
        return ""
    return f"{device.name} ({device.compute_capability})"


def libraries_of(bundle: Bundle) -> dict[str, str]:
    """Returns the installed versions of the libraries that run the engines of ``bundle``, by distribution."""
    kinds = {entry.kind for entry in bundle.manifest.engines}
    return installed_versions(name for kind in sorted(kinds) for name in LIBRARIES[kind])


class _Format(msgspec.Struct):
    """The format field, which tunings of all versions have."""

    format: int


def _decode(data: bytes) -> Tuning:
    if (found := msgspec.json.decode(data, type=_Format).format) != FORMAT:
        raise InputError(f"it has format {found}; this version reads format {FORMAT}")
    return msgspec.json.decode(data, type=Tuning)


def _checked(found: Tuning, bundle: Bundle, scope: Scope) -> Tuning:
    """Returns ``found``; raises InputError if it does not apply to ``bundle`` on this machine."""
    if found.place != scope:
        raise InputError("it was made for another bundle or machine")
    if (gpu := gpu_of(bundle)) != found.gpu:
        raise InputError(f"it was measured with {found.gpu or 'no GPU'}, this machine has {gpu or 'no GPU'}")
    here = libraries_of(bundle)
    for name in sorted(here.keys() | found.libraries.keys()):
        if (then := found.libraries.get(name)) != (now := here.get(name)):
            raise InputError(
                f"it was measured with {name} {then or '(not installed)'}, this machine has {now or 'none installed'}"
            )
    engines = {entry.name for entry in bundle.manifest.engines}
    if not {found.latency, found.throughput} <= found.settings.keys() <= engines:
        raise InputError("it names engines that the bundle does not have, or has no settings for one")
    largest = bundle.manifest.interface.max_batch
    if any(each.batch > largest or each.streams > MOST_STREAMS for each in found.settings.values()):
        raise InputError("it has settings that this bundle does not support")
    return found


def _folder() -> PrivateFolder:
    return PrivateFolder.of("tuning")


def _name_of(scope: Struct) -> str:
    return f"{hashlib.sha256(msgspec.json.encode(scope)).hexdigest()[:32]}.json"


class _EarlierScope(Struct, frozen=True):
    """The fields that file names of format 1 were derived from: one file per engine."""

    bundle_sha256: str
    engine: str
    processor: str
    cores: int
    gpu: str
    library: str = ""


def _earlier_names(bundle: Bundle, scope: Scope) -> Iterator[str]:
    if not _folder().path.is_dir():  # nothing was ever saved: do not query the GPU
        return
    gpu = gpu_of(bundle)
    for entry in bundle.manifest.engines:
        own = "" if is_on_cpu(entry) else gpu
        yield _name_of(
            _EarlierScope(
                bundle_sha256=scope.bundle_sha256, engine=entry.name, processor=scope.processor, cores=scope.cores,
                gpu=own,
            )
        )  # fmt: skip

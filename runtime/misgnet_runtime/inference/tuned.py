"""Where tunings are kept: a JSON file for each bundle, engine and machine, in the user's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import MOST_STREAMS, is_on_cpu
from misgnet_runtime.engines.cuda import first_device, open_driver
from misgnet_runtime.engines.openvino import load_openvino
from misgnet_runtime.engines.tensorrt.bindings import load_vendor, rules, vendor_version
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.inference.tuned_settings import FORMAT, Place, Setting, Tuning
from misgnet_runtime.limits import TUNING_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.machine import describe_machine, usable_cores
from misgnet_runtime.storage.private import NoFolderError, PrivateFolder
from misgnet_runtime.storage.schema import JSON_ERRORS, encode


def place_of(bundle: Bundle, entry: EngineEntry) -> Place:
    """This bundle's engine on this machine. Raises UnavailableError where the engine's library is missing."""
    machine = describe_machine()
    processor = ", ".join(str(machine[key]) for key in ("processor", "model") if key in machine)
    digest = bundle.digest()
    return Place(digest, entry.name, processor, usable_cores(), _gpu(entry), _library(entry))


def path_of(place: Place) -> Path:
    """Of the file that is kept for ``place``, whatever the library's version: an older one's tuning is found there."""
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(place, library="")))
    return _folder().path / f"{digest.hexdigest()[:32]}.json"


def prepare() -> None:
    """Before anything slow: StorageError where nothing could be kept, InputError where others could change it."""
    _folder().prepare()


def keep(tuning: Tuning) -> Path:
    """Write the tuning, whole or not at all; the file's path."""
    folder = _folder()
    folder.prepare()
    return folder.write_sealed(path_of(tuning.place).name, encode(tuning))


def kept(bundle: Bundle, entry: EngineEntry) -> Tuning | None:
    """What is kept of this bundle's engine on this machine; what is no use is told, and as good as not there.

    Raises UnavailableError where the engine's library is missing.
    """
    place = place_of(bundle, entry)
    where = ""
    try:
        path = path_of(place)
        where = f" in {path}"
        data = _folder().read_sealed(path.name, TUNING_BYTES)
        found = None if data is None else msgspec.json.decode(data, type=Tuning)
        problem = None if found is None else _misfit(found, place, bundle.manifest.interface.max_batch)
    except NoFolderError:
        return None
    except (InputError, OSError, *JSON_ERRORS) as error:
        found, problem = None, " ".join(str(error).split())
    if problem:
        current().warning(
            f"the tuning of {entry.name}{where} is not used: {problem}; run misgnet-run tune {bundle.name}"
        )
        return None
    return found


def _folder() -> PrivateFolder:
    return PrivateFolder.of("tuning")


def _misfit(found: Tuning, place: Place, max_batch: int) -> str | None:
    """Why a tuning does not hold at ``place``."""
    if found.format != FORMAT:
        return f"it has format {found.format}, this version reads {FORMAT}"
    if found.place.library != place.library:
        return f"it was measured with {found.place.library}, here is {place.library}"
    if found.place != place:
        return "it is of another bundle, engine or machine"
    if not all(_can_run(setting, place, max_batch) for setting in (found.latency.setting, found.throughput.setting)):
        return "it has settings that this machine cannot run"
    return None


def _can_run(setting: Setting, place: Place, max_batch: int) -> bool:
    return setting.batch <= max_batch and setting.streams <= MOST_STREAMS and (setting.threads or 1) <= place.cores


def _library(entry: EngineEntry) -> str:
    if entry.kind in ("rtx", "tensorrt"):
        return f"{rules(entry.kind).title} {vendor_version(load_vendor(entry.kind))}"
    if entry.kind == "openvino":
        return f"OpenVINO {load_openvino().__version__}"
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _gpu(entry: EngineEntry) -> str:
    """Empty where no library for it is installed; then the engine says what it lacks."""
    if is_on_cpu(entry):
        return ""
    try:
        device = first_device(open_driver())
    except UnavailableError:
        return ""
    return f"{device.name} ({device.compute_capability})"

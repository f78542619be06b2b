"""The folder that a Triton server is started with: for each engine NAME/config.pbtxt and NAME/VERSION/model.*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misgnet_export.integrations.triton.config import BACKENDS, Serving, load_schema, model_config
from misgnet_runtime.bundle import Bundle, EngineEntry, read_bundle
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.inference.selection import measured_by_build
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_folder

CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class Model:
    """A model of the repository, the bundle's engine that it is, and what to know of it."""

    name: str
    engine: str
    backend: str
    note: str


@dataclass(frozen=True)
class Repository:
    """What was written, and the engines that were left out, with the reasons."""

    models: list[Model]
    left_out: dict[str, str]


def write_repository(
    bundle_path: Path, output: Path, engines: Sequence[str], serving: Serving, *, force: bool = False
) -> Repository:
    """Write ``output``, whole or not at all: the bundle's ``engines``, or without any all that Triton can run.

    Raises UsageError where ``output`` exists, a number cannot be meant, or an engine that was asked for
    fits no backend, InputError where the bundle is not what it must be, UnavailableError without Triton's schema.
    """
    refuse_inputs([output], [bundle_path])
    refuse_existing(output, force)
    serving.check()
    load_schema()
    bundle = read_bundle(bundle_path)
    entries = [bundle.engine_entry(name) for name in engines] or bundle.manifest.engines
    left_out = {entry.name: problem for entry in entries if (problem := _why_not(entry))}
    fitting = [entry for entry in entries if entry.name not in left_out]
    if not fitting or (engines and left_out):
        raise UsageError("; ".join(f"engine {name}: {why}" for name, why in left_out.items()))
    with replace_folder(output, force=force) as folder:
        models = [_write_model(bundle, entry, folder, serving) for entry in fitting]
    return Repository(models, left_out)


def _why_not(entry: EngineEntry) -> str | None:
    if entry.kind not in BACKENDS:
        return f"Triton has no backend for engines of the kind '{entry.kind}'; a tensorrt target is one for NVIDIA GPUs"
    if entry.on_device:
        return (
            "the bundle holds no plan of it, which its device compiles and keeps for itself; build the bundle on the "
            "server's machine with --target tensorrt"
        )
    return None


def _write_model(bundle: Bundle, entry: EngineEntry, folder: Path, serving: Serving) -> Model:
    name, backend = f"misgnet-{entry.name}", BACKENDS[entry.kind]
    # Triton takes names of digits without a leading zero, and serves the highest.
    place = folder / name / str(max(1, bundle.manifest.bundle_version))
    place.mkdir(parents=True)
    (place / backend.file).write_bytes(bundle.read(entry.file))
    config = model_config(
        name, entry, bundle.manifest.interface, serving,
        speeds=_speeds(bundle, entry), parameters=_facts(bundle, entry),
    )  # fmt: skip
    (folder / name / CONFIG).write_text(_text(config))
    note = "" if "bf16" in entry.precision else backend.note
    return Model(name, entry.name, backend.backend, note)


def _facts(bundle: Bundle, entry: EngineEntry) -> dict[str, str]:
    manifest = bundle.manifest
    return {
        "misgnet_threshold": f"{manifest.threshold:g}",
        "misgnet_bundle_sha256": bundle.digest(),
        "misgnet_bundle_version": str(manifest.bundle_version),
        "misgnet_engine": f"{entry.name}, {entry.precision}",
    }


def _speeds(bundle: Bundle, entry: EngineEntry) -> dict[int, float]:
    measured = measured_by_build(bundle)
    return {speed.batch: speed.pairs_per_second for speed in measured if speed.engine == entry.name}


def _text(config: Any) -> str:
    """As a person would write it; parsed again, it is the same message."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config)
    again = text_format.Parse(text, type(config)())
    if again != config:
        raise InputError(f"the configuration of {config.name} cannot be written as text")
    return str(text)

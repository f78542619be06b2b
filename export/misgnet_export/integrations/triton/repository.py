"""Writes Triton's model repository: NAME/config.pbtxt and NAME/VERSION/model.* for each engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misgnet_export.integrations.triton.config import BACKENDS, Serving, load_schema, model_config
from misgnet_export.integrations.triton.dynamic_plan import ServedFile, compile_dynamic, is_dynamic, why_not_here
from misgnet_runtime.bundle import Bundle, EngineEntry, read_bundle
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.inference.selection import measured_by_build
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_folder

CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class Model:
    """A model of the repository: its engine in the bundle, its backend, and a note for the user (may be empty)."""

    name: str
    engine: str
    backend: str
    note: str


@dataclass(frozen=True)
class Repository:
    """The models that were written, and the reason for each engine that was left out."""

    models: list[Model]
    left_out: dict[str, str]


def write_repository(
    bundle_path: Path, output: Path, engines: Sequence[str], serving: Serving, *, force: bool = False
) -> Repository:
    """Writes the engines of a bundle to the folder ``output``, completely or not at all.

    A TensorRT plan with static shapes is replaced by one for all batches, which is compiled and checked here.

    Args:
        bundle_path: The bundle.
        output: The folder to write.
        engines: Names of the engines to write; empty: all that Triton can run.
        serving: How the server runs the models.
        force: Replace an existing folder.

    Raises:
        UsageError: ``output`` exists, a number is invalid, or a requested engine has no backend.
        InputError: The bundle is invalid.
        UnavailableError: tritonclient is missing, or a plan that was compiled here cannot be opened.
        GateFailed: A plan that was compiled here fails the golden tiles or the F1 gate.
    """
    refuse_inputs([output], [bundle_path])
    refuse_existing(output, force)
    serving.check()
    load_schema()
    bundle = read_bundle(bundle_path)
    entries = [bundle.engine_entry(name) for name in engines] or bundle.manifest.engines
    largest = bundle.manifest.interface.max_batch
    left_out = {entry.name: problem for entry in entries if (problem := _why_not(entry, largest))}
    fitting = [entry for entry in entries if entry.name not in left_out]
    if not fitting or (engines and left_out):
        raise UsageError("; ".join(f"engine {name}: {why}" for name, why in left_out.items()))
    with replace_folder(output, force=force) as folder:
        models = [_write_model(bundle, entry, folder, serving) for entry in fitting]
    return Repository(models, left_out)


def _why_not(entry: EngineEntry, largest: int) -> str | None:
    if entry.kind not in BACKENDS:
        return f"Triton has no backend for engines of kind '{entry.kind}'; for NVIDIA GPUs, use --target tensorrt"
    return why_not_here(entry, largest) if entry.kind == "tensorrt" and not is_dynamic(entry) else None


def _write_model(bundle: Bundle, entry: EngineEntry, folder: Path, serving: Serving) -> Model:
    name, backend = f"misgnet-{entry.name}", BACKENDS[entry.kind]
    served = _served(bundle, entry)
    # Triton's versions are numbers without a leading zero; it serves the highest.
    version = folder / name / str(max(1, bundle.manifest.bundle_version))
    version.mkdir(parents=True)
    (version / backend.file).write_bytes(served.data)
    config = model_config(
        name, served.entry, bundle.manifest.interface, serving,
        speeds=_speeds(bundle, entry), parameters=_parameters(bundle, entry),
    )  # fmt: skip
    (folder / name / CONFIG).write_text(_text(config))
    note = "" if "bf16" in entry.precision else backend.note
    return Model(name, entry.name, backend.backend, note)


def _served(bundle: Bundle, entry: EngineEntry) -> ServedFile:
    if entry.kind == "tensorrt" and not is_dynamic(entry):
        return compile_dynamic(bundle, entry)
    return ServedFile(bundle.read(entry.file), entry)


def _parameters(bundle: Bundle, entry: EngineEntry) -> dict[str, str]:
    manifest = bundle.manifest
    return {
        "misgnet_threshold": f"{manifest.threshold:g}",
        "misgnet_overlap": str(manifest.scene_overlap),
        "misgnet_bundle_sha256": bundle.digest(),
        "misgnet_bundle_version": str(manifest.bundle_version),
        "misgnet_engine": f"{entry.name}, {entry.precision}",
    }


def _speeds(bundle: Bundle, entry: EngineEntry) -> dict[int, float]:
    measured = measured_by_build(bundle)
    return {speed.batch: speed.pairs_per_second for speed in measured if speed.engine == entry.name}


def _text(config: Any) -> str:
    """Returns ``config`` in protobuf's text format; raises InputError if parsing it gives another message."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config)
    again = text_format.Parse(text, type(config)())
    if again != config:
        raise InputError(f"the configuration of {config.name} cannot be written as text")
    return str(text)

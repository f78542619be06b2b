"""Writes Triton's model repository: NAME/config.pbtxt and NAME/VERSION/model.* for each engine."""

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

    Args:
        bundle_path: The bundle.
        output: The folder to write.
        engines: Names of the engines to write; empty: all that Triton can run.
        serving: How the server runs the models.
        force: Replace an existing folder.

    Raises:
        UsageError: ``output`` exists, a number is invalid, or a requested engine has no backend.
        InputError: The bundle is invalid.
        UnavailableError: tritonclient is missing.
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
        return f"Triton has no backend for engines of kind '{entry.kind}'; for NVIDIA GPUs, use --target tensorrt"
    if entry.on_device:
        return (
            "its plan is compiled on the device and is not in the bundle; build the bundle on the server's machine "
            "with --target tensorrt"
        )
    return None


def _write_model(bundle: Bundle, entry: EngineEntry, folder: Path, serving: Serving) -> Model:
    name, backend = f"misgnet-{entry.name}", BACKENDS[entry.kind]
    # Triton's versions are numbers without a leading zero; it serves the highest.
    version = folder / name / str(max(1, bundle.manifest.bundle_version))
    version.mkdir(parents=True)
    (version / backend.file).write_bytes(bundle.read(entry.file))
    config = model_config(
        name, entry, bundle.manifest.interface, serving,
        speeds=_speeds(bundle, entry), parameters=_parameters(bundle, entry),
    )  # fmt: skip
    (folder / name / CONFIG).write_text(_text(config))
    note = "" if "bf16" in entry.precision else backend.note
    return Model(name, entry.name, backend.backend, note)


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

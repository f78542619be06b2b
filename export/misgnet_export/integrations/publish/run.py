"""Publishes a bundle: checks it, then writes the requested format to a folder, completely or not at all."""

from __future__ import annotations

from pathlib import Path

from misgnet_export.integrations.publish import Format
from misgnet_export.integrations.publish.deepness import write_deepness
from misgnet_export.integrations.publish.huggingface import write_huggingface
from misgnet_export.integrations.publish.mlflow import write_mlflow
from misgnet_export.integrations.publish.stac_mlm import write_stac_mlm
from misgnet_runtime.bundle import read_bundle
from misgnet_runtime.errors import UsageError
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_folder


def publish_bundle(
    path: Path, form: Format, output: Path, *, engine: str | None = None, force: bool = False
) -> list[str]:  # fmt: skip
    """Writes a bundle in another tool's format; returns lines about what was written.

    The signature policy holds as for every command that reads a bundle.

    Args:
        path: The bundle.
        form: The format.
        output: The folder to write.
        engine: Name of the engine whose graph ``deepness`` gets; None: see :func:`write_deepness`.
        force: Replace an existing folder.

    Raises:
        UsageError: ``output`` exists, or ``engine`` is unknown or does not fit the format.
        InputError: The bundle is invalid.
        UnavailableError: A library that the format needs is missing.
        GateFailed: The graph for Deepness does not reproduce the masks of the bundle's engine.
    """
    if engine is not None and form != "deepness":
        raise UsageError(
            f"--engine chooses the graph of --as deepness; --as {form} publishes all engines, leave it out"
        )
    refuse_inputs([output], [path])
    refuse_existing(output, force)
    bundle = read_bundle(path)
    with replace_folder(output, force=force) as folder:
        if form == "deepness":
            return write_deepness(bundle, folder, engine)
        write = {"stac-mlm": write_stac_mlm, "huggingface": write_huggingface, "mlflow": write_mlflow}[form]
        return write(bundle, folder)

"""Publishes a bundle: checks it, then writes the requested format to a folder, completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from misgnet_export.integrations.publish.deepness import write_deepness
from misgnet_export.integrations.publish.huggingface import write_huggingface
from misgnet_export.integrations.publish.stac_mlm import write_stac_mlm
from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.errors import UsageError
from misgnet_runtime.storage.atomic import refuse_existing, refuse_inputs, replace_folder

Format = Literal["deepness", "stac-mlm", "huggingface"]


@dataclass(frozen=True)
class Publication:
    """What to publish and where."""

    bundle: Path
    form: Format
    output: Path  # the folder to write
    engine: str | None = None  # of ``deepness``; None: chosen there


def publish_bundle(publication: Publication, *, force: bool = False) -> list[str]:
    """Writes a bundle in another tool's format; returns lines about what was written.

    The signature policy holds as for every command that reads a bundle.

    Raises:
        UsageError: The output exists without ``force``, or an engine is unknown or does not fit the format.
        InputError: The bundle is invalid.
        UnavailableError: A library that the format needs is missing.
        GateFailed: The graph for Deepness does not reproduce the masks of the bundle's engine.
    """
    if publication.engine is not None and publication.form != "deepness":
        raise UsageError(
            f"--engine chooses the graph of --as deepness; --as {publication.form} publishes all engines, leave it out"
        )
    refuse_inputs([publication.output], [publication.bundle])
    refuse_existing(publication.output, force)
    bundle = read_bundle(publication.bundle)
    with replace_folder(publication.output, force=force) as folder:
        if publication.form == "deepness":
            return write_deepness(bundle, folder, publication.engine)
        return _WRITERS[publication.form](bundle, folder)


_WRITERS: Mapping[str, Callable[[Bundle, Path], list[str]]] = {
    "huggingface": write_huggingface, "stac-mlm": write_stac_mlm,
}  # fmt: skip

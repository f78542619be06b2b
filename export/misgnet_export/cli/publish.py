"""The ``misgnet-export publish`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_export.integrations.publish import Format
from misgnet_runtime.cli.completion import engine_names
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.log import current


def publish(
    bundle: BundlePath,
    *,
    form: Annotated[
        Format,
        typer.Option(
            "--as",
            help="Format: deepness (a model for the QGIS plugin), stac-mlm (a STAC Item about the model), huggingface "
            "(a folder with a model card; nothing is uploaded), mlflow (a pyfunc model that takes two arrays).",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder.")],
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine whose graph deepness gets (default: cpu, or else the first of ONNX Runtime).",
            autocompletion=engine_names,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
) -> None:
    """Write a bundle in another format: for QGIS with Deepness, STAC catalogues, the Hugging Face Hub or MLflow."""
    from misgnet_export.integrations.publish.run import publish_bundle

    written = publish_bundle(bundle, form, output, engine=engine, force=force)
    current().result([*written, f"published: {output}"])

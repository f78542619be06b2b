"""Writes a bundle as a model of MLflow's ``pyfunc`` flavour, which takes the images of both dates."""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from misgnet_export.integrations.publish.bundle_copy import COPIED, COPY, copy_bundle
from misgnet_runtime import __version__
from misgnet_runtime.bundle import Bundle
from misgnet_runtime.errors import UnavailableError

_CODE = Path(__file__).with_name("mlflow_model.py")
_FLAVOUR = "python_function"
# By default, MLflow reports its use to a server, and shows progress; nothing here touches a network.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def write_mlflow(bundle: Bundle, folder: Path) -> list[str]:
    """Writes the model to ``folder``, with a copy of the bundle; returns lines about what was written.

    The model takes ``{"before": array, "after": array}``, each (H, W, C) of the bundle's bands and samples, and
    returns the probability of change, float32 (H, W).

    Raises:
        InputError: A file of the bundle has changed since it was checked.
        UnavailableError: MLflow is missing.
    """
    pyfunc, models, types = _load("mlflow.pyfunc"), _load("mlflow.models"), _load("mlflow.types")
    interface = bundle.manifest.interface
    image = np.dtype(interface.samples), (-1, -1, interface.bands)
    inputs = types.Schema([types.TensorSpec(*image, date) for date in ("before", "after")])
    outputs = types.Schema([types.TensorSpec(np.dtype(np.float32), (-1, -1))])
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow suggests an example of the input
        copy_bundle(bundle, Path(work))
        pyfunc.save_model(
            str(folder), python_model=str(_CODE), artifacts={"bundle": str(Path(work, COPY))},
            signature=models.ModelSignature(inputs, outputs),
            pip_requirements=[f"misgnet-export=={__version__}"],
        )  # fmt: skip
    _forget_paths(models, folder)
    return ["MLmodel: model of the flavour pyfunc", f"artifacts/{COPIED}"]


def _load(name: str) -> Any:
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError("--as mlflow requires MLflow: pip install 'misgnet-export[mlflow]'") from error


def _forget_paths(models: Any, folder: Path) -> None:
    """Replaces the paths of this machine that MLflow records by those in the model."""
    model = models.Model.load(str(folder))
    flavour = model.flavors[_FLAVOUR]
    flavour["artifacts"]["bundle"]["uri"] = flavour["artifacts"]["bundle"]["path"]
    flavour["model_code_path"] = _CODE.name
    model.save(str(folder / "MLmodel"))

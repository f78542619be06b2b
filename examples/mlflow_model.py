"""Saves a bundle as an MLflow model that takes the images of both dates and returns the probability of change.

    pip install mlflow-skinny pandas misgnet-export
    python examples/mlflow_model.py bundle/ model/

Then, with arrays (H, W, C) of any size, of the bundle's bands and samples:

    model = mlflow.pyfunc.load_model("model/")
    probability = model.predict({"before": before, "after": after})  # float32 (H, W)

MLflow copies this file and the bundle into the model, and runs the file when it loads the model.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature, set_model
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

import misgnet_runtime


class ChangeModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A bundle, opened when MLflow loads the model."""

    def load_context(self, context: Any) -> None:
        self._network = misgnet_runtime.open_bundle(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: dict[str, Any], params: Any = None) -> NDArray[np.float32]:  # noqa: ARG002
        change = self._network.predict(model_input["before"], model_input["after"])
        return np.asarray(change.probability)


def save(bundle: str, model: str) -> None:
    """Checks ``bundle`` and writes the folder ``model``, which must not exist."""
    with misgnet_runtime.open_bundle(bundle) as network:
        interface = network.manifest.interface
    image = (-1, -1, interface.bands)
    inputs = Schema([TensorSpec(np.dtype(interface.samples), image, date) for date in ("before", "after")])
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    mlflow.pyfunc.save_model(
        model, python_model=__file__, artifacts={"bundle": bundle}, signature=ModelSignature(inputs, outputs),
        pip_requirements=[f"misgnet-export=={importlib.metadata.version('misgnet-export')}"],
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a bundle made by misgnet-export build")
    parser.add_argument("model", help="folder to write")
    given = parser.parse_args()
    save(given.bundle, given.model)
else:
    set_model(ChangeModel())

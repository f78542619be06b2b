"""The model that MLflow loads: MLflow copies this file and the bundle into the model's folder, and runs the file there.

It requires the runtime only.
"""

from __future__ import annotations

from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import set_model

import misgnet_runtime


class ChangeModel(mlflow.pyfunc.PythonModel):
    """A bundle, opened when MLflow loads the model."""

    def load_context(self, context: Any) -> None:
        self._network = misgnet_runtime.open_bundle(context.artifacts["bundle"])

    # Without type hints: MLflow would take them for another signature than the one that is saved.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Returns the probability of change, (H, W), from arrays (H, W, C) ``before`` and ``after`` of any size."""
        change = self._network.predict(model_input["before"], model_input["after"])
        return np.asarray(change.probability)


set_model(ChangeModel())

"""Runs a model as Deepness does, following the plugin's documentation; see test_publish_deepness.py.

One input (B, C, S, S), images divided by 255 and standardized by the metadata, one output (B, 1, S, S) or (B, N, S, S);
a pixel has the class if its value is not below ``seg_thresh``. Parameters are JSON in the model's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class DeepnessModel:
    """A model of the type Segmentor."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (self._input,) = self._session.get_inputs()
        (self._output,) = self._session.get_outputs()
        found = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {key: json.loads(value) for key, value in found.items() if not key.startswith("misgnet_")}
        assert self.metadata["model_type"] == "Segmentor" and len(self._output.shape) == 4

    @property
    def input_shape(self) -> list[int | str]:
        return list(self._input.shape)

    @property
    def output_shape(self) -> list[int | str]:
        return list(self._output.shape)

    def probability(self, tiles: NDArray[Any]) -> NDArray[np.float32]:
        """Returns the output, (B, 1, S, S), for tiles (B, S, S, C)."""
        values = np.float32(tiles * 1.0 / 255.0)
        mean, std = (np.array(self.metadata[f"standardization_{name}"], np.float32) for name in ("mean", "std"))
        standardized = ((values - mean) / std).transpose(0, 3, 1, 2)
        (found,) = self._session.run(None, {self._input.name: standardized})
        return np.asarray(found)

    def mask(self, tiles: NDArray[Any]) -> NDArray[np.bool_]:
        """Returns which pixels of tiles (B, S, S, C) have the class, bool (B, S, S)."""
        found = self.probability(tiles)[:, 0]
        return np.asarray(found >= self.metadata["seg_thresh"])

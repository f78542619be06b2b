"""Detects the change between two images with a Triton server and writes a mask.

    misgnet-export triton bundle/ -o models/
    tritonserver --model-repository models/
    python examples/triton_client.py misgnet-cpu before.png after.png mask.png --url localhost:8001

The client uses this package for tiling but needs no engine: pip install 'misgnet-export[triton]'. The model takes raw
images (``misgnet-export build --input uint8``, the default, or uint16) and returns probabilities or a mask. Images of
more than three bands are read from GeoTIFFs: pip install 'misgnet-export[geo]'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import DataType

from misgnet_runtime.inference.tiled import predict_scene
from misgnet_runtime.pixels import PixelFormat
from misgnet_runtime.raster.images import Image, Mask, read_pair, write_mask
from misgnet_runtime.storage.atomic import replace_file


class RemoteModel:
    """A model on a server, which provides its tile size, pixel format, maximum batch size, threshold and overlap."""

    def __init__(self, url: str, model: str) -> None:
        self._client = triton.InferenceServerClient(url)
        self._model = model
        config = self._client.get_model_config(model).config
        dims = [int(size) for size in config.input[0].dims]
        self.tile, bands = dims[-2:]  # [B,] T, T, C
        self._type = DataType.Name(config.input[0].data_type).removeprefix("TYPE_")
        self.pixels = PixelFormat(bands, "uint16" if self._type == "UINT16" else "uint8")
        self.batch = max(1, config.max_batch_size)
        self._output = config.output[0].name
        self.threshold = float(config.parameters["misgnet_threshold"].string_value)
        self.overlap = int(config.parameters["misgnet_overlap"].string_value)

    def predict(self, before: Image, after: Image) -> NDArray[np.float32]:
        """Returns the probability of change, float32 (B, T, T), for tiles of both dates, (B, T, T, C)."""
        inputs = [self._input("before", before), self._input("after", after)]
        output = self._client.infer(self._model, inputs).as_numpy(self._output)
        assert output is not None
        return output.astype(np.float32)

    def mask(self, before: Image, after: Image) -> Mask:
        """Returns the change mask, bool (H, W), for images of any size, (H, W, C)."""
        found = predict_scene(
            self.predict, before, after, self.tile, batch=self.batch, overlap=self.overlap, pixels=self.pixels
        )
        return found > self.threshold

    def _input(self, name: str, tiles: Image) -> triton.InferInput:
        found = triton.InferInput(name, list(tiles.shape), self._type)
        found.set_data_from_numpy(tiles)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Detect the change between two images with a Triton server.")
    parser.add_argument("model", help="Name of the model: misgnet-ENGINE.")
    for name, description in (
        ("before", "Image of the earlier date."), ("after", "Image of the later date."), ("output", "Mask to write."),
    ):  # fmt: skip
        parser.add_argument(name, type=Path, help=description)
    parser.add_argument("--url", default="localhost:8001", help="gRPC endpoint (default: localhost:8001).")
    options = parser.parse_args()
    model = RemoteModel(options.url, options.model)
    mask = model.mask(*read_pair(options.before, options.after, model.pixels))
    with replace_file(options.output) as temporary:
        write_mask(temporary, mask)
    print(f"{options.output}: {mask.shape[1]} x {mask.shape[0]} px, {100 * mask.mean():.2f} % changed")


if __name__ == "__main__":
    main()

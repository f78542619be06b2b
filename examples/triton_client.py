"""Ask a Triton server for the change between two images: NumPy arrays in, a mask out.

    misgnet-export triton bundle/ -o models/
    tritonserver --model-repository models/
    python examples/triton_client.py misgnet-cpu before.png after.png mask.png --url localhost:8001

The client needs no engine, but this package's tiling: pip install 'misgnet-export[triton]'. The model takes raw uint8
RGB (``misgnet-export build --input uint8``, the default) and answers with probabilities or a mask.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from misgnet_runtime.inference.tiled import predict_scene
from misgnet_runtime.raster.images import Mask, RgbImage, read_pair, write_mask
from misgnet_runtime.storage.atomic import replace_file


class RemoteModel:
    """A model on a server. What it is asked of its tile, largest batch and threshold comes from the server."""

    def __init__(self, url: str, model: str) -> None:
        self._client = triton.InferenceServerClient(url)
        self._model = model
        config = self._client.get_model_config(model).config
        dims = [int(size) for size in config.input[0].dims]
        self.tile = dims[-2]  # [B,] T, T, 3
        self.batch = max(1, config.max_batch_size)
        self._output = config.output[0].name
        self.threshold = float(config.parameters["misgnet_threshold"].string_value)

    def predict(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tiles uint8 (B, T, T, 3) of both dates -> float32 (B, T, T)."""
        inputs = [_input("before", before), _input("after", after)]
        answer = self._client.infer(self._model, inputs).as_numpy(self._output)
        assert answer is not None
        return answer.astype(np.float32)

    def mask(self, before: RgbImage, after: RgbImage) -> Mask:
        """Images of any size, uint8 (H, W, 3) -> bool (H, W)."""
        return predict_scene(self.predict, before, after, self.tile, self.batch) > self.threshold


def _input(name: str, tiles: NDArray[np.uint8]) -> triton.InferInput:
    found = triton.InferInput(name, list(tiles.shape), "UINT8")
    found.set_data_from_numpy(tiles)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="the change between two images, by a Triton server")
    parser.add_argument("model", help="misgnet-ENGINE")
    for name in ("before", "after", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--url", default="localhost:8001", help="the server's gRPC endpoint")
    words = parser.parse_args()
    mask = RemoteModel(words.url, words.model).mask(*read_pair(words.before, words.after))
    with replace_file(words.output) as temporary:
        write_mask(temporary, mask)
    print(f"{words.output}: {mask.shape[1]} x {mask.shape[0]} px, {100 * mask.mean():.2f} % changed")


if __name__ == "__main__":
    main()

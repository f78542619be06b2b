"""Wraps the network for deployment: raw images in, probability or mask out. The network itself stays unchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from misgnet_runtime.bundle import IMAGENET_MEAN, IMAGENET_STD, Interface


class Deployed(nn.Module):
    """A network with the preprocessing and postprocessing that ``interface`` requires."""

    image_gain: Tensor
    image_offset: Tensor

    def __init__(self, network: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.network = network
        self.interface = interface
        std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
        self.register_buffer("image_gain", 1 / (255 * std))
        self.register_buffer("image_offset", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) / std)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        logits = self.network(self._normalised(before), self._normalised(after))
        if self.interface.output == "logits":
            return logits
        if self.interface.output == "mask":
            return (logits[:, 1] > logits[:, 0]).to(torch.uint8)
        return logits.softmax(1)[:, 1]

    def _normalised(self, images: Tensor) -> Tensor:
        if self.interface.input == "float32":
            return images
        # Converted to float first: TensorRT does not transpose uint8 pixels.
        return images.float().permute(0, 3, 1, 2) * self.image_gain - self.image_offset

    def example(self) -> tuple[Tensor, Tensor]:
        """Returns two DIFFERENT inputs: given one tensor for both dates, torch.export makes them a single input."""
        generator = torch.Generator().manual_seed(0)
        entries = self.interface.inputs()
        shape = [2 if n == -1 else n for n in entries[0].shape]
        before, after = (torch.rand(shape, generator=generator) for _ in entries)
        if self.interface.raw:
            return (before * 255).to(torch.uint8), (after * 255).to(torch.uint8)
        return before, after

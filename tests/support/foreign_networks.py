"""Small networks of others' kind: three ways to take both dates, five kinds of output, as PyTorch and as ONNX files.

They measure the mean difference of the dates in a neighbourhood, so without training their masks of generated tiles are
neither empty nor full.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Literal

import onnx
import torch
from torch import Tensor, nn

Io = Literal["pair", "stacked", "time"]
IOS: tuple[Io, ...] = ("pair", "stacked", "time")
# classes:4 with --changed 1,3
KINDS = ("logits2", "logit1", "probability1", "probability2", "classes:4")
CHANGED = (1, 3)


class ForeignNetwork(nn.Module):
    """Encodes both dates with one convolution, compares them, and outputs ``kind`` for each pixel."""

    def __init__(
        self, io: Io = "pair", kind: str = "logits2", bands: int = 3, *, squeezed: bool = False, level: float = 0.5
    ) -> None:
        """``squeezed`` leaves out an axis of one channel; ``level`` is the difference at which the probability is 0.5,
        in the units of the normalised images."""
        super().__init__()
        self.io, self.kind, self.bands, self.squeezed = io, kind, bands, squeezed
        generator = torch.Generator().manual_seed(bands)
        self.encoder = nn.Sequential(nn.Conv2d(bands, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.smooth = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.head = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            for module in (self.encoder[0], self.smooth, self.head):
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise / module.weight[0].numel() ** 0.5)
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
            self.encoder[1].running_var.copy_(torch.rand(8, generator=generator) + 0.5)
            self.smooth.weight.copy_(self.smooth.weight.abs())  # more difference is more change
            self.smooth.bias.zero_()
            self.head.weight.copy_(self.head.weight.abs() * torch.tensor([-3.0, 3.0, -1.5, 2.0]).view(4, 1, 1, 1))
            self.head.bias.copy_(torch.tensor([3.0, -3.0, 1.5, -2.0]) * 1.2 * level)
        self.eval()

    def forward(self, *images: Tensor) -> Tensor:
        logits = self.compare(*(self.encode(date) for date in self._dates(images)))
        if self.kind.startswith("classes"):
            return logits
        two = logits[:, :2]
        one = two[:, 1:] - two[:, :1]
        found = {
            "logits2": two, "probability2": two.softmax(1), "logit1": one, "probability1": one.sigmoid()
        }[self.kind]  # fmt: skip
        return found[:, 0] if self.squeezed else found

    def encode(self, image: Tensor) -> Tensor:
        return self.encoder(image)

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        maps = torch.relu(self.smooth((before - after).abs()))
        return nn.functional.interpolate(self.head(maps), scale_factor=2, mode="bilinear", align_corners=False)

    def _dates(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if self.io == "pair":
            return images[0], images[1]
        (both,) = images
        if self.io == "time":
            return both[:, 0], both[:, 1]
        return both[:, : self.bands], both[:, self.bands :]

    def example(self, tile: int, batch: int = 2) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        shape = {
            "pair": (batch, self.bands, tile, tile), "stacked": (batch, 2 * self.bands, tile, tile),
            "time": (batch, 2, self.bands, tile, tile),
        }[self.io]  # fmt: skip
        return tuple(torch.randn(shape, generator=generator) for _ in range(2 if self.io == "pair" else 1))


def export(
    network: ForeignNetwork, tile: int | None, *, opset: int = 20, dynamic: bool = True, torchscript: bool = False
) -> onnx.ModelProto:
    """Exports ``network`` to ONNX with PyTorch.

    Args:
        network: The network.
        tile: Side of its images; None: any, with the dynamo exporter.
        opset: Opset of the file.
        dynamic: Whether the batch is symbolic; otherwise it is 1.
        torchscript: Use the older exporter, as many projects still do.
    """
    names = ["images"] if network.io != "pair" else ["image_a", "image_b"]
    example = network.example(tile or 64, 2 if dynamic else 1)
    axes = {0: "batch"} if tile else {0: "batch", example[0].ndim - 2: "height", example[0].ndim - 1: "width"}
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torchscript:
            torch.onnx.export(
                network, example, target, dynamo=False, opset_version=opset, input_names=names,
                output_names=["output"], dynamic_axes=dict.fromkeys(names, axes) if dynamic else None,
            )  # fmt: skip
            return onnx.load_from_string(target.getvalue())
        program = torch.onnx.export(
            network, example, dynamo=True, opset_version=opset, input_names=names, output_names=["output"],
            dynamic_shapes=(tuple(axes for _ in example),) if dynamic else None, verbose=False,
        )  # fmt: skip
    return program.model_proto

"""A network as others write them: the first stages of an EfficientNet as a shared encoder, and a small decoder.

Structure of the blocks: Tan and Le, "EfficientNet", ICML 2019 (inverted bottlenecks with squeeze-and-excite and SiLU).
Each date passes the encoder by itself, so that its weights are read by the operators of both dates.
"""

from __future__ import annotations

import io

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Channels, expansion, kernel and stride of each block.
_BLOCKS = (
    (16, 1, 3, 1), (24, 6, 3, 2), (24, 6, 3, 1), (40, 6, 5, 2), (40, 6, 5, 1), (80, 6, 3, 2), (80, 6, 3, 1),
)  # fmt: skip
_STAGE_ENDS = (2, 4, 6)  # blocks whose outputs the decoder compares, at 1/4, 1/8 and 1/16 of the resolution


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = c_in * expansion
        expand = [*_conv(c_in, wide, 1), nn.SiLU()] if expansion > 1 else []
        depthwise = [*_conv(wide, wide, kernel, stride, wide), nn.SiLU(), _SqueezeExcite(wide, max(1, c_in // 4))]
        self.layers = nn.Sequential(*expand, *depthwise, *_conv(wide, c_out, 1))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientPair(nn.Module):
    """Maps normalised images (B, 3, T, T) of two dates to one logit a pixel (B, 1, T, T); T is a multiple of 16.

    0.3 million parameters with the default ``width``.
    """

    def __init__(self, width: int = 48, blocks: tuple[tuple[int, int, int, int], ...] = _BLOCKS) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 24, 3, 2), nn.SiLU())
        inputs = (24, *(channels for channels, *_ in blocks))
        self.blocks = nn.ModuleList(_Block(c, *block) for c, block in zip(inputs, blocks, strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(blocks[i][0], width, 1) for i in _STAGE_ENDS)
        self.smooth = nn.ModuleList(nn.Sequential(*_conv(width, width, 3), nn.SiLU()) for _ in _STAGE_ENDS)
        self.gate = nn.Conv2d(width, width, 1)
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def encode(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in _STAGE_ENDS:
                maps.append(x)
        return maps

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        differences = [(a - b).abs() for a, b in zip(self.encode(before), self.encode(after), strict=True)]
        maps = [lateral(x) for lateral, x in zip(self.lateral, differences, strict=True)]
        x = self.smooth[-1](maps[-1])
        for smooth, lower in zip(reversed(self.smooth[:-1]), reversed(maps[:-1]), strict=True):
            x = smooth(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) + lower)
        x = x * torch.sigmoid(self.gate(x))
        return F.interpolate(self.head(x), scale_factor=4.0, mode="bilinear", align_corners=False)


class Pixels(nn.Module):
    """The network from uint8 images (B, T, T, 3) to the probability of change (B, T, T)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        dates = (date.float().permute(0, 3, 1, 2) / 64 - 2 for date in (before, after))
        return torch.sigmoid(self.network(*dates))[:, 0]


def exported(network: nn.Module, tile: int) -> onnx.ModelProto:
    """Returns the ONNX graph of ``Pixels(network)`` for any batch, with the names that PyTorch's exporter gives."""
    generator = torch.Generator().manual_seed(1)
    before, after = torch.randint(0, 256, (2, 2, tile, tile, 3), dtype=torch.uint8, generator=generator)
    file = io.BytesIO()
    torch.onnx.export(
        Pixels(network).eval(), (before, after), file, dynamo=False, opset_version=20,
        input_names=["before", "after"], output_names=["probability"],
        dynamic_axes={name: {0: "batch"} for name in ("before", "after", "probability")},
    )  # fmt: skip
    return onnx.load_from_string(file.getvalue())

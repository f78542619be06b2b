"""Defines MISGNet, which computes change logits from two images of the same area."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from misgnet.network.decoder import Decode, Head, upsample
from misgnet.network.encoder import Encoder, StageConfig
from misgnet.network.guidance import ConvNorm, LevelGuidance

SIZE_MULTIPLE = 32
STAGES = (
    StageConfig(width=64, heads=1, mlp_ratio=8, reduction=8, patch=7, stride=4),
    StageConfig(width=128, heads=2, mlp_ratio=8, reduction=4, patch=3, stride=2),
    StageConfig(width=320, heads=5, mlp_ratio=4, reduction=2, patch=3, stride=2),
)
GRAPH_NODES = (2, 4, 8)


class MISGNet(nn.Module):
    """Multilevel Intertemporal Semantic Guidance Network (Cui et al., IEEE JSTARS 18, 2025, 1827-1840).

    :func:`build_misgnet` builds the published configuration. Keys of the state dict are those of the published
    checkpoints, except for encoder stage 4, which does not contribute to the output.

    Args:
        backbone: Encoder with three stages, shared by both dates.
        levels: Guidance modules of the three stages, from fine to coarse.
        widths: Channels of the three stages, from fine to coarse.
    """

    def __init__(self, backbone: Encoder, levels: list[LevelGuidance], widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.backbone = backbone
        self.MGLNet0, self.MGLNet1, self.MGLNet2 = levels
        self.Translayer1 = ConvNorm(coarse, middle)
        self.Translayer2 = ConvNorm(middle, fine)
        self.Translayer3 = ConvNorm(middle, fine)
        self.decode1 = Decode(middle)
        self.decode2 = Decode(fine)
        self.decode3 = Decode(fine)
        self.final2 = Head(fine, 32, 2)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Computes change logits.

        Args:
            before: Images of the earlier date: float (B, 3, H, W), ImageNet-normalised RGB, H and W multiples of 32.
            after: Images of the later date, of the same shape.

        Returns:
            Logits (B, 2, H, W); channel 1 is "changed".

        Raises:
            ValueError: If the shapes differ or are not supported.
        """
        check_size(before.shape, after.shape)
        maps = self.backbone(torch.cat((before, after)))  # both dates as one batch of 2B
        levels = (self.MGLNet0, self.MGLNet1, self.MGLNet2)
        return self.decode(*(level(x) for level, x in zip(levels, maps, strict=True)))

    def decode(self, d1: Tensor, d2: Tensor, d3: Tensor) -> Tensor:
        """Computes logits from the differences of the three stages, from fine to coarse: (B, width, h, w)."""
        out1 = self.decode1(d2, self.Translayer1(d3))
        out2 = self.decode2(d1, self.Translayer2(d2))
        logits = self.final2(self.decode3(out2, self.Translayer3(out1)))
        return upsample(logits, 4)


def check_size(before: torch.Size, after: torch.Size) -> None:
    """Raises ValueError if the shapes of the two inputs differ or are not supported."""
    if before != after:
        raise ValueError(f"the two dates differ in shape: {tuple(before)} and {tuple(after)}")
    if len(before) != 4 or before[1] != 3 or any(n == 0 or n % SIZE_MULTIPLE for n in before[2:]):
        needed = f"(B, 3, H, W), H and W multiples of {SIZE_MULTIPLE}"
        raise ValueError(f"MISGNet takes {needed}, got {tuple(before)}")


def build_misgnet() -> MISGNet:
    """Builds the published configuration with random weights.

    Returns:
        A network of 9,852,002 parameters. This includes the unused ones that published checkpoints contain.
    """
    widths = (STAGES[0].width, STAGES[1].width, STAGES[2].width)
    levels = [LevelGuidance(k, c) for k, c in zip(GRAPH_NODES, widths, strict=True)]
    return MISGNet(Encoder(STAGES), levels, widths)

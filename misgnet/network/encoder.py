"""Defines the encoder that both dates share: three stages of a pyramid vision transformer (PVTv2-B1).

Tokens are (B, N, C) with N = h * w in row-major order; maps are (B, C, h, w). Source: Wang et al., "PVT v2: Improved
Baselines with Pyramid Vision Transformer", Computational Visual Media 8, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Hyperparameters of one encoder stage."""

    width: int  # channels of a token
    heads: int  # attention heads
    mlp_ratio: int  # hidden channels of the MLP / width
    reduction: int  # factor by which keys and values are reduced in height and width
    patch: int  # kernel size of the patch embedding, pixels
    stride: int  # stride of the patch embedding, pixels
    depth: int = 2  # blocks


def to_tokens(maps: Tensor) -> Tensor:
    """Reshapes a map (B, C, h, w) to tokens (B, h*w, C)."""
    return maps.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Reshapes tokens (B, h*w, C) to a map (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class PatchEmbed(nn.Module):
    """Embeds overlapping patches by a strided convolution and LayerNorm: (B, Cin, H, W) -> (B, N, C), h, w."""

    def __init__(self, channels: int, stage: StageConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, stage.width, stage.patch, stage.stride, stage.patch // 2)
        self.norm = nn.LayerNorm(stage.width, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        height, width = x.shape[2:]
        return self.norm(to_tokens(x)), height, width


class Attention(nn.Module):
    """Multi-head attention on tokens (B, N, C); keys and values come from a spatially reduced map with M pixels."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.heads = stage.heads
        self.q = nn.Linear(stage.width, stage.width)
        self.kv = nn.Linear(stage.width, 2 * stage.width)
        self.proj = nn.Linear(stage.width, stage.width)
        self.sr = nn.Conv2d(stage.width, stage.width, stage.reduction, stage.reduction)
        self.norm = nn.LayerNorm(stage.width, eps=1e-5)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        reduced = self.norm(to_tokens(self.sr(to_map(x, height, width))))  # (B, M, C)
        query = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        key, value = self.kv(reduced).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)  # (B, heads, N, M)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class DepthwiseConv(nn.Module):
    """3 x 3 depthwise convolution on the map that the tokens form: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return to_tokens(self.dwconv(to_map(x, height, width)))


class Mlp(nn.Module):
    """Linear layer, depthwise convolution, exact (erf) GELU, linear layer: (B, N, C) -> (B, N, C)."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        hidden = stage.width * stage.mlp_ratio
        self.fc1 = nn.Linear(stage.width, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, stage.width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), height, width)))


class Block(nn.Module):
    """Transformer block on tokens (B, N, C): x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(stage.width, eps=1e-6)
        self.attn = Attention(stage)
        self.norm2 = nn.LayerNorm(stage.width, eps=1e-6)
        self.mlp = Mlp(stage)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attn(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x), height, width)


class Encoder(nn.Module):
    """Turns images (B, 3, H, W) into one map per stage: (B, width, H/4, W/4), (.., H/8, W/8), (.., H/16, W/16)."""

    def __init__(self, stages: tuple[StageConfig, ...]) -> None:
        super().__init__()
        self.count = len(stages)
        channels = 3
        for index, stage in enumerate(stages, 1):
            self.add_module(f"patch_embed{index}", PatchEmbed(channels, stage))
            self.add_module(f"block{index}", nn.ModuleList(Block(stage) for _ in range(stage.depth)))
            self.add_module(f"norm{index}", nn.LayerNorm(stage.width, eps=1e-6))
            channels = stage.width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index in range(1, self.count + 1):
            tokens, height, width = self.get_submodule(f"patch_embed{index}")(x)
            for block in self.get_submodule(f"block{index}").children():
                tokens = block(tokens, height, width)
            x = to_map(self.get_submodule(f"norm{index}")(tokens), height, width)
            maps.append(x)
        return maps

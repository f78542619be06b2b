"""Semantic guidance: each date's features are projected onto a few graph nodes and guide the other date.

Shapes: X (B, C, h, w) one level's map, N = h * w pixels, K graph nodes, assignment Q (B, K, N), node
matrix G (B, C, K). Formulas: Cui et al., IEEE JSTARS 18, 2025, section III, as ``MISGNET.md`` states them.
Everything here runs in float32: exponents of several thousand do not survive half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Stands for the "+ 1e-9" of the assignment's sum. Nodes are scaled to unit length afterwards, so that the two
# agree in float32, and unlike the sum a clamp is not removed by the ONNX exporter as "adding zero".
_EMPTY_NODE = 1e-9


class ConvNorm(nn.Module):
    """Convolution and batch norm, named ``conv`` and ``bn``."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def node_conv(channels: int) -> nn.Sequential:
    """1 x 1 convolution and batch norm on nodes; the ReLU is the caller's."""
    return nn.Sequential(ConvNorm(channels, channels))


class Projection(nn.Module):
    """Soft assignment of pixels to ``nodes`` anchors, and the nodes' unit-length features."""

    def __init__(self, nodes: int, channels: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.rand(nodes, channels))
        self.sigma = nn.Parameter(torch.rand(nodes, channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X (B, C, N) -> G (B, C, K), Q (B, K, N)."""
        scale = torch.sigmoid(self.sigma)  # (K, C)
        assignment = torch.softmax(-0.5 * self._distance(x, scale), dim=1)
        total = assignment.sum(2, keepdim=True)  # (B, K, 1)
        residual = (assignment @ x.transpose(1, 2) - self.anchor * total) / scale  # sum over n of Q * r
        nodes = _unit_length(residual / total.clamp(min=_EMPTY_NODE))
        nodes = _unit_length(nodes.flatten(1))
        # The published weights depend on a reinterpretation of K x C as C x K: a reshape, no transpose.
        return nodes.unflatten(1, (x.shape[1], -1)), assignment

    def _distance(self, x: Tensor, scale: Tensor) -> Tensor:
        """Squared norms of (x - anchor) / scale, up to a summand common to all nodes: (B, K, N).

        Expanded into matrix products. What all nodes share cancels in the softmax over them, so the mean
        weight of x^2 is taken out first: the terms stay small and float32 keeps their differences.
        """
        weight = scale.reciprocal().square()  # (K, C)
        linear = self.anchor * weight
        constant = (self.anchor * linear).sum(1, keepdim=True)  # (K, 1)
        shared = weight.mean(0, keepdim=True), linear.mean(0, keepdim=True), constant.mean(0, keepdim=True)
        return (weight - shared[0]) @ x.square() - 2 * (linear - shared[1]) @ x + (constant - shared[2])


def _unit_length(x: Tensor) -> Tensor:
    """x / max(||x||, 1e-12) over the last axis; a node without pixels stays zero."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)


class GraphConv(nn.Module):
    """Y (B, C, K) -> (S (Y^T W))^T with S = softmax(Y^T Y) over its last axis; W is not transposed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, y: Tensor) -> Tensor:
        nodes = y.transpose(1, 2)  # (B, K, C)
        similarity = torch.softmax(nodes @ y, dim=-1)  # (B, K, K)
        return (similarity @ (nodes @ self.weight)).transpose(1, 2)


class Cascade(nn.Module):
    """Two graph convolutions, then one ReLU. ``gcn3`` is stored by published checkpoints and never used."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gcn1 = GraphConv(channels)
        self.gcn2 = GraphConv(channels)
        self.gcn3 = GraphConv(channels)
        self.gcn3.requires_grad_(False)

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(self.gcn2(self.gcn1(y)))


class CrossGuidance(nn.Module):
    """g(P, S, V, Q): what one date's nodes say about the pixels of the other, (B, C, N)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gcn = Cascade(channels)
        self.gcn2 = Cascade(channels)
        self.gcn3 = Cascade(channels)
        self.conv = node_conv(channels)

    def forward(self, p: Tensor, s: Tensor, v: Tensor, assignment: Tensor) -> Tensor:
        """P, S, V (B, C, K) and Q (B, K, N) -> (B, C, N)."""
        mixed = (torch.softmax(p.transpose(1, 2) @ s, dim=-1) @ v.transpose(1, 2)).transpose(1, 2)
        nodes = self.gcn2(self.gcn(self.gcn3(v) + mixed))
        return F.relu(self.conv((nodes @ assignment).unsqueeze(3))).squeeze(3)


class MutualGuidance(nn.Module):
    """Both dates of one level guide each other. Attribute names are the published checkpoints'."""

    def __init__(self, nodes: int, channels: int) -> None:
        super().__init__()
        self.x1_proj0 = Projection(nodes, channels)
        self.x2_proj0 = Projection(nodes, channels)
        self.x1_conv1 = node_conv(channels)
        self.x2_conv1 = node_conv(channels)
        self.x2_conv2 = node_conv(channels)
        self.x2_conv11 = node_conv(channels)
        self.x1_conv11 = node_conv(channels)
        self.x1_conv22 = node_conv(channels)
        self.r2e = CrossGuidance(channels)
        self.r2e2 = CrossGuidance(channels)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) of the dates 1 and 2 -> the guided maps of both."""
        with torch.autocast(x1.device.type, enabled=False):
            wide = torch.promote_types(x1.dtype, torch.float32)  # float64 stays what it is
            return self._guide(x1.to(wide), x2.to(wide))

    def _guide(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        grid = x1.shape[2:]
        x1, x2 = x1.flatten(2), x2.flatten(2)  # (B, C, N)
        nodes1, q1 = self.x1_proj0(x1)
        nodes2, q2 = self.x2_proj0(x2)
        p1, p2, v2 = (
            _on_nodes(f, n)
            for f, n in zip((self.x1_conv1, self.x2_conv1, self.x2_conv2), (nodes1, nodes2, nodes2), strict=True)
        )
        r2, r1, v1 = (
            _on_nodes(f, n)
            for f, n in zip((self.x2_conv11, self.x1_conv11, self.x1_conv22), (nodes2, nodes1, nodes1), strict=True)
        )
        guided1 = x1 + self.r2e2(r2, r1, v1, q1)
        guided2 = x2 + self.r2e(p1, p2, v2, q2)
        return guided1.unflatten(2, grid), guided2.unflatten(2, grid)


def _on_nodes(conv: nn.Module, nodes: Tensor) -> Tensor:
    """ReLU of a node convolution on G (B, C, K)."""
    return F.relu(conv(nodes.unsqueeze(3))).squeeze(3)


class LevelGuidance(nn.Module):
    """One level: |X1' - X2'|, the difference of the guided maps, (B, C, h, w)."""

    def __init__(self, nodes: int, channels: int) -> None:
        super().__init__()
        self.mutualnet0 = MutualGuidance(nodes, channels)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        guided1, guided2 = self.mutualnet0(x1, x2)
        return (guided1 - guided2).abs()

"""Defines semantic guidance: the features of each date are projected onto a few graph nodes and guide the other date.

Shapes: map of one level X (B, C, h, w), N = h * w pixels, K graph nodes, assignment Q (B, K, N), node matrix
G (B, C, K). Formulas: Cui et al., IEEE JSTARS 18, 2025, section III, as given in ``MISGNET.md``. This module
computes in float32 because half precision overflows at its exponents of several thousand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Lower limit of the assignment's sum; the paper adds 1e-9 instead. The results agree in float32, because nodes are
# scaled to unit length afterwards. The ONNX exporter would remove the addition as "adding zero", but keeps a clamp.
EMPTY_NODE = 1e-9
SMALLEST_NORM = 1e-12  # lower limit of a norm that a vector is divided by


class ConvNorm(nn.Module):
    """Convolution followed by batch norm; the submodules are called ``conv`` and ``bn``."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def node_conv(channels: int) -> nn.Sequential:
    """Returns a 1 x 1 convolution with batch norm for nodes; the caller applies the ReLU."""
    return nn.Sequential(ConvNorm(channels, channels))


class Projection(nn.Module):
    """Assigns pixels softly to ``nodes`` anchors and computes unit-length features of the nodes."""

    def __init__(self, nodes: int, channels: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.rand(nodes, channels))
        self.sigma = nn.Parameter(torch.rand(nodes, channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projects X (B, C, N) to G (B, C, K) and Q (B, K, N)."""
        scale = torch.sigmoid(self.sigma)  # (K, C)
        assignment = torch.softmax(-0.5 * self._distance(x, scale), dim=1)
        total = assignment.sum(2, keepdim=True)  # (B, K, 1)
        residual = (assignment @ x.transpose(1, 2) - self.anchor * total) / scale  # sum over n of Q * r
        nodes = _unit_length(residual / total.clamp(min=EMPTY_NODE))
        nodes = _unit_length(nodes.flatten(1))
        # The published weights require that K x C is reinterpreted as C x K: a reshape, not a transpose.
        return nodes.unflatten(1, (x.shape[1], -1)), assignment

    def _distance(self, x: Tensor, scale: Tensor) -> Tensor:
        """Returns squared norms of (x - anchor) / scale, minus a term that all nodes share: (B, K, N).

        The square is expanded into matrix products. Terms that all nodes share cancel in the softmax over nodes.
        Subtracting them first keeps the numbers small, so that float32 resolves their differences.
        """
        weight = scale.reciprocal().square()  # (K, C)
        linear = self.anchor * weight
        constant = (self.anchor * linear).sum(1, keepdim=True)  # (K, 1)
        shared = weight.mean(0, keepdim=True), linear.mean(0, keepdim=True), constant.mean(0, keepdim=True)
        return (weight - shared[0]) @ x.square() - 2 * (linear - shared[1]) @ x + (constant - shared[2])


def _unit_length(x: Tensor) -> Tensor:
    """Returns x / max(||x||, 1e-12) over the last axis; a node without pixels stays zero."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=SMALLEST_NORM)


class GraphConv(nn.Module):
    """Graph convolution: Y (B, C, K) -> (S (Y^T W))^T, S = softmax(Y^T Y) over its last axis; W is not transposed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, y: Tensor) -> Tensor:
        nodes = y.transpose(1, 2)  # (B, K, C)
        similarity = torch.softmax(nodes @ y, dim=-1)  # (B, K, K)
        return (similarity @ (nodes @ self.weight)).transpose(1, 2)


class Cascade(nn.Module):
    """Two graph convolutions and one ReLU. ``gcn3`` is not used, but published checkpoints contain it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gcn1 = GraphConv(channels)
        self.gcn2 = GraphConv(channels)
        self.gcn3 = GraphConv(channels)
        self.gcn3.requires_grad_(False)

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(self.gcn2(self.gcn1(y)))


class CrossGuidance(nn.Module):
    """Guidance g(P, S, V, Q) of one date's nodes for the pixels of the other date, (B, C, N)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gcn = Cascade(channels)
        self.gcn2 = Cascade(channels)
        self.gcn3 = Cascade(channels)
        self.conv = node_conv(channels)

    def forward(self, p: Tensor, s: Tensor, v: Tensor, assignment: Tensor) -> Tensor:
        """Maps P, S, V (B, C, K) and Q (B, K, N) to (B, C, N)."""
        mixed = (torch.softmax(p.transpose(1, 2) @ s, dim=-1) @ v.transpose(1, 2)).transpose(1, 2)
        nodes = self.gcn2(self.gcn(self.gcn3(v) + mixed))
        return F.relu(self.conv((nodes @ assignment).unsqueeze(3))).squeeze(3)


class MutualGuidance(nn.Module):
    """Mutual guidance of both dates at one level. Attributes are named as in published checkpoints."""

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
        """Returns the guided maps of dates 1 and 2, (B, C, h, w) as the inputs."""
        with torch.autocast(x1.device.type, enabled=False):
            wide = torch.promote_types(x1.dtype, torch.float32)  # float64 stays float64
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
    """Applies a node convolution and ReLU to G (B, C, K)."""
    return F.relu(conv(nodes.unsqueeze(3))).squeeze(3)


class LevelGuidance(nn.Module):
    """Absolute difference of the guided maps of one level, |X1' - X2'|."""

    def __init__(self, nodes: int, channels: int) -> None:
        super().__init__()
        self.mutualnet0 = MutualGuidance(nodes, channels)

    def forward(self, both: Tensor) -> Tensor:
        """Maps the features of both dates as one batch (2B, C, h, w) to (B, C, h, w)."""
        batch = both.shape[0] // 2
        guided1, guided2 = self.mutualnet0(both[:batch], both[batch:])
        return (guided1 - guided2).abs()

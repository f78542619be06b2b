"""Builds the semantic guidance for deployment: both dates, stacked on a leading axis, share one chain of operators.

Each date, and each direction of the guidance, does the same work with other weights. With the weights stacked as well,
every step is one operator instead of two to four. The function is that of ``misgnet.network.guidance``, up to float32
rounding: constants are computed in float64, batch norms are folded, and the last convolution acts on graph nodes
instead of pixels, because the assignments of a pixel sum to 1.

Shapes: X (2, B, C, N) holds both dates, Q (2, B, K, N) the assignment. Node matrices are (2, B, K, C), so that no graph
convolution transposes its result.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from misgnet.network.guidance import (
    EMPTY_NODE,
    SMALLEST_NORM,
    Cascade,
    ConvNorm,
    CrossGuidance,
    LevelGuidance,
    MutualGuidance,
    Projection,
)

_Network = TypeVar("_Network", bound=nn.Module)


def with_stacked_guidance(network: _Network) -> _Network:
    """Returns a copy of ``network`` in which every LevelGuidance is stacked; for inference only."""
    levels = [module for module in network.modules() if isinstance(module, LevelGuidance)]
    stacked: dict[int, nn.Module] = {id(level): StackedLevel(level) for level in levels}
    return copy.deepcopy(network, stacked)  # deepcopy takes what it finds here as the copy of a module


class StackedLevel(nn.Module):
    """Replaces a LevelGuidance; the attribute has the same name, so that ONNX nodes are named after it."""

    def __init__(self, level: LevelGuidance) -> None:
        super().__init__()
        self.mutualnet0 = StackedGuidance(level.mutualnet0)

    def forward(self, both: Tensor) -> Tensor:
        """Maps the features of both dates as one batch (2B, C, h, w) to (B, C, h, w)."""
        _, channels, height, width = both.shape
        difference: Tensor = self.mutualnet0(both.reshape(2, -1, channels, height * width))
        return difference.reshape(-1, channels, height, width)


class StackedGuidance(nn.Module):
    """Replaces a MutualGuidance and the difference of its outputs: X (2, B, C, N) to |X1' - X2'| (1, B, C, N)."""

    other_date: Tensor

    def __init__(self, guidance: MutualGuidance) -> None:
        super().__init__()
        g = guidance
        self.projection = StackedProjection(g.x1_proj0, g.x2_proj0)
        # S and V guide the own date, P the other one.
        first = _side_by_side(g.x1_conv11, g.x1_conv22, g.x1_conv1)
        second = _side_by_side(g.x2_conv1, g.x2_conv2, g.x2_conv11)
        self.node_conv = StackedLinear([first, second])
        directions = (g.r2e2, g.r2e)  # for date 1, for date 2
        self.gcn = StackedCascade([d.gcn for d in directions])
        self.gcn2 = StackedCascade([d.gcn2 for d in directions])
        self.gcn3 = StackedCascade([d.gcn3 for d in directions])
        self.conv = StackedLinear([_last_conv(d) for d in directions])
        self.register_buffer("other_date", torch.tensor([1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        nodes, assignment = self.projection(x)
        s, v, p = self.node_conv(nodes).relu().chunk(3, dim=3)
        p = p.index_select(0, self.other_date)
        mixed = _mixed(p, s, v)
        nodes = self.conv(self.gcn2(self.gcn(self.gcn3(v) + mixed)))
        first, second = (x + (nodes.transpose(2, 3) @ assignment).relu()).split(1)
        return (first - second).abs()


class StackedProjection(nn.Module):
    """Replaces the Projection of both dates; see there for the formulas."""

    square: Tensor  # with linear and offset: -||x - anchor||^2 / (2 scale^2), minus its mean over the nodes
    linear: Tensor
    offset: Tensor
    anchor: Tensor
    gain: Tensor

    def __init__(self, *dates: Projection) -> None:
        super().__init__()
        anchor = _stack([date.anchor for date in dates])
        scale = _stack([date.sigma for date in dates]).sigmoid()
        square = scale.reciprocal().square()  # (2, 1, K, C)
        linear = anchor * square
        constant = (anchor * linear).sum(3, keepdim=True)
        _register(self, "square", -0.5 * _without_mean(square))
        _register(self, "linear", _without_mean(linear))
        _register(self, "offset", -0.5 * _without_mean(constant))
        _register(self, "anchor", anchor)
        _register(self, "gain", scale.reciprocal())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projects X to nodes (2, B, K, C) and Q."""
        assignment = (self.square @ (x * x) + self.linear @ x + self.offset).softmax(2)
        total = assignment.sum(3, keepdim=True)
        residual = assignment @ x.transpose(2, 3) - self.anchor * total
        nodes = _unit_length(residual * (self.gain / total.clamp(min=EMPTY_NODE)))
        # K x C is reinterpreted as C x K and kept transposed.
        return nodes.reshape(2, -1, nodes.shape[3], nodes.shape[2]).transpose(2, 3), assignment


class StackedCascade(nn.Module):
    """Replaces the same Cascade of both directions."""

    first: Tensor  # (2, 1, C, C)
    second: Tensor

    def __init__(self, cascades: Sequence[Cascade]) -> None:
        super().__init__()
        _register(self, "first", _stack([c.gcn1.weight for c in cascades]))
        _register(self, "second", _stack([c.gcn2.weight for c in cascades]))

    def forward(self, y: Tensor) -> Tensor:
        return _graph_conv(_graph_conv(y, self.first), self.second).relu()


class StackedLinear(nn.Module):
    """Multiplies the nodes of each date with a weight (C_in, C_out) and adds a bias (C_out,)."""

    factor: Tensor
    bias: Tensor

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        _register(self, "factor", _stack([weight for weight, _ in layers]))
        _register(self, "bias", _stack([bias[None] for _, bias in layers]))

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.factor + self.bias


def _graph_conv(y: Tensor, weight: Tensor) -> Tensor:
    """Returns softmax(Y Y^T) (Y W); the weight comes last, so that the steps before it become one kernel of a GPU."""
    return _mixed(y, y, y) @ weight


def _mixed(left: Tensor, right: Tensor, values: Tensor) -> Tensor:
    """Returns softmax(left right^T) values, both products written as sums.

    They have two to eight rows. TensorRT starts a kernel, and often a transposition, for each product, but computes
    sums together with the operators around them. On a CPU both forms are equally fast.
    """
    weights = (left.unsqueeze(3) * right.unsqueeze(2)).sum(4).softmax(3)  # (2, B, K, K)
    return (weights.unsqueeze(4) * values.unsqueeze(2)).sum(3)


def _unit_length(x: Tensor) -> Tensor:
    """Scales each node, and then all nodes of a date together, to unit length; a node without pixels stays zero.

    A norm is at least 1e-12. The second one is computed from the first: it sums the squared lengths of the nodes after
    the first division, which are 1, or less for a node without pixels.
    """
    square = (x * x).sum(3, keepdim=True)  # (2, B, K, 1)
    node = square.sqrt().clamp(min=SMALLEST_NORM)
    every = (square / (node * node)).sum(2, keepdim=True).sqrt().clamp(min=SMALLEST_NORM)
    return x / (node * every)


def _side_by_side(*convs: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Returns weight (C, 3C) and bias (3C,) of three node convolutions."""
    weights, biases = zip(*(_folded(conv[0]) for conv in convs), strict=True)
    return torch.cat(weights, 1), torch.cat(biases)


def _last_conv(direction: CrossGuidance) -> tuple[Tensor, Tensor]:
    return _folded(direction.conv[0])


def _folded(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns weight (C_in, C_out) and bias of a 1 x 1 convolution without bias and its batch norm, in float64."""
    assert isinstance(layer, ConvNorm) and layer.conv.bias is None
    norm = layer.bn
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = layer.conv.weight.double().flatten(1) * gain[:, None]  # (C_out, C_in)
    return weight.t(), norm.bias.double() - gain * norm.running_mean.double()


def _stack(dates: Sequence[Tensor]) -> Tensor:
    """Stacks a constant of each date in float64; the second axis is the batch."""
    return torch.stack([date.double() for date in dates])[:, None]


def _without_mean(x: Tensor) -> Tensor:
    """Subtracts what all nodes share: it cancels in the softmax, and float32 keeps more digits of the differences."""
    return x - x.mean(2, keepdim=True)


def _register(module: nn.Module, name: str, value: Tensor) -> None:
    """Stores ``value`` as the float32 buffer ``name``."""
    module.register_buffer(name, value.detach().float().contiguous())

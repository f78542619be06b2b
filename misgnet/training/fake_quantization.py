"""Defines layers that imitate INT8 operators in floating point and propagate gradients (fake quantization).

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018. The gradient ignores rounding and is zero for clipped values (the straight-through estimator of Bengio et
al., 2013). These layers compute in float32 even under autocast, because bfloat16 is no more precise than INT8 and
would round the quantized values a second time.

Each layer uses the parameters of the layer that it replaces, under the same names, and has no other state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misgnet_runtime.bundle import Int8Numbers, Steps

# The same limits as in misgnet_calibration.quantizer.scales; a test compares them.
_SMALLEST_SCALE = 2.0**-20
_BIAS_LIMIT = 2.0**30


def fake_quantize(x: Tensor, steps: Steps) -> Tensor:
    """Rounds ``x`` to quantized values and clips it to their range; returns float32, and zero stays zero."""
    with float32(x):
        return torch.fake_quantize_per_tensor_affine(x.float(), steps.scale, steps.zero, *steps.limits)


def weight_scale(weight: Tensor, numbers: Int8Numbers, bias: Tensor | None) -> Tensor:
    """Returns the scale of every output channel of ``weight`` (C, ...), float32 (C,).

    The scale maps the absolute maximum of a channel to the largest quantized value. The step of a quantized ``bias``
    (C,) is the product of the weight's and the activation's scale, so the scale also ensures that the bias fits INT32.
    """
    scale = weight.detach().flatten(1).abs().amax(1).double() / largest_quantized_weight(numbers)
    if bias is not None and numbers.quantized_bias:
        scale = scale.maximum(bias.detach().abs().double() / (numbers.activation.scale * _BIAS_LIMIT))
    scale = scale.clamp(min=_SMALLEST_SCALE)
    return _next_float16(scale) if numbers.float16_scales else scale.float()


def quantized_weight(weight: Tensor, numbers: Int8Numbers, bias: Tensor | None) -> Tensor:
    """Rounds ``weight`` (C, ...) to quantized values with the scale of its current values, which clips nothing.

    The weight is divided by the scale, as the quantizer of the graph does. PyTorch's operator multiplies by the
    reciprocal, and rounds ties differently because of that.
    """
    with torch.no_grad():
        scale = weight_scale(weight, numbers, bias).view(-1, *[1] * (weight.ndim - 1))
        rounding = (weight / scale).round() * scale - weight
    return weight + rounding


def largest_quantized_weight(numbers: Int8Numbers) -> int:
    """Returns the largest quantized value of a weight; the smallest is its negative."""
    return (1 << (numbers.weight_bits - 1)) - 1


class FakeQuantLinear(nn.Linear):
    """Replaces ``linear``; quantizes its input and its weight."""

    def __init__(self, linear: nn.Linear, numbers: Int8Numbers) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.numbers = linear.weight, linear.bias, numbers

    def forward(self, x: Tensor) -> Tensor:
        with float32(x):
            weight = quantized_weight(self.weight, self.numbers, self.bias)
            return F.linear(fake_quantize(x, self.numbers.activation), weight, self.bias)


class FakeQuantConv2d(nn.Conv2d):
    """Replaces ``conv``; quantizes its input and its weight.

    ``norm`` is the batch norm that follows, in evaluation mode. The export folds it into the weight, so the folded
    weight w * gamma / sqrt(var + eps) is quantized (Jacob et al., section 3.2). The result is divided by the same
    factor again, so that the network keeps its batch norm and the format of the checkpoint does not change.
    """

    def __init__(self, conv: nn.Conv2d, numbers: Int8Numbers, norm: nn.BatchNorm2d | None) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, conv.bias is not None, conv.padding_mode, device="meta",
        )  # fmt: skip
        self.weight, self.bias, self.numbers = conv.weight, conv.bias, numbers
        self.folded = () if norm is None else (norm,)  # a tuple: the network owns the batch norm, under its own name

    def forward(self, x: Tensor) -> Tensor:
        with float32(x):
            return self._conv_forward(fake_quantize(x, self.numbers.activation), self.quantized_weight(), self.bias)

    def quantized_weight(self) -> Tensor:
        """Returns the weight (C, ...) for which convolution and batch norm together compute as in INT8."""
        if not self.folded:
            return quantized_weight(self.weight, self.numbers, self.bias)
        gain, bias = folding(self.folded[0], self.bias)
        gain = gain.view(-1, 1, 1, 1)
        quantized = quantized_weight(self.weight * gain, self.numbers, bias)
        return torch.where(gain == 0, self.weight, quantized / torch.where(gain == 0, 1.0, gain))


def folding(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the factor by which ``norm`` scales the preceding convolution, and the folded bias: (C,) each.

    ``bias`` is that of the convolution.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    assert not norm.training, "folding requires running statistics; train with frozen batch norms"
    # float32 sqrt of PyTorch (MKL) can be off by one digit, which changes quantized values of weights at ties
    gain = norm.weight / (norm.running_var + norm.eps).double().sqrt().float()
    return gain, norm.bias + gain * ((0.0 if bias is None else bias) - norm.running_mean)


@contextmanager
def float32(x: Tensor) -> Iterator[None]:
    """Disables autocast on the device of ``x``."""
    with torch.autocast(x.device.type, enabled=False):
        yield


def _next_float16(scale: Tensor) -> Tensor:
    """Returns the smallest float16 number that is at least ``scale``, as float32."""
    half = scale.half()
    larger = (half.view(torch.int16) + 1).view(torch.float16)  # bits of positive floats are ordered like their values
    return torch.where(half.double() < scale, larger, half).float()

"""Layers that compute as an INT8 operator does, in floating point, with gradients.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
2018. Rounding lets the gradient pass as if it were not there, and clipping stops it (the straight-through estimator
of Bengio et al., 2013). Everything here is float32 under any autocast: bfloat16 has no more digits than INT8, and
would round the levels' values a second time.

The layers share the parameters of those whose place they take, under the same names, and hold no other state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misgnet_runtime.bundle import Int8Numbers, Steps

# As misgnet_calibration.quantizer.scales writes them; a test compares the two.
_SMALLEST_SCALE = 2.0**-20
_BIAS_LIMIT = 2.0**30


def fake_quantize(x: Tensor, steps: Steps) -> Tensor:
    """``x`` rounded to ``steps`` and clipped to their limits, float32; zero stays zero."""
    with float32(x):
        return torch.fake_quantize_per_tensor_affine(x.float(), steps.scale, steps.zero, *steps.limits)


def weight_scale(weight: Tensor, numbers: Int8Numbers, bias: Tensor | None) -> Tensor:
    """Scale of every output channel of ``weight`` (C, ...), float32 (C,): its largest value on the last level.

    A quantized ``bias`` (C,) counts in steps of both scales, and must not need more of them than INT32 has.
    """
    scale = weight.detach().flatten(1).abs().amax(1).double() / last_level(numbers)
    if bias is not None and numbers.quantized_bias:
        scale = scale.maximum(bias.detach().abs().double() / (numbers.activation.scale * _BIAS_LIMIT))
    scale = scale.clamp(min=_SMALLEST_SCALE)
    return _next_float16(scale) if numbers.float16_scales else scale.float()


def quantized_weight(weight: Tensor, numbers: Int8Numbers, bias: Tensor | None) -> Tensor:
    """``weight`` (C, ...) on its levels, in the scale that it has now, which clips none of it.

    Divided as the graph's writer does: PyTorch's operator multiplies by the reciprocal, and takes the other level
    of two that are equally near.
    """
    with torch.no_grad():
        scale = weight_scale(weight, numbers, bias).view(-1, *[1] * (weight.ndim - 1))
        rounding = (weight / scale).round() * scale - weight
    return weight + rounding


def last_level(numbers: Int8Numbers) -> int:
    """The largest integer that a weight may have; the smallest is its negative."""
    return (1 << (numbers.weight_bits - 1)) - 1


class FakeQuantLinear(nn.Linear):
    """``linear`` with its input and its weight as INT8 sees them."""

    def __init__(self, linear: nn.Linear, numbers: Int8Numbers) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.numbers = linear.weight, linear.bias, numbers

    def forward(self, x: Tensor) -> Tensor:
        with float32(x):
            weight = quantized_weight(self.weight, self.numbers, self.bias)
            return F.linear(fake_quantize(x, self.numbers.activation), weight, self.bias)


class FakeQuantConv2d(nn.Conv2d):
    """``conv`` with its input and its weight as INT8 sees them.

    ``norm``: the batch norm behind it, in evaluation mode, which the export folds into the weight: the levels are
    those of the folded weight w * gamma / sqrt(var + eps) (Jacob et al., section 3.2). They are unfolded again, so
    that the batch norm stays where it is and the checkpoint what it was.
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
        """The weight (C, ...) with which the convolution, and the batch norm behind it, compute as in INT8."""
        if not self.folded:
            return quantized_weight(self.weight, self.numbers, self.bias)
        gain, bias = folding(self.folded[0], self.bias)
        gain = gain.view(-1, 1, 1, 1)
        quantized = quantized_weight(self.weight * gain, self.numbers, bias)
        return torch.where(gain == 0, self.weight, quantized / torch.where(gain == 0, 1.0, gain))


def folding(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies the weights of the convolution before it with, and the bias of both: (C,) each."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert not norm.training, "a folded batch norm has running statistics; train with the norms frozen"
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return gain, norm.bias + gain * ((0.0 if bias is None else bias) - norm.running_mean)


@contextmanager
def float32(x: Tensor) -> Iterator[None]:
    """No autocast on the device of ``x``."""
    with torch.autocast(x.device.type, enabled=False):
        yield


def _next_float16(scale: Tensor) -> Tensor:
    """The smallest float16 that is no smaller, as float32."""
    half = scale.half()
    larger = (half.view(torch.int16) + 1).view(torch.float16)  # positive numbers are in the order of their bits
    return torch.where(half.double() < scale, larger, half).float()

"""Small networks of others' kind: three ways to take both dates, five kinds of output, as PyTorch and as ONNX files.

They measure the mean difference of the dates in a neighbourhood, so without training their masks of generated tiles are
neither empty nor full.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser
from torch import Tensor, nn

Io = Literal["pair", "stacked", "time"]
IOS: tuple[Io, ...] = ("pair", "stacked", "time")
# classes:4 with --changed 1,3
KINDS = ("logits2", "logit1", "probability1", "probability2", "classes:4")
CHANGED = (1, 3)


class ForeignNetwork(nn.Module):
    """Encodes both dates with one convolution, compares them, and outputs ``kind`` for each pixel."""

    def __init__(
        self, io: Io = "pair", kind: str = "logits2", bands: int = 3, *, squeezed: bool = False, level: float = 3.0
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


def plain_loop(
    model: onnx.ModelProto, before: NDArray[Any], after: NDArray[Any], io: Io, kind: str, mean: Sequence[float],
    std: Sequence[float], scale: float = 255,
) -> NDArray[np.float64]:  # fmt: skip
    """Runs a file in ONNX Runtime, pair by pair, as its user would; returns the probability of change (B, T, T)."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = []
    for pair in zip(before, after, strict=True):
        dates = [((x / scale - np.array(mean)) / np.array(std)).astype(np.float32).transpose(2, 0, 1) for x in pair]
        images = {"pair": dates, "stacked": [np.concatenate(dates)], "time": [np.stack(dates)]}[io]
        (output,) = session.run(None, {name: image[None] for name, image in zip(names, images, strict=True)})
        found.append(_probability(output.astype(np.float64)[0], kind))
    return np.stack(found)


def _probability(output: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Converts the output (N, T, T) for one pair."""
    if kind == "probability1":
        return output.reshape(output.shape[-2:])
    if kind == "probability2":
        return output[1]
    if kind == "logit1":
        return 1 / (1 + np.exp(-output.reshape(output.shape[-2:])))
    weights = np.exp(output - output.max(0))
    changed = [1] if kind == "logits2" else list(CHANGED)
    return weights[changed].sum(0) / weights.sum(0)


def pairs_of_tiles(count: int, tile: int, bands: int = 3, dtype: str = "uint8") -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns tiles of both dates, each (count, tile, tile, bands), of smooth noise; a quarter of each has changed."""
    generator = np.random.default_rng(tile + bands)
    coarse = generator.random((2, count, tile // 8, tile // 8, bands))
    before, other = (coarse.repeat(8, 1 + 1).repeat(8, 2 + 1) * np.iinfo(dtype).max).astype(dtype)
    after = before.copy()
    half = slice(tile // 4, 3 * tile // 4)
    after[:, half, half] = other[:, half, half]
    return before, after


def raw_network(dtype: str, tile: int, bands: int = 3) -> onnx.ModelProto:
    """Writes a network of integer images (B, T, T, C) that outputs a probability (B, T, T, 1), as TensorFlow's do.

    It outputs the mean absolute difference of the dates as a share of the largest value, which it computes from raw
    pixels.
    """
    shape, largest = f"{dtype}[batch,{tile},{tile},{bands}]", np.iinfo(dtype).max
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 20]>
        raw ({shape} first, {shape} second) => (float[batch,{tile},{tile},1] change) {{
            a = Cast <to = 1> (first)
            b = Cast <to = 1> (second)
            difference = Sub (a, b)
            size = Abs (difference)
            axes = Constant <value = int64[1] {{3}}> ()
            mean = ReduceMean <keepdims = 1> (size, axes)
            white = Constant <value = float {{{largest}}}> ()
            change = Div (mean, white)
        }}"""
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def of_single_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph for a batch of 1 that cannot be changed to accept more: it joins a constant to its output."""
    model = onnx.load_from_string(model.SerializeToString())
    (output,) = model.graph.output
    dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    node = next(node for node in model.graph.node if output.name in node.output)
    node.output[0] = "inner"
    constants = {"constant": np.zeros(dims, np.float32), "own": np.arange(dims[1])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend([
        helper.make_node("Concat", ["inner", "constant"], ["joined"], "join", axis=1),
        helper.make_node("Gather", ["joined", "own"], [output.name], "own", axis=1),
    ])  # fmt: skip
    onnx.checker.check_model(model)
    return model

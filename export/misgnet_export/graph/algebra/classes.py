"""Replaces the softmax over two classes by the sigmoid of the difference of both logits.

The last convolution and the upsampling are linear, so the difference can be taken in the convolution's weights. This
halves the work of both, and a sigmoid of one channel replaces the softmax over two.
"""

from __future__ import annotations

import numpy as np
import onnx

from misgnet_calibration.onnx_graph import attribute
from misgnet_export.graph.algebra.rewriting import Rewriting


def merge_classes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes the probability from one channel instead of two; graphs that output logits or a mask stay unchanged."""
    rewriting = Rewriting(model)
    graph = rewriting.graph
    for softmax in graph.nodes:
        gather = rewriting.reader(softmax.output[0], "Gather") if softmax.op_type == "Softmax" else None
        resize = graph.producer.get(softmax.input[0]) if gather is not None else None
        conv = graph.producer.get(resize.input[0]) if resize is not None and resize.op_type == "Resize" else None
        if gather is None or resize is None or conv is None or not _fits(rewriting, conv, resize, softmax, gather):
            continue
        _merge(rewriting, conv, resize, softmax, gather)
    return rewriting.finish()


def _fits(
    rewriting: Rewriting, conv: onnx.NodeProto, resize: onnx.NodeProto, softmax: onnx.NodeProto,
    gather: onnx.NodeProto,
) -> bool:  # fmt: skip
    """Returns whether class 1 of two is read along the channels, from a convolution with no other readers."""
    graph = rewriting.graph
    along_channels = attribute(softmax, "axis", -1) == 1 and attribute(gather, "axis", 0) == 1
    index = graph.constant(gather.input[1]) if gather.input[1] in graph.constants else None
    alone = rewriting.reader(conv.output[0], "Resize") is resize and rewriting.reader(resize.output[0], "Softmax")
    is_conv = conv.op_type == "Conv" and len(conv.input) == 3 and graph.weight_of(conv) is not None
    if not (along_channels and index is not None and index.shape == () and index == 1 and alone and is_conv):
        return False
    return rewriting.shape(conv.input[1])[0] == 2 and conv.input[2] in graph.constants


def _merge(
    rewriting: Rewriting, conv: onnx.NodeProto, resize: onnx.NodeProto, softmax: onnx.NodeProto,
    gather: onnx.NodeProto,
) -> None:  # fmt: skip
    graph = rewriting.graph
    weight, bias = (graph.constant(name).astype(np.float32) for name in conv.input[1:])
    conv.input[1] = rewriting.constant(f"{conv.input[1]}_difference", weight[1:] - weight[:1])
    conv.input[2] = rewriting.constant(f"{conv.input[2]}_difference", bias[1:] - bias[:1])
    channel = rewriting.add("Sigmoid", [resize.output[0]], softmax.output[0], softmax)
    axis = rewriting.constant("channel_axis", np.array([1], np.int64))
    rewriting.add("Squeeze", [channel, axis], gather.output[0], gather)
    rewriting.drop(softmax, gather)

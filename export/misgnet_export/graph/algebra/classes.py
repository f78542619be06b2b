"""Computes the difference of both logits in place of the two logits: its sigmoid, or its sign for a mask.

The last convolution and the upsampling are linear, so the difference can be taken in the convolution's weights. This
halves the work of both, and a sigmoid of one channel replaces the softmax over two.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from misgnet_calibration.onnx_graph import attribute
from misgnet_export.graph.algebra.rewriting import Rewriting


def merge_classes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes the probability or the mask from one channel instead of two; leaves graphs that output logits as is."""
    rewriting = Rewriting(model)
    for resize in rewriting.graph.nodes:
        conv = rewriting.graph.producer.get(resize.input[0]) if resize.op_type == "Resize" else None
        if conv is None or not (_has_two_classes(rewriting, conv, resize) and _resizes_any_channels(rewriting, resize)):
            continue
        if _to_probability(rewriting, resize) or _to_mask(rewriting, resize):
            _subtract(rewriting, conv)
    return rewriting.finish()


def _has_two_classes(rewriting: Rewriting, conv: onnx.NodeProto, resize: onnx.NodeProto) -> bool:
    """Returns whether ``conv`` has two output channels in one group, constant weight and bias, and no other readers."""
    graph = rewriting.graph
    is_conv = conv.op_type == "Conv" and len(conv.input) == 3 and graph.weight_of(conv) is not None
    if not is_conv or rewriting.reader(conv.output[0], "Resize") is not resize or attribute(conv, "group", 1) != 1:
        return False
    return rewriting.shape(conv.input[1])[0] == 2 and conv.input[2] in graph.constants


def _resizes_any_channels(rewriting: Rewriting, resize: onnx.NodeProto) -> bool:
    """Returns whether ``resize`` is linear and would resize a map of one channel as well, by constant scales."""
    given = {a.name: helper.get_attribute_value(a) for a in resize.attribute}
    crops = given.get("coordinate_transformation_mode") == b"tf_crop_and_resize"  # and fills in a constant
    if crops or "axes" in given or len(resize.input) != 3 or resize.input[2] not in rewriting.graph.constants:
        return False
    return rewriting.graph.constant(resize.input[2])[:2].tolist() == [1, 1]


def _to_probability(rewriting: Rewriting, resize: onnx.NodeProto) -> bool:
    """Replaces class 1 of a softmax by a sigmoid; returns whether the graph has this form."""
    softmax = rewriting.reader(resize.output[0], "Softmax")
    gather = rewriting.reader(softmax.output[0], "Gather") if softmax is not None else None
    if softmax is None or gather is None or attribute(softmax, "axis", -1) != 1 or _class_of(rewriting, gather) != 1:
        return False
    channel = rewriting.add("Sigmoid", [resize.output[0]], softmax.output[0], softmax)
    rewriting.add("Squeeze", [channel, _channel_axis(rewriting)], gather.output[0], gather)
    rewriting.drop(softmax, gather)
    return True


def _to_mask(rewriting: Rewriting, resize: onnx.NodeProto) -> bool:
    """Replaces the comparison of class 1 with class 0 by one with zero; returns whether the graph has this form."""
    graph, logits = rewriting.graph, resize.output[0]
    readers = graph.consumers[logits]
    by_class = {_class_of(rewriting, node): node for node in readers if node.op_type == "Gather"}
    if len(readers) != 2 or set(by_class) != {0, 1} or logits in graph.outputs():
        return False
    greater = rewriting.reader(by_class[1].output[0], "Greater")
    if greater is None or rewriting.reader(by_class[0].output[0], "Greater") is not greater:
        return False
    if list(greater.input) != [by_class[1].output[0], by_class[0].output[0]]:
        return False
    difference = rewriting.add("Squeeze", [logits, _channel_axis(rewriting)], by_class[1].output[0], by_class[1])
    zero = rewriting.constant("equal_logits", np.zeros((), np.float32))
    rewriting.add("Greater", [difference, zero], greater.output[0], greater)
    rewriting.drop(*by_class.values(), greater)
    return True


def _class_of(rewriting: Rewriting, gather: onnx.NodeProto) -> int | None:
    """Returns the class that ``gather`` takes along the channels; None if it takes something else."""
    graph = rewriting.graph
    index = graph.constant(gather.input[1]) if gather.input[1] in graph.constants else None
    return int(index) if index is not None and index.shape == () and attribute(gather, "axis", 0) == 1 else None


def _channel_axis(rewriting: Rewriting) -> str:
    return rewriting.constant("channel_axis", np.array([1], np.int64))


def _subtract(rewriting: Rewriting, conv: onnx.NodeProto) -> None:
    """Makes ``conv`` compute class 1 minus class 0."""
    weight, bias = (rewriting.graph.constant(name).astype(np.float32) for name in conv.input[1:])
    conv.input[1] = rewriting.constant(f"{conv.input[1]}_difference", weight[1:] - weight[:1])
    conv.input[2] = rewriting.constant(f"{conv.input[2]}_difference", bias[1:] - bias[:1])

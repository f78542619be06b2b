"""Graph rewrites that keep a graph's function and reduce its work; each is a function from model to model."""

from __future__ import annotations

import onnx

from misgnet_calibration.onnx_graph import opset_of
from misgnet_export.graph.algebra.attention import fold_attention_scale, fold_output_into_values, merge_single_head
from misgnet_export.graph.algebra.classes import merge_classes
from misgnet_export.graph.algebra.linear import mlps_on_maps
from misgnet_export.graph.algebra.pixels import fold_normalisation
from misgnet_export.graph.algebra.resizes import resizes_as_products, resizes_by_scales
from misgnet_export.graph.algebra.sums import small_products_as_sums
from misgnet_export.graph.algebra.tokens import tokens_channels_last
from misgnet_export.graph.simplify import with_shapes

__all__ = ["GPU_REWRITES", "REWRITES", "rewrite"]

_OLDEST_OPSET = 18
# In this order: some find what an earlier one leaves.
REWRITES = (
    fold_normalisation,
    fold_attention_scale,
    merge_single_head,  # finds scores that are not scaled any more
    merge_classes,
    resizes_as_products,  # the output has fewer channels after merge_classes
    tokens_channels_last,
    mlps_on_maps,  # finds what tokens_channels_last leaves
)
# For graphs that TensorRT compiles. It resizes the output and computes attention with one head in fused kernels.
GPU_REWRITES = (
    fold_normalisation,
    fold_attention_scale,
    fold_output_into_values,
    merge_classes,
    tokens_channels_last,
    mlps_on_maps,
    small_products_as_sums,
)


def rewrite(model: onnx.ModelProto, *, for_gpu: bool = False) -> onnx.ModelProto:
    """Returns a simplified float graph with less work and the same function, up to float32 rounding.

    Each rewrite changes only the patterns it recognises. A graph of an operator set before 18 stays as it is: until
    then, Softmax and reductions meant something else.

    Args:
        model: The simplified graph.
        for_gpu: Whether TensorRT compiles the graph; else engines of a CPU open it.
    """
    steps = GPU_REWRITES if for_gpu else REWRITES
    # The first one does not find anything in MISGNet; of other networks, later ones find what it leaves.
    for step in (resizes_by_scales, *steps) if opset_of(model) >= _OLDEST_OPSET else ():
        model = step(model)
    return with_shapes(model)

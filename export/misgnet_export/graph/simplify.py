"""Simplifies a graph with onnxsim: folds constants and batch norms, removes dead nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxsim
from onnx import helper, numpy_helper

from misgnet_calibration.onnx_graph import put_in_order
from misgnet_runtime.errors import GateFailed

# A linear layer stays MatMul and Add on (B, N, C): a Gemm needs a Reshape before and after it, and engines fuse a
# quantized MatMul better. Two Reshapes in a row stay: the second one stacks the dates of a map (``cut.py``).
_SKIPPED = [
    "fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_consecutive_reshapes", "eliminate_consecutive_idempotent_ops",
]  # fmt: skip

_KINDS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def simplify_graph(model: onnx.ModelProto, *, norms_fold: bool = True) -> onnx.ModelProto:
    """Returns an equivalent smaller graph with the shapes of its tensors.

    Args:
        model: The exported graph.
        norms_fold: Whether every batch norm of the network follows a convolution, into which it is folded, as in
            MISGNet. In other networks those that remain are legitimate.

    Raises:
        GateFailed: onnxsim fails, its own check fails, or batch norms remain although ``norms_fold``.
    """
    try:
        simplified, agrees = onnxsim.simplify(model, skipped_optimizers=_SKIPPED)
    except Exception as error:  # whatever its passes raise about this graph: they have no common base class
        raise GateFailed(
            f"onnxsim cannot simplify the graph: {_first_line(error)}; export it in another form"
        ) from error
    if not agrees:
        raise GateFailed("the graph simplified by onnxsim does not compute the same output as the exported one")
    left = [node.name for node in simplified.graph.node if node.op_type == "BatchNormalization"]
    if left and norms_fold:
        raise GateFailed(f"batch norms were not folded: {len(left)} remain, the first is '{left[0]}'")
    return with_shapes(lift_constants(simplified))


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Changes Constant nodes of ``model``, as other exporters write them, to initializers; returns ``model``.

    All that inspects a graph looks for the values of initializers.
    """
    kept = []
    for node in model.graph.node:
        value = _value(node)
        if value is None:
            kept.append(node)
        else:
            model.graph.initializer.append(value)
    put_in_order(model, kept)
    return model


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Returns the tensor of a Constant node under the name of its output; None for other nodes."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute} if node.op_type == "Constant" else {}
    for name, kind in _KINDS.items():
        if name in given:
            return numpy_helper.from_array(np.array(given[name], kind), node.output[0])
    if "value" not in given:
        return None
    tensor = onnx.TensorProto()
    tensor.CopyFrom(given["value"])
    tensor.name = node.output[0]
    return tensor


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Checks ``model`` and adds the shape of every tensor whose shape can be inferred.

    A tensor may stay without one, such as the output of NonZero: the graph runs anyway, and its operators stay float.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

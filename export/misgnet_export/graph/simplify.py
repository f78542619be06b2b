"""Simplifies a graph with onnxsim: folds constants and batch norms, removes dead nodes."""

from __future__ import annotations

import onnx
import onnxsim

from misgnet_runtime.errors import GateFailed

# A linear layer stays MatMul and Add on (B, N, C): a Gemm needs a Reshape before and after it, and engines fuse a
# quantized MatMul better. Two Reshapes in a row stay: the second one stacks the dates of a map (``cut.py``).
_SKIPPED = [
    "fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_consecutive_reshapes", "eliminate_consecutive_idempotent_ops",
]  # fmt: skip


def simplify_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns an equivalent smaller graph. Raises GateFailed if onnxsim's own check fails or batch norms remain."""
    simplified, agrees = onnxsim.simplify(model, skipped_optimizers=_SKIPPED)
    if not agrees:
        raise GateFailed("the graph simplified by onnxsim does not compute the same output as the exported one")
    left = [node.name for node in simplified.graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise GateFailed(f"batch norms were not folded: {len(left)} remain, the first is '{left[0]}'")
    return with_shapes(simplified)


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Checks ``model`` and adds the shape of every tensor. Raises onnx's errors if a shape cannot be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred

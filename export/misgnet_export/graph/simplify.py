"""onnxsim: constants and batch norms folded, dead nodes removed."""

from __future__ import annotations

import onnx
import onnxsim

from misgnet_runtime.errors import GateFailed

# A linear layer stays MatMul and Add on (B, N, C): as Gemm it needs a Reshape on both sides, and engines
# fuse a quantized MatMul better.
_SKIPPED = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]


def simplify_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with fewer nodes. Raises GateFailed where onnxsim's own check fails or BNs remain."""
    simplified, agrees = onnxsim.simplify(model, skipped_optimizers=_SKIPPED)
    if not agrees:
        raise GateFailed("onnxsim's simplified graph gives other numbers than the exported one")
    left = [node.name for node in simplified.graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise GateFailed(f"{len(left)} batch norms were not folded, the first is '{left[0]}'")
    return with_shapes(simplified)


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, checked, with the shape of every tensor stated; raises onnx's errors where one cannot be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred

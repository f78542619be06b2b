"""Times matrix products in ONNX Runtime: float32, and UINT8 by INT8 to INT32 as in its INT8 networks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime
from exchange import serve, versions
from onnx import TensorProto, helper, numpy_helper

_KINDS = {"float32": ("MatMul", np.float32, np.float32), "int8": ("MatMulInteger", np.uint8, np.int8)}


def multiply(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the best rate of ``calls`` products of a square matrix with a constant one, in operations/s."""
    rows = request["rows"]
    operator, first, second = _KINDS[request["kind"]]
    rng = np.random.default_rng(0)
    weight = rng.integers(-100, 100, (rows, rows)).astype(second)
    session = _session(operator, np.dtype(first), weight, request["threads"])
    inputs = {"a": rng.integers(0, 200, (rows, rows)).astype(first)}
    taken = []
    for _ in range(request["calls"]):
        start = time.perf_counter()
        session.run(None, inputs)
        taken.append(time.perf_counter() - start)
    return {"operations_per_second": 2 * rows**3 / min(taken), "versions": versions("onnxruntime")}


def _session(operator: str, first: np.dtype, weight: np.ndarray, threads: int) -> onnxruntime.InferenceSession:
    """Opens a product with a constant weight, which ONNX Runtime packs once, as in a network."""
    kind = helper.np_dtype_to_tensor_dtype(first)
    result = TensorProto.FLOAT if kind == TensorProto.FLOAT else TensorProto.INT32
    given = helper.make_tensor_value_info("a", kind, weight.shape)
    wanted = helper.make_tensor_value_info("c", result, weight.shape)
    node = helper.make_node(operator, ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", [given], [wanted], [numpy_helper.from_array(weight, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    serve({"multiply": multiply})

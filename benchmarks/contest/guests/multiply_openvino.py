"""Times matrix products in OpenVINO: float32, and INT8 as in its INT8 networks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
from exchange import serve, versions
from openvino import opset13 as ops

_LAYERS = 4  # consecutive products: input and output are float32, values between the products stay in INT8


def multiply(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the best rate of ``calls`` runs of :data:`_LAYERS` products of square matrices, in operations/s."""
    rows = request["rows"]
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": request["threads"], "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    compiled = openvino.Core().compile_model(_model(rows, request["kind"]), "CPU", settings)
    _check(compiled, request["kind"])
    call = compiled.create_infer_request()
    value = np.random.default_rng(0).random((1, rows, rows), np.float32)
    taken = []
    for _ in range(request["calls"]):
        start = time.perf_counter()
        call.infer([value], share_inputs=True, share_outputs=True)
        taken.append(time.perf_counter() - start)
    return {"operations_per_second": 2 * _LAYERS * rows**3 / min(taken), "versions": versions("openvino")}


def _model(rows: int, kind: str) -> Any:
    given = ops.parameter([1, rows, rows], np.float32)
    value = given
    rng = np.random.default_rng(0)
    for _ in range(_LAYERS):
        if kind == "int8":
            value = ops.fake_quantize(value, *_limits(0, 255 / 64), 256)
            weight = ops.multiply(
                ops.convert(ops.constant(rng.integers(-127, 128, (rows, rows), np.int8)), np.float32),
                ops.constant(np.full((rows, 1), 1e-4, np.float32)),
            )
        else:
            weight = ops.constant(rng.random((rows, rows), np.float32) / rows)
        value = ops.matmul(value, weight, False, True)
    return openvino.Model([value], [given], "products")


def _limits(low: float, high: float) -> list[Any]:
    """Returns the input and output limits of a FakeQuantize."""
    return 2 * [ops.constant(np.float32(low)), ops.constant(np.float32(high))]


def _check(compiled: Any, kind: str) -> None:
    """Exits if INT8 was requested but OpenVINO computes in another precision."""
    for operator in compiled.get_runtime_model().get_ops():
        info = {key: str(v.astype(str)) for key, v in operator.get_rt_info().items() if hasattr(v, "astype")}
        if info.get("layerType") in ("FullyConnected", "MatMul"):
            found = info["runtimePrecision"]
            if kind == "int8" and found not in ("i8", "u8"):
                raise SystemExit(f"OpenVINO computes this product in {found} instead of INT8")


if __name__ == "__main__":
    serve({"multiply": multiply})

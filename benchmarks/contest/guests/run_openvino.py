"""OpenVINO on the CPU, reading ONNX or its own format; the precision of what is not INT8 is asked for or its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from exchange import Predict, serve_engine, versions

_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")


def open_engine(request: dict[str, Any]) -> tuple[Predict, dict[str, Any]]:
    """``precision``: "f32", or nothing for OpenVINO's own choice."""
    core = openvino.Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": request["threads"]}
    if request["precision"]:
        settings["INFERENCE_PRECISION_HINT"] = request["precision"]
    compiled = core.compile_model(core.read_model(request["graph"]), "CPU", settings)
    call = compiled.create_infer_request()

    def predict(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.array(call.infer(inputs)[compiled.output(0)])

    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return predict, {"precision": chosen, "versions": versions("openvino", "numpy"), "products": _products(compiled)}


def _products(compiled: Any) -> list[dict[str, Any]]:
    """Names and INT8 or not of the products as the plugin runs them."""
    found = []
    for operator in compiled.get_runtime_model().get_ops():
        facts = {key: _text(value) for key, value in operator.get_rt_info().items()}
        if facts.get("layerType") in _PRODUCTS:
            names = facts["originalLayersNames"].split(",")  # of all layers that were fused into it
            found.append({"names": names, "int8": facts["runtimePrecision"] in ("i8", "u8")})
    return found


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


if __name__ == "__main__":
    serve_engine(open_engine)

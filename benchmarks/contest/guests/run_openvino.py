"""OpenVINO on the CPU, reading ONNX or its own format; the precision of what is not INT8 is asked for or its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from exchange import Inputs, Opened, serve_engine, versions

_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")


def open_engine(request: dict[str, Any]) -> Opened:
    """``precision``: "f32", or nothing for OpenVINO's own choice.

    With more than one of ``streams`` OpenVINO is told to aim at throughput, and chooses their number. The batch is
    fixed, ``batch`` or 1: OpenVINO runs a graph whose sizes are all known much faster, so that it is shown at its best.
    """
    core = openvino.Core()
    many = request.get("streams", 1) > 1
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "THROUGHPUT" if many else "LATENCY", "INFERENCE_NUM_THREADS": request["threads"]
    }  # fmt: skip
    if request["precision"]:
        settings["INFERENCE_PRECISION_HINT"] = request["precision"]
    model = core.read_model(request["graph"])
    model.reshape({port: _fixed(port.partial_shape, request.get("batch", 1)) for port in model.inputs})
    compiled = core.compile_model(model, "CPU", settings)
    call = compiled.create_infer_request()

    def predict(inputs: Inputs) -> np.ndarray:
        return np.array(call.infer(inputs)[compiled.output(0)])

    description = {
        "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        "streams": compiled.get_property("NUM_STREAMS"),
        "versions": versions("openvino", "numpy"),
        "products": _products(compiled),
    }
    return Opened(predict, description, _in_queue(compiled) if many else None)


def _fixed(shape: Any, batch: int) -> Any:
    return openvino.PartialShape([batch, *list(shape)[1:]])


def _in_queue(compiled: Any) -> Callable[[list[Inputs]], None]:
    """``run_all`` with OpenVINO's own queue, of as many requests as it recommends."""
    queue = openvino.AsyncInferQueue(compiled)
    # As all others, it hands out answers that are the caller's own.
    queue.set_callback(lambda request, _: np.array(request.get_output_tensor(0).data))

    def run_all(work: list[Inputs]) -> None:
        for inputs in work:
            queue.start_async(inputs)
        queue.wait_all()

    return run_all


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

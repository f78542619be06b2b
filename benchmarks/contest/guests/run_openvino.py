"""Runs an ONNX or OpenVINO graph in OpenVINO on the CPU; non-INT8 operators have a given or the default precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from exchange import Inputs, Opened, serve_engine, versions

_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")


def open_engine(request: dict[str, Any]) -> Opened:
    """Opens a graph. ``precision``: "f32", or "" for OpenVINO's own choice.

    With more than one of ``streams``, OpenVINO gets the throughput hint and chooses the number of streams. The batch
    size is fixed to ``batch`` (default: 1), because OpenVINO is much faster with static shapes.
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
    """Returns a ``run_all`` that uses OpenVINO's queue with its recommended number of requests."""
    queue = openvino.AsyncInferQueue(compiled)
    # Copy the outputs, as all other engines do.
    queue.set_callback(lambda request, _: np.array(request.get_output_tensor(0).data))

    def run_all(work: list[Inputs]) -> None:
        for inputs in work:
            queue.start_async(inputs)
        queue.wait_all()

    return run_all


def _products(compiled: Any) -> list[dict[str, Any]]:
    """Returns the products that the plugin runs: their names, and whether they are INT8."""
    found = []
    for operator in compiled.get_runtime_model().get_ops():
        info = {key: _text(value) for key, value in operator.get_rt_info().items()}
        if info.get("layerType") in _PRODUCTS:
            names = info["originalLayersNames"].split(",")  # all layers fused into this operator
            found.append({"names": names, "int8": info["runtimePrecision"] in ("i8", "u8")})
    return found


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


if __name__ == "__main__":
    serve_engine(open_engine)

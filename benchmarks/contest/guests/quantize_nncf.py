"""Quantizes a graph to INT8 with NNCF for OpenVINO, with its default or its transformer preset."""

from __future__ import annotations

import time
from typing import Any

import nncf
import openvino
from exchange import count_of, load_tiles, serve, versions

_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
# Operators between an operator and the quantizer of its input that do not change values.
_PASSING = (
    "Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Slice",
    "StridedSlice", "Split", "VariadicSplit", "MaxPool", "Pad",
)  # fmt: skip


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """Quantizes a graph; ``settings`` may have ``model_type``, the name of an NNCF model type."""
    start = time.perf_counter()
    tiles = load_tiles(request["tiles"])
    count = count_of(tiles)
    dataset = nncf.Dataset(range(count), lambda i: {name: array[i : i + 1] for name, array in tiles.items()})
    kind = request["settings"].get("model_type")
    model = nncf.quantize(
        openvino.Core().read_model(request["graph"]),
        dataset,
        # The default is at most 300 tiles; all contenders use all tiles.
        subset_size=count,
        model_type=getattr(nncf.ModelType, kind) if kind else None,
    )
    # By default, remaining float constants are rounded to half precision, an approximation unrelated to INT8.
    openvino.save_model(model, request["out"], compress_to_fp16=False)
    return {
        "seconds": time.perf_counter() - start,
        "versions": versions("nncf", "openvino", "numpy"),
        "products": [
            {"names": [op.get_friendly_name()], "int8": _is_int8(op)}
            for op in openvino.Core().read_model(request["out"]).get_ops()
            if op.get_type_name() in _PRODUCTS
        ],
    }


def _is_int8(operator: Any) -> bool:
    """Returns whether both inputs come from quantized values."""
    return all(_quantized(operator.input_value(index).get_node()) for index in (0, 1))


def _quantized(node: Any) -> bool:
    """Returns whether ``node`` is a FakeQuantize or an INT8 constant, or only moves and scales the output of one."""
    if node.get_type_name() == "FakeQuantize":
        return True
    if node.get_type_name() == "Constant":
        return node.get_element_type().get_type_name() in ("i8", "u8")
    passing = node.get_type_name() in _PASSING
    return passing and _quantized(node.input_value(0).get_node())


if __name__ == "__main__":
    serve({"quantize": quantize})

"""NNCF's post-training quantization of an OpenVINO model, with its default or its transformer preset."""

from __future__ import annotations

import time
from typing import Any

import nncf
import openvino
from exchange import count_of, load_tiles, serve, versions

_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
# What may stand between an operator and the quantizer of its input without changing a value.
_PASSING = (
    "Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Slice",
    "StridedSlice", "Split", "VariadicSplit", "MaxPool", "Pad",
)  # fmt: skip


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """``settings``: ``model_type``, the name of an NNCF model type, or nothing."""
    start = time.perf_counter()
    tiles = load_tiles(request["tiles"])
    count = count_of(tiles)
    dataset = nncf.Dataset(range(count), lambda i: {name: array[i : i + 1] for name, array in tiles.items()})
    kind = request["settings"].get("model_type")
    model = nncf.quantize(
        openvino.Core().read_model(request["graph"]),
        dataset,
        # Its default is 300 tiles at most; all contenders see all of the tiles.
        subset_size=count,
        model_type=getattr(nncf.ModelType, kind) if kind else None,
    )
    # Its default also rounds what stayed float to half precision, which is another approximation than INT8.
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
    """Whether both inputs come from quantized values."""
    return all(_quantized(operator.input_value(index).get_node()) for index in (0, 1))


def _quantized(node: Any) -> bool:
    """Whether ``node`` is a FakeQuantize or an INT8 constant, or only moves and scales what is."""
    if node.get_type_name() == "FakeQuantize":
        return True
    if node.get_type_name() == "Constant":
        return node.get_element_type().get_type_name() in ("i8", "u8")
    passing = node.get_type_name() in _PASSING
    return passing and _quantized(node.input_value(0).get_node())


if __name__ == "__main__":
    serve({"quantize": quantize})

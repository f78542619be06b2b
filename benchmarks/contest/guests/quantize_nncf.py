"""Quantizes a graph to INT8 with NNCF for OpenVINO, at its defaults except for the given settings."""

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
    """Quantizes a graph.

    ``settings`` may have ``model_type`` and ``preset``, names in NNCF's enumerations; ``ignored``, regular expressions
    for the names of operators that stay float; and ``fixed_batch``, true to fix the batch size to 1 before.
    """
    start = time.perf_counter()
    tiles = load_tiles(request["tiles"])
    count = count_of(tiles)
    dataset = nncf.Dataset(range(count), lambda i: {name: array[i : i + 1] for name, array in tiles.items()})
    settings = request["settings"]
    source = openvino.Core().read_model(request["graph"])
    if settings.get("fixed_batch"):
        source.reshape({port: [1, *list(port.partial_shape)[1:]] for port in source.inputs})
    model = nncf.quantize(
        source,
        dataset,
        # The default is at most 300 tiles; all contenders use all tiles.
        subset_size=count,
        model_type=_member(nncf.ModelType, settings.get("model_type")),
        preset=_member(nncf.QuantizationPreset, settings.get("preset")),
        ignored_scope=nncf.IgnoredScope(patterns=settings["ignored"]) if "ignored" in settings else None,
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


def _member(enumeration: Any, name: str | None) -> Any:
    return None if name is None else enumeration[name]


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

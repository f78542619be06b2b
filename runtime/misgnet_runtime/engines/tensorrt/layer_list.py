"""Reads the layer list of a plan: from the builder's log, or from the engine inspector's JSON.

Both list the kernels of all optimization profiles, if the plan was built with ``ProfilingVerbosity.DETAILED``. Names of
all profiles but the first end in "[profile N]"; a kernel without such a name belongs to the profile of the others that
were compiled with it, which have the same number after "_myl". Checked with TensorRT for RTX 1.7; the JSON follows
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html (TensorRT 10: a tensor has
"Format/Datatype") and .../api/migration/tensorrt-10x-to-11x-IEngineInspector.html (11: "Format" and "Datatype").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import isqrt, prod
from typing import Any, NamedTuple

from misgnet_runtime.engines.tensorrt.layers import (
    Kernel,
    Kind,
    PlanLayers,
    Precision,
    ProfileLayers,
    most_frequent,
)

Layer = Mapping[str, Any]  # as in the inspector's JSON

_TENSORS = r"\[(|.*?\})\]"
_LINE = re.compile(
    rf"Name: (.*?), LayerType: (\w+), Inputs: {_TENSORS}, (?:Constants: {_TENSORS}, )?Outputs: {_TENSORS}(?:, (.*))?"
)
_TENSOR = re.compile(r"\{ Name: (.*?), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\], (.*?) ?\}(?=, \{|$)")
_DATATYPE = re.compile(r"(?:Datatype|DataType|Format/Datatype): ([^,]*)")
_STREAM = re.compile(r"\bStreamId: (\d+)")
_METADATA = re.compile(r"\bMetadata: (.*)")
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_COMPILED_AS = re.compile(r"_myl(\d+)_\d+$")
_STAGE = re.compile(r"backbone\.(?:patch_embed|block|norm)(\d)")

_NO_KERNELS = {"signal", "wait", "shape_call", "noop", "constant"}  # types of layers, in lower case
_CONVOLUTIONS = {"correlation", "convolution", "caskconvolution"}
_PRODUCTS = {"gemm", "matrix_multiply", "matrixmultiply", "caskgemmmatrixmultiply"}
_MOVES = {"reformat", "shuffle", "slice", "concatenation", "cast", "quantize", "dequantize"}
# Operators in the name of a generated kernel, as in "__myl_ReshTranMulMinMaxRounCast".
_QUANTIZE, _DEQUANTIZE = "MulMinMaxRounCast", "CastMul"
_MOVING = {"Tran", "Resh", "Move", "Slic", "Conc", "Gath", "Repl", "Cast", "Sque", "Expa", "Broa"}

_TYPE = re.compile(r"\b(uint8|int8|int32|int64|bool|bf16|bfloat16|half|fp16|float16|float|fp32|float32|fp8|fp4|int4)\b")
_SIZES = {"int32": 4, "int64": 8, "bf16": 2, "bfloat16": 2, "half": 2, "fp16": 2, "float16": 2, "float": 4, "fp32": 4,
          "float32": 4}  # fmt: skip
_PRECISIONS: dict[str, Precision] = {"int8": "int8", "half": "float16", "fp16": "float16", "float16": "float16",
                                     "float": "float32", "fp32": "float32", "float32": "float32"}  # fmt: skip
_WIDTHS: tuple[Precision, ...] = ("int8", "float16", "float32")  # ascending


class LayerListError(ValueError):
    """A layer list has an unknown form."""


# What data of an unknown form may raise.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class Tensor(NamedTuple):
    """A tensor that a kernel reads or writes."""

    name: str
    shape: tuple[int, ...]
    precision: Precision
    itemsize: int

    @property
    def items(self) -> int:
        return prod(self.shape)

    @property
    def size(self) -> int | None:
        """Its bytes; None if its shape is dynamic."""
        return None if -1 in self.shape else self.items * self.itemsize


def layers_of_log(text: str, activation_bytes: Sequence[int], profiles: int) -> PlanLayers:
    """Returns the kernels that a builder's log lists; never raises.

    Args:
        text: The message that follows "Layers:", one line a layer up to an empty line; empty: there was none.
        activation_bytes: "Total Activation Memory" of each optimization profile.
        profiles: Number of optimization profiles.
    """
    if not text:
        return PlanLayers(note="the builder's log has no list of layers")
    lines = text.strip().partition("\n\n")[0].splitlines()
    try:
        return _plan_layers([_parsed(line) for line in lines], activation_bytes, profiles)
    except _MALFORMED as error:
        return PlanLayers(note=f"the list of layers in the builder's log was not understood: {error}")


def layers_of_inspector(text: str, activation_bytes: Sequence[int], profiles: int) -> PlanLayers:
    """Returns the kernels in the JSON of an engine inspector, like :func:`layers_of_log`; never raises."""
    if not text:
        return PlanLayers(note="the plan could not be opened to inspect it")
    try:
        return _plan_layers(json.loads(text)["Layers"], activation_bytes, profiles)
    except _MALFORMED as error:
        return PlanLayers(note=f"the engine inspector's list of layers was not understood: {error}")


def _parsed(line: str) -> Layer:
    """Returns a line of the log in the form of the inspector's JSON."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise LayerListError(f"'{line[:100]}'")
    name, kind, inputs, constants, outputs, rest = match.groups(default="")
    stream, metadata = _STREAM.search(rest), _METADATA.search(rest)
    return {
        "Name": name, "LayerType": kind, "Inputs": _parsed_tensors(inputs), "Constants": _parsed_tensors(constants),
        "Outputs": _parsed_tensors(outputs), "StreamId": int(stream[1]) if stream else 0,
        "Metadata": metadata[1] if metadata else "",
    }  # fmt: skip


def _parsed_tensors(text: str) -> list[dict[str, Any]]:
    found = [
        {"Name": name, "Dimensions": [int(size) for size in shape.split(",") if size], "Datatype": datatype[1]}
        for name, shape, rest in _TENSOR.findall(text.strip())
        if (datatype := _DATATYPE.search(rest))
    ]
    if len(found) != text.count("{ Name: "):
        raise LayerListError(f"'{text[:100]}'")
    return found


def _plan_layers(layers: Iterable[Layer], activation_bytes: Sequence[int], profiles: int) -> PlanLayers:
    kept = [layer for layer in layers if _kind_of_layer(layer) not in _NO_KERNELS]
    found: dict[int, list[Kernel]] = {}
    for layer, profile in zip(kept, _profiles(kept), strict=True):
        found.setdefault(profile, []).append(_kernel(layer))
    if sorted(found) != list(range(profiles)):
        raise LayerListError(f"it has kernels of the optimization profiles {sorted(found)}, the plan has {profiles}")
    known = list(activation_bytes) if len(activation_bytes) == profiles else [None] * profiles
    return PlanLayers([ProfileLayers(found[index], context_bytes=known[index]) for index in range(profiles)])


def _kind_of_layer(layer: Layer) -> str:
    if not isinstance(layer, Mapping):  # without details, the inspector lists names only
        raise LayerListError("it has names only, so the plan was not built with detailed profiling information")
    return str(layer["LayerType"]).lower()


def _profiles(layers: Iterable[Layer]) -> list[int]:
    """Returns the optimization profile of each layer."""
    keys, named = [], {}
    for index, layer in enumerate(layers):
        compiled = _COMPILED_AS.search(layer["Name"])
        keys.append(compiled[1] if compiled else str(-1 - index))
        tensors = (tensor["Name"] for role in ("Inputs", "Outputs") for tensor in layer.get(role, ()))
        for name in (layer["Name"], *tensors):
            if found := _PROFILE.search(name):
                named[keys[-1]] = int(found[1])
    return [named.get(key, 0) for key in keys]


def _kernel(layer: Layer) -> Kernel:
    inputs, outputs = _tensors(layer, "Inputs"), _tensors(layer, "Outputs")
    constants = _tensors(layer, "Constants") or _weights(layer)
    kind = _kind(layer, [*inputs, *constants])
    largest = max(outputs, key=lambda tensor: abs(tensor.items), default=None)
    operands = _operands(kind, inputs, constants, outputs)
    types = {tensor.precision for tensor in operands}
    precision = max(types, key=_WIDTHS.index) if types and types <= set(_WIDTHS) else largest and largest.precision
    return Kernel(
        name=_PROFILE.sub("", layer["Name"]),
        part=_part(layer),
        kind=kind,
        precision=precision or "other",
        stream=int(layer.get("StreamId", 0)),
        read=_size([*inputs, *constants]),
        written=_size(outputs),
        macs=_macs(kind, operands, outputs),
        int8_writes_float32=kind in ("convolution", "product")
        and precision == "int8"
        and any(tensor.precision == "float32" for tensor in outputs),
    )


def _tensors(layer: Layer, role: str) -> list[Tensor]:
    return [_tensor(tensor) for tensor in layer.get(role, ())]


def _weights(layer: Layer) -> list[Tensor]:
    """Returns the weights and biases of a convolution that TensorRT 10 describes by their type and number."""
    kernel = [int(size) for size in layer.get("Kernel", ())]
    found = []
    for role in ("Weights", "Bias"):
        values = layer.get(role)
        if isinstance(values, Mapping) and int(values["Count"]) > 0:
            count, maps = int(values["Count"]), int(layer.get("OutMaps", 1))
            shape = [maps, count // (maps * prod(kernel)), *kernel] if role == "Weights" else [count]
            found.append(_tensor({"Name": role, "Dimensions": shape, "Datatype": values["Type"]}))
    return found


def _tensor(found: Mapping[str, Any]) -> Tensor:
    text = str(found.get("Datatype") or found.get("DataType") or found.get("Format/Datatype", "")).lower()
    shape = tuple(int(size) for size in found["Dimensions"])
    datatype = _TYPE.search(text)
    if datatype is None and -1 not in shape:
        raise LayerListError(f"tensor {found['Name']} has the data type '{text}'")
    name = datatype[1] if datatype else ""
    return Tensor(found["Name"], shape, _PRECISIONS.get(name, "other"), _SIZES.get(name, 1))


def _size(tensors: Iterable[Tensor]) -> int | None:
    """Returns the bytes of distinct tensors; a tensor with several views counts with the largest."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.size is None:
            return None
        sizes[tensor.name] = max(tensor.size, sizes.get(tensor.name, 0))
    return sum(sizes.values())


def _part(layer: Layer) -> str:
    """Returns the part of the network that most ONNX operators of a layer belong to, "graph" if to none."""
    metadata = _PROFILE.sub("", str(layer.get("Metadata") or ""))
    names = _ORIGIN.findall(metadata) or [_PROFILE.sub("", layer["Name"])]
    return most_frequent(map(part_of, names)) or "graph"


def part_of(operator: str) -> str:
    """Returns the part of an ONNX operator: "backbone stage 1" of "backbone.block1.0.attn/MatMul_7"."""
    scope = operator.rpartition("/")[0]
    stage = _STAGE.match(scope)
    return f"backbone stage {stage[1]}" if stage else scope.partition(".")[0] or "graph"


def _kind(layer: Layer, read: Sequence[Tensor]) -> Kind:
    layer_type, name = _kind_of_layer(layer), _COMPILED_AS.sub("", layer["Name"])
    if layer_type in _CONVOLUTIONS or (layer_type == "runtime_fusion" and "Corr" in name):
        return "convolution"
    if "_mha" in name:
        return "attention"
    if layer_type in _PRODUCTS or (layer_type == "runtime_fusion" and "Fc" in name):
        return "product"
    if layer_type in _MOVES or (name.startswith("__myl_") and _only_moves(name[len("__myl_") :], read)):
        return "move"
    return "other"


def _only_moves(operators: str, read: Sequence[Tensor]) -> bool:
    rest = operators.replace(_QUANTIZE, "")
    if any(tensor.precision == "int8" for tensor in read):
        rest = rest.replace(_DEQUANTIZE, "")
    return set(re.findall("[A-Z][a-z]*", rest)) <= _MOVING


def _operands(kind: Kind, inputs: list[Tensor], constants: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    """Returns the two operands of a convolution or product, as far as the shapes show them."""
    if not inputs or not outputs:
        return []
    if kind == "convolution":
        channels = outputs[0].shape[1:2]
        weights = [one for one in [*constants, *inputs[1:]] if len(one.shape) == 4 and one.shape[:1] == channels]
        return [inputs[0], *weights[:1]]
    if kind == "product":
        candidates = [one for one in [*inputs, *constants] if one.items > 1]
        pairs = ((a, b) for index, a in enumerate(candidates) for b in candidates[index + 1 :])
        return list(next((pair for pair in pairs if _product_macs(*pair, outputs[0]) is not None), candidates[:1]))
    return inputs if kind == "attention" else []


def _macs(kind: Kind, operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> int | None:
    if kind in ("move", "other"):
        return 0
    if any(min(tensor.shape, default=1) < 1 for tensor in [*operands, *outputs]):
        return None
    if kind == "convolution" and len(operands) == 2:
        return outputs[0].items * prod(operands[1].shape[1:])
    if kind == "product" and len(operands) == 2:
        return _product_macs(operands[0], operands[1], outputs[0])
    if kind == "attention" and len(operands) == 3:  # query (B, Q, D), key and value (B, K, D)
        query, key = operands[:2]
        return 2 * query.items * key.items // (query.shape[0] * query.shape[-1])
    return None


def _product_macs(a: Tensor, b: Tensor, output: Tensor) -> int | None:
    """Returns the MACs of a product of (B, M, K) and (B, K, N), each perhaps transposed or of batch 1.

    None if the shapes are not those of a product. The number of values of the three tensors, multiplied, is (BMKN)² if
    one operand has no batch, and B times that if both have it, whatever axes were merged.
    """
    if min(*a.shape, *b.shape, *output.shape) < 1 or min(len(a.shape), len(b.shape)) < 2:
        return None
    batch = min(prod(a.shape[:-2]), prod(b.shape[:-2]))
    square, remainder = divmod(a.items * b.items * output.items, batch)
    macs = isqrt(square)
    if remainder or macs * macs != square or macs % output.items:
        return None
    inner = macs // output.items
    return macs if inner in a.shape[-2:] and inner in b.shape[-2:] else None

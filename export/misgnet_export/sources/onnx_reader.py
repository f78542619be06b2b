"""Reads an ONNX file within limits and refuses what no build can use, before any library interprets the graph."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto, helper
from onnx.inliner import inline_local_functions

from misgnet_export.sources.onnx_scan import scan
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import printable
from misgnet_runtime.limits import ONNX_AXES, ONNX_BYTES, ONNX_NODES
from misgnet_runtime.storage.files import OpenFolder, is_not_regular_file

OLDEST_OPSET = 11
NEWEST_OPSET = int(onnx.defs.onnx_opset_version())
_STANDARD = ("", "ai.onnx")
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_NUMBERS = (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32,
    TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
)  # fmt: skip
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_NOT_TENSORS = ("Sequence", "Optional", "String", "SplitToSequence", "ConcatFromSequence", "TfIdf", "Regex", "ImageDec")
_QUANTIZED = ("QLinear", "Quantize", "DynamicQuantize", "ConvInteger", "MatMulInteger", "DequantizeLinear")


_Function = tuple[str, str, str]  # domain, name, overload


@dataclass(frozen=True)
class ReadModel:
    """An ONNX file with all of its tensors in memory."""

    model: onnx.ModelProto  # without functions and subgraphs; its nodes are in topological order
    opset: int
    sha256: str  # of the file's bytes, and of those of its tensors in other files in the order of the tensors


def read_model(path: Path) -> ReadModel:
    """Reads an ONNX file, and tensors stored beside it in its folder.

    Raises:
        InputError: The file is missing, damaged, larger than a limit, or refused; the message says why.
    """
    data = _bytes(path)
    name, digest = str(path), hashlib.sha256(data)
    scan(data, name)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise InputError(f"{name} is not an ONNX file: {error}") from error
    space = ONNX_BYTES - len(data)
    del data
    opset = _check_opset(model, name)
    _check_functions(model, name)
    if model.functions:
        model = _without_functions(model, name)
    _drop_unused(model, opset)
    _check_nodes(model, name)
    tensors = list(_tensors(model.graph))
    _check_tensors(tensors, name)
    digest.update(_load_external(tensors, path, space))
    _check_order(model.graph, name)
    _check(model, name)
    return ReadModel(model, opset, digest.hexdigest())


def _bytes(path: Path) -> bytes:
    try:
        if is_not_regular_file(path):
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= ONNX_BYTES else b""
    except (OSError, ValueError) as error:
        raise InputError(f"ONNX file {path} cannot be read: {error}") from error
    if size > ONNX_BYTES:
        raise InputError(f"{path} has more than {ONNX_BYTES} bytes, which is the limit")
    if not data:
        raise InputError(f"{path} is not an ONNX file: it is empty")
    return data


def _check_opset(model: onnx.ModelProto, name: str) -> int:
    versions = [one.version for one in model.opset_import if one.domain in _STANDARD]
    if len(versions) != 1:
        raise InputError(f"{name} states {len(versions)} opsets of ONNX's own operators; one is required")
    if not OLDEST_OPSET <= versions[0] <= NEWEST_OPSET:
        raise InputError(
            f"{name} has opset {versions[0]}; {OLDEST_OPSET} to {NEWEST_OPSET} are supported: export it with "
            "opset_version=20"
        )
    if not model.HasField("graph") or not model.graph.node:
        raise InputError(f"{name} holds no graph")
    return int(versions[0])


def _check_functions(model: onnx.ModelProto, name: str) -> None:
    """Refuses functions that would expand to too much, or that call themselves, and nodes with graphs of their own."""
    for nodes in (model.graph.node, *(one.node for one in model.functions)):
        _check_no_branches(nodes, name)
    functions = {(one.domain, one.name, one.overload): one for one in model.functions}
    if len(functions) < len(model.functions):
        raise InputError(f"{name} defines a function twice")
    if own := next((one for one in model.functions if one.domain in _STANDARD), None):
        raise InputError(f"{name} defines ONNX's own operator '{_shown(own.name)}' as a function")
    sizes: dict[_Function, tuple[int, int]] = {}
    for found in _callees_first(functions, name):
        sizes[found] = _expanded(functions[found].node, sizes)
    nodes, size = _expanded(model.graph.node, sizes)
    if nodes > ONNX_NODES or size > ONNX_BYTES:
        raise InputError(f"{name} has functions that expand to more than {ONNX_NODES:,} nodes or {ONNX_BYTES} bytes")


def _check_no_branches(nodes: Iterable[NodeProto], name: str) -> None:
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    for node in nodes:
        if any(one.type in kinds or one.HasField("g") or one.graphs for one in node.attribute):
            raise InputError(
                f"{name} has a control flow operator, '{_shown(node.op_type)}'; export the network with torch.export, "
                "or without branches and loops that depend on its input"
            )


def _expanded(nodes: Iterable[NodeProto], sizes: Mapping[_Function, tuple[int, int]]) -> tuple[int, int]:
    """Returns the number of nodes and the bytes after all functions are replaced by their nodes."""
    parts = [sizes.get(_called(node)) or (1, node.ByteSize()) for node in nodes]
    return sum(count for count, _ in parts), sum(size for _, size in parts)


def _called(node: NodeProto) -> _Function:
    return node.domain, node.op_type, node.overload


def _callees_first(functions: Mapping[_Function, onnx.FunctionProto], name: str) -> Iterator[_Function]:
    done: set[_Function] = set()
    calls = {key: {_called(node) for node in one.node} & set(functions) for key, one in functions.items()}
    while len(done) < len(functions):
        ready = [key for key in functions if key not in done and calls[key] <= done]
        if not ready:
            raise InputError(f"{name} has functions that call each other in a circle")
        yield from ready
        done.update(ready)


def _without_functions(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        return inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError) as error:  # those of onnx's library
        raise InputError(f"{name} has functions that onnx cannot expand: {_one_line(error)}") from error


def _drop_unused(model: onnx.ModelProto, opset: int) -> None:
    """Removes what does not take part in inference."""
    model.ClearField("training_info")
    model.ClearField("functions")
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))


def _check_nodes(model: onnx.ModelProto, name: str) -> None:
    for node in model.graph.node:
        operator = _shown(node.op_type)
        if node.domain not in _STANDARD:
            raise InputError(
                f"{name} has an operator '{operator}' of the domain '{_shown(node.domain)}'; only ONNX's own operators "
                "are supported: export the network without custom operators"
            )
        if operator.startswith(_NOT_TENSORS):
            raise InputError(f"{name} has an operator '{operator}'; sequences, optionals and text are not supported")
        if operator in _RANDOM:
            raise InputError(f"{name} has an operator '{operator}', whose output is random; export it in eval() mode")
        if operator.startswith(_QUANTIZED):
            raise InputError(f"{name} is quantized already: it has '{operator}'; give the float network")
        if operator == "Cast" and any(one.name == "to" and one.i in _HALF for one in node.attribute):
            raise InputError(_half(name))
    if model.graph.sparse_initializer or any(one.HasField("sparse_tensor") or one.sparse_tensors
                                             for node in model.graph.node for one in node.attribute):  # fmt: skip
        raise InputError(f"{name} has sparse tensors, which are not supported; store them as dense ones")
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.HasField("tensor_type"):
            raise InputError(f"{name}: '{_shown(value.name)}' is not a tensor; sequences and optionals are unsupported")


def _half(name: str) -> str:
    return f"{name} computes in half precision; give the network in float32, and the build makes FP16 itself"


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for one in node.attribute:
            if one.HasField("t"):
                yield one.t
            yield from one.tensors


def _check_tensors(tensors: Iterable[TensorProto], name: str) -> None:
    """Refuses types that networks of images do not need, and sizes that do not match the stored bytes."""
    total = 0
    for tensor in tensors:
        what = f"{name}: tensor '{_shown(tensor.name)}'"
        if tensor.data_type in _HALF:
            raise InputError(_half(name))
        if tensor.data_type not in _NUMBERS:
            known = tensor.data_type in TensorProto.DataType.values()
            kind = TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type
            raise InputError(f"{what} has the type {kind}, which is not supported")
        if len(tensor.dims) > ONNX_AXES:
            raise InputError(f"{what} has {len(tensor.dims)} axes; {ONNX_AXES} is the limit")
        if any(size < 0 for size in tensor.dims):
            raise InputError(f"{what} has a negative size")
        if tensor.HasField("segment"):
            raise InputError(f"{what} is stored in segments, which are not supported")
        size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        total += size
        if total > ONNX_BYTES:
            raise InputError(f"{what} and those before declare more than {ONNX_BYTES} bytes, which is the limit")
        if tensor.data_location != TensorProto.EXTERNAL and not _complete(tensor, size):
            raise InputError(f"{what} declares {list(tensor.dims)}, which does not match its stored values")


def _complete(tensor: TensorProto, size: int) -> bool:
    """Returns whether the tensor stores as many values as it declares."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) == size
    field = helper.tensor_dtype_to_field(tensor.data_type)
    return len(getattr(tensor, field)) == math.prod(tensor.dims)


def _load_external(tensors: Iterable[TensorProto], path: Path, space: int) -> bytes:
    """Reads tensors that are stored in other files below the folder of ``path``; returns a digest, or nothing."""
    external = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    if not external:
        return b""
    digest = hashlib.sha256()
    try:
        with OpenFolder(path.resolve().parent) as folder:
            for tensor in external:
                data = _read_external(folder, tensor, str(path), space)
                space -= len(data)
                digest.update(data)
                tensor.raw_data = data
                tensor.ClearField("data_location")
                del tensor.external_data[:]
    except OSError as error:
        raise InputError(f"the folder of {path} cannot be opened: {error}") from error
    return digest.digest()


def _read_external(folder: OpenFolder, tensor: TensorProto, name: str, space: int) -> bytes:
    what = f"{name}: tensor '{_shown(tensor.name)}'"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    relative = PurePosixPath(location)
    inside = bool(relative.parts) and ".." not in relative.parts and not relative.is_absolute()
    if not inside or "\\" in location or "\0" in location or PureWindowsPath(location).drive:
        raise InputError(
            f"{what} is stored in '{_shown(location)}', outside of the file's folder; only files in that folder are "
            "read"
        )
    size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    offset, length = (_number(entries.get(key, default), what) for key, default in (("offset", "0"),
                                                                                    ("length", str(size))))  # fmt: skip
    if length != size or size > space:
        raise InputError(f"{what} needs {size} bytes, but {length} are stored and {space} are left within the limit")
    try:
        handle = folder.open_file(location)
        with os.fdopen(handle, "rb") as file:
            if not os.path.isfile(file.fileno()):  # noqa: PTH113
                raise InputError(f"{what} is stored in '{_shown(location)}', which is not a regular file")
            if os.fstat(handle).st_size < offset + size:
                raise InputError(f"{what} ends beyond the end of '{_shown(location)}'")
            file.seek(offset)
            data = file.read(size)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{what} is stored in '{_shown(location)}', which cannot be read: {error}; links are not followed"
        ) from error
    if len(data) < size:
        raise InputError(f"{what} ends beyond the end of '{_shown(location)}'")
    return data


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise InputError(f"{what} has an invalid position in its file, '{_shown(text)}'")
    return int(text)


def _check_order(graph: onnx.GraphProto, name: str) -> None:
    """Refuses missing, duplicate and circular tensors: each must come from an input, an initializer or a node before.

    Initializers may also be listed as inputs, as in older files.
    """
    if len({item.name for item in graph.initializer}) < len(graph.initializer):
        raise InputError(f"{name} has two initializers of the same name")
    known = {value.name for value in (*graph.input, *graph.initializer)}
    later = {output for node in graph.node for output in node.output}
    for node in graph.node:
        for needed in node.input:
            if needed and needed not in known:
                why = "a node behind it: its nodes form a circle or are not in topological order"
                raise InputError(
                    f"{name}: node '{_shown(node.name or node.op_type)}' reads '{_shown(needed)}', which comes from "
                    f"{why if needed in later else 'nothing: an initializer or input is missing'}"
                )
        for made in node.output:
            if made and made in known:
                raise InputError(f"{name} computes '{_shown(made)}' twice")
            known.add(made)
    for value in graph.output:
        if value.name not in known:
            raise InputError(f"{name}: output '{_shown(value.name)}' comes from nothing")


def _check(model: onnx.ModelProto, name: str) -> None:
    """Lets ONNX check the attributes of all operators."""
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{name} is not a valid ONNX graph: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return _shown(" ".join(str(error).split()), 300)


def _shown(text: str, most: int = 60) -> str:
    return printable(text if len(text) <= most else f"{text[:most]}...")

"""Tests that ONNX files which no build can use are refused in one line, each with its reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from misgnet_export.sources.onnx_reader import read_model
from misgnet_runtime.errors import InputError

TILE = 32


def network(body: str = "d = Sub (x, x) y = Add (d, w)", opset: int = 17) -> onnx.ModelProto:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[b,2,{TILE},{TILE}] x) => (float[b,2,{TILE},{TILE}] y) {{ {body} }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(TILE, np.float32), "w"))
    return model


def write(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_model(path)
    message = str(caught.value)
    assert message.count("\n") == 0 and len(message) < 1000 and message.isprintable()
    return message


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = network()
    change(model)
    return model


def function(name: str, calls: str, domain: str = "own", times: int = 1) -> onnx.FunctionProto:
    names = ["x", *(f"t{index}" for index in range(times - 1)), "y"]
    nodes = [
        helper.make_node(calls, [a], [b], domain="own" if calls.startswith("f") else "") for a, b in pairwise(names)
    ]
    return helper.make_function(domain, name, ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])


def calling(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    model = network()
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend(functions)
    model.graph.node[0].CopyFrom(helper.make_node(functions[0].name, ["x"], ["d"], domain="own"))
    return model


def _of(tensor: TensorProto, **fields: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor.name = "w"
        for name, value in fields.items():
            getattr(tensor, name).extend(value) if isinstance(value, list) else setattr(tensor, name, value)
        model.graph.initializer[0].CopyFrom(tensor)

    return change


BRANCH = helper.make_node(
    "If", ["c"], ["d"], **dict.fromkeys(("then_branch", "else_branch"), helper.make_graph([], "b", [], []))
)
LOOP = helper.make_node("Loop", ["", "", "x"], ["d"], body=helper.make_graph([], "b", [], []))
HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "custom domain": (
        lambda: changed(lambda m: setattr(m.graph.node[0], "domain", "evil")),
        "has an operator 'Sub' of the domain 'evil'; only ONNX's own operators are supported",
    ),
    "unknown operator": (lambda: changed(lambda m: setattr(m.graph.node[0], "op_type", "Evil")), "not a valid ONNX"),
    "branch": (lambda: changed(lambda m: m.graph.node[0].CopyFrom(BRANCH)), "has a control flow operator, 'If'"),
    "loop": (lambda: changed(lambda m: m.graph.node[0].CopyFrom(LOOP)), "has a control flow operator, 'Loop'"),
    "branch in a function": (
        lambda: calling(helper.make_function("own", "f", ["x"], ["d"], [BRANCH], [])),
        "has a control flow operator, 'If'",
    ),
    "sequence": (
        lambda: network("s = SequenceConstruct (x, x) d = ConcatFromSequence <axis = 0> (s) y = Add (d, w)"),
        "'SequenceConstruct'; sequences, optionals and text are not supported",
    ),
    "random": (lambda: network("d = RandomNormalLike (x) y = Add (d, w)"), "whose output is random"),
    "quantized": (
        lambda: network("d = QuantizeLinear (x, w) y = DequantizeLinear (d, w)"),
        "is quantized already: it has 'QuantizeLinear'; give the float network",
    ),
    "half precision inside": (
        lambda: network("h = Cast <to = 10> (x) d = Cast <to = 1> (h) y = Add (d, w)"), "computes in half precision",
    ),
    "half precision weights": (
        lambda: changed(_of(numpy_helper.from_array(np.ones(TILE, np.float16)))), "computes in half precision",
    ),
    "text": (lambda: changed(_of(helper.make_tensor("w", TensorProto.STRING, [1], [b"a"]))), "has the type STRING"),
    "unknown type": (lambda: changed(_of(TensorProto(), data_type=99, dims=[1])), "has the type 99"),
    "sparse": (
        lambda: changed(lambda m: m.graph.sparse_initializer.add()), "has sparse tensors, which are not supported",
    ),
    "input that is a sequence": (
        lambda: changed(lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent()),
        "'x' is not a tensor",
    ),
    "two opsets": (lambda: changed(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 18))), "2 opsets"),
    "no opset": (lambda: changed(lambda m: m.ClearField("opset_import")), "states 0 opsets"),
    "old opset": (lambda: network(opset=10), "has opset 10; 11 to"),
    "future opset": (lambda: changed(lambda m: setattr(m.opset_import[0], "version", 999)), "has opset 999; 11 to"),
    "no graph": (lambda: changed(lambda m: m.ClearField("graph")), "holds no graph"),
    "missing initializer": (
        lambda: changed(lambda m: m.graph.ClearField("initializer")),
        "reads 'w', which comes from nothing: an initializer or input is missing",
    ),
    "cycle": (
        lambda: network("d = Sub (x, e) e = Neg (d) y = Add (e, w)"),
        "reads 'e', which comes from a node behind it: its nodes form a circle or are not in topological order",
    ),
    "tensor computed twice": (lambda: network("d = Sub (x, w) d = Neg (x) y = Add (d, w)"), "computes 'd' twice"),
    "output from nothing": (
        lambda: changed(lambda m: setattr(m.graph.output[0], "name", "z")), "output 'z' comes from nothing",
    ),
    "two initializers of a name": (
        lambda: changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "two initializers of the same",
    ),
    "2 GiB declared": (
        lambda: changed(lambda m: m.graph.initializer[0].CopyFrom(TensorProto(name="w", data_type=1, dims=[1 << 29]))),
        "declare more than 1073741824 bytes, which is the limit",
    ),
    "sizes that overflow": (
        lambda: changed(_of(TensorProto(data_type=1), dims=[1 << 62, 4, 1 << 62])), "declare more than 1073741824",
    ),
    "negative size": (lambda: changed(lambda m: m.graph.initializer[0].dims.append(-1)), "has a negative size"),
    "fewer values than declared": (
        lambda: changed(lambda m: m.graph.initializer[0].dims.append(2)), "does not match its stored values",
    ),
    "many axes": (lambda: changed(_of(TensorProto(data_type=1), dims=[1] * 9)), "has 9 axes; 8 is the limit"),
    "segments": (lambda: changed(lambda m: m.graph.initializer[0].segment.SetInParent()), "is stored in segments"),
    "functions in a circle": (
        lambda: calling(function("f1", "f2"), function("f2", "f1")), "functions that call each other in a circle",
    ),
    "functions that unfold": (
        lambda: calling(*(function(f"f{i}", f"f{i + 1}" if i < 20 else "Neg", times=2) for i in range(21))),
        "has functions that expand to more than 50,000 nodes",
    ),
    "function twice": (lambda: calling(function("f", "Neg"), function("f", "Neg")), "defines a function twice"),
    "ONNX's own operator as a function": (
        lambda: calling(function("f", "Neg"), function("Sub", "Neg", domain="")), "operator 'Sub' as a function",
    ),
    "control characters in a name": (
        lambda: changed(lambda m: setattr(m.graph.node[0], "domain", "a\nb\x1b[31m" * 50)), "of the domain 'a\\nb",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_files_that_no_build_can_use_are_refused(kind: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[kind]
    assert reason in refusal(write(tmp_path, make()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX file"),
        (b"\x0a\xff\xff\xff\xff\x0f", "it is truncated: a field ends beyond its message"),
        (b"\x08" + b"\xff" * 20, "a number does not end"),
        (b"\x0b\x0c", "unknown wire type 3"),
        (b"\x08\x01", "states 0 opsets"),
        (network().SerializeToString()[:-3], "it is truncated"),
    ],
)
def test_bytes_that_are_no_onnx_file_are_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(write(tmp_path, data))


def test_files_that_do_not_exist_or_are_pipes_are_refused(tmp_path: Path) -> None:
    assert "cannot be read: [Errno 2]" in refusal(tmp_path / "none.onnx")
    assert "is not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "is not a regular file" in refusal(tmp_path / "pipe.onnx")


def test_functions_of_the_file_are_expanded_and_unused_domains_dropped(tmp_path: Path) -> None:
    model = calling(function("f", "Neg", times=3))
    model.opset_import.append(helper.make_opsetid("pkg.unused", 1))
    found = read_model(write(tmp_path, model))
    assert [node.op_type for node in found.model.graph.node] == ["Neg", "Neg", "Neg", "Add"]
    assert [one.domain for one in found.model.opset_import] == [""]


# Tensors in other files


def external(location: str, **entries: int) -> onnx.ModelProto:
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


@pytest.mark.parametrize("location", ["weights.bin", "more/weights.bin"])
def test_tensors_in_the_folder_are_read(location: str, tmp_path: Path) -> None:
    numbers = np.arange(TILE, dtype=np.float32)
    (tmp_path / "more").mkdir()
    (tmp_path / location).write_bytes(bytes(64) + numbers.tobytes())
    path = write(tmp_path, external(location, offset=64, length=numbers.nbytes))
    found = read_model(path)
    assert np.array_equal(numpy_helper.to_array(found.model.graph.initializer[0]), numbers)
    own = hashlib.sha256(path.read_bytes())
    assert found.sha256 != own.hexdigest()
    (tmp_path / location).write_bytes(bytes(64) + (numbers + 1).tobytes())
    assert read_model(path).sha256 != found.sha256, "the digest covers them"


@pytest.mark.parametrize(
    "location",
    ["../outside.bin", "/etc/hostname", "more/../../outside.bin", "..", "", "C:\\secret.bin", "a\\..\\b", "a\0b"],
)
def test_tensors_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(4 * TILE))
    folder = tmp_path / "in"
    folder.mkdir()
    assert "outside of the file's folder" in refusal(write(folder, external(location)))


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_in_the_folder_are_not_followed(link: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "weights.bin").write_bytes(bytes(4 * TILE))
    folder = tmp_path / "in"
    folder.mkdir()
    if link == "file":
        (folder / "weights.bin").symlink_to("../outside/weights.bin")
    else:
        (folder / "more").symlink_to("../outside")
    location = "weights.bin" if link == "file" else "more/weights.bin"
    assert "cannot be read" in refusal(write(folder, external(location)))


def test_other_files_that_do_not_hold_the_tensor_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(10))
    os.mkfifo(tmp_path / "pipe.bin")
    assert "ends beyond the end of 'short.bin'" in refusal(write(tmp_path, external("short.bin")))
    assert "ends beyond the end" in refusal(write(tmp_path, external("short.bin", offset=1 << 50)))
    assert "needs 128 bytes, but 5 are stored" in refusal(write(tmp_path, external("short.bin", length=5)))
    assert "has an invalid position" in refusal(write(tmp_path, external("short.bin", offset=-1)))
    assert "is not a regular file" in refusal(write(tmp_path, external("pipe.bin")))
    assert "cannot be read" in refusal(write(tmp_path, external("missing.bin")))

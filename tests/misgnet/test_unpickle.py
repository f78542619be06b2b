"""Tests that a hostile pickle runs no code, takes little memory and always raises InputError."""

from __future__ import annotations

import builtins
import copyreg
import pickle
import resource
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misgnet.checkpoint import load_checkpoint
from misgnet_runtime.errors import InputError
from support.published import light_state, read_archive, snapshot, write_archive

TRAP = "misgnet_test_trap"  # a module that creates a file when it is imported
MEMORY = 400 << 20
Archive = tuple[bytes, dict[str, bytes]]  # the pickle, the storages


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Returns the pickle and the storages of a small state dict that loads."""
    path = tmp_path_factory.mktemp("valid") / "weights.pt"
    torch.save(light_state(stage_4=False), path)
    return read_archive(path)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yields the path of a file that a hostile pickle would create; checks after the test that it does not exist."""
    canary = tmp_path / "canary"
    spring = f"def spring(*_, **__): open({str(canary)!r}, 'w').close()"
    (tmp_path / f"{TRAP}.py").write_text(f"{spring}\nspring()\nclass Trap: __init__ = spring\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield canary
    assert not canary.exists(), "code of the pickle was executed"
    assert TRAP not in sys.modules
    assert not {name for name in set(sys.modules) - before if name.startswith(("numpy.", "torch.hub"))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


# --- a small assembler of pickles


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def whole(*parts: bytes) -> bytes:
    return b"\x80\x05" + b"".join(parts) + b"."


def beside(valid: bytes, payload: bytes) -> bytes:
    """Returns the pickle of {"model": the valid state dict, "args": the payload}."""
    return whole(b"}", text("model"), valid[2:-1], b"s", text("args"), payload, b"s")


ORDERED_DICT, REBUILD = named("collections", "OrderedDict"), named("torch._utils", "_rebuild_tensor_v2")
STORAGE = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x01tQ"
TENSOR = REBUILD + b"(" + STORAGE + b"K\x00))\x89" + ORDERED_DICT + b")RtR"


def calls(canary: Path) -> dict[str, tuple[str, str, bytes]]:
    """Returns module, name and arguments of harmful functions."""
    touch = text(f"touch {canary}")
    code = text(f"open({str(canary)!r}, 'w')")
    return {
        "os.system": ("os", "system", touch),
        "posix.system": ("posix", "system", touch),
        "eval": ("builtins", "eval", code),
        "exec": ("builtins", "exec", code),
        "eval of Python 2": ("__builtin__", "eval", code),
        "Popen": ("subprocess", "Popen", b"](" + text("touch") + text(str(canary)) + b"e"),
        "hub": ("torch.hub", "load", text(str(canary.parent)) + text("spring")),
        "import": ("importlib", "import_module", text(TRAP)),
        "__import__": ("builtins", "__import__", text(TRAP)),
        "getattr": ("builtins", "getattr", named("os", "path") + text("os")),
        "attrgetter": ("operator", "attrgetter", text("system")),
        "partial": ("functools", "partial", named("os", "system") + touch),
        "numpy.load": ("numpy", "load", text(str(canary))),
        "array": ("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray") + b"K\x00\x85C\x01b"),
        "torch.load": ("torch", "load", text(str(canary))),
        "torch dotted": ("torch", "hub.os.system", touch),
        "rebuild dotted": ("torch._utils", "_rebuild_tensor_v2.__globals__", touch),
        "loads": ("pickle", "loads", b"C\x05" + b"cos\n." ),
        "a module not imported": (TRAP, "spring", b""),
        "a class not imported": (TRAP, "Trap", b""),
    }  # fmt: skip


NAMES = list(calls(Path("/canary")))
STYLES = ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"]
INERT = ("GLOBAL", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX")  # these create an inert record; the other styles are refused


def instructions(style: str, module: str, name: str, args: bytes) -> bytes:
    """Returns instructions that call ``module.name`` in the given style."""
    target = named(module, name)
    return {
        "GLOBAL": target + b"(" + args + b"tR",
        "STACK_GLOBAL": short(module) + short(name) + b"\x93(" + args + b"tR",
        "INST": b"(" + args + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + target + args + b"o",
        "NEWOBJ": target + b"(" + args + b"t\x81",
        "NEWOBJ_EX": target + b"(" + args + b"t}\x92",
        "BUILD": REBUILD + b"}" + text("__call__") + target + b"sb",
    }[style]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", STYLES)
def test_hostile_call_alone_is_refused(path: Path, canary: Path, style: str, name: str) -> None:
    write_archive(path, whole(instructions(style, *calls(canary)[name])), {})
    with pytest.raises(InputError):
        load_checkpoint(path)


@pytest.mark.parametrize("style", STYLES)
def test_hostile_calls_beside_weights_do_nothing(path: Path, canary: Path, valid: Archive, style: str) -> None:
    payload = b"](" + b"".join(instructions(style, *call) for call in calls(canary).values()) + b"e"
    write_archive(path, beside(valid[0], payload), valid[1])
    if style in INERT:
        assert len(load_checkpoint(path)) == len(light_state(stage_4=False))
    else:
        with pytest.raises(InputError):
            load_checkpoint(path)


def test_ordinary_unpickler_executes_the_hostile_pickles(canary: Path) -> None:
    """Shows that the pickles above are effective."""
    for style in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ"):
        pickle.loads(whole(instructions(style, *calls(canary)["os.system"])))
        assert canary.exists()
        canary.unlink()


STATE_OF = {
    "a builder": REBUILD,
    "a class": ORDERED_DICT,
    "an unknown class": named("os", "system"),
    "a dtype": named("torch", "FloatStorage"),
    "a tensor": TENSOR,
    "a storage": STORAGE,
    "a dict": b"}",
    "a list": b"]",
    "a number": b"K\x01",
    "a text": text("x"),
    "none": b"N",
}


@pytest.mark.parametrize("target", STATE_OF)
def test_pickled_state_changes_only_records(path: Path, valid: Archive, target: str) -> None:
    for state in (b"}" + text("_name") + text("x") + b"s", b"N}" + text("key") + b"Ns\x86", b"N"):
        write_archive(path, beside(valid[0], STATE_OF[target] + state + b"b"), valid[1])
        with suppress(InputError):  # the state of a dict is discarded, other states are refused
            load_checkpoint(path)
    write_archive(path, *valid)
    assert torch.equal(load_checkpoint(path)[KEY], light_state()[KEY])


@pytest.mark.parametrize("code", [b"\x82\x01", b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"])
def test_extension_registry_is_not_used(path: Path, canary: Path, code: bytes) -> None:
    copyreg.add_extension(TRAP, "spring", 0xF0)
    try:
        write_archive(path, whole(code, b")R"), {})
        with pytest.raises(InputError):
            load_checkpoint(path)
    finally:
        copyreg.remove_extension(TRAP, "spring", 0xF0)


# --- memory and crashes


def nested(opener: bytes, closer: bytes, depth: int = 30_000, middle: bytes = b"N") -> bytes:
    return opener * depth + middle + closer * depth


LIST = b"](" + b"N" * 1_000_000 + b"e\x94"  # a million items, memo index 0
BOMBS = {
    "memo index": b"Nr" + struct.pack("<I", 0x0FFFFFFF),
    "memo index in text": b"Np99999999999\n",
    "LONG4": b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"\x01",
    "LONG4 negative": b"\x8b" + struct.pack("<i", -1),
    "long text": b"X" + struct.pack("<I", 0xFFFFFFFF),
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 40),
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 33),
    "frame": b"\x95" + struct.pack("<Q", 1 << 62),
    "digits": b"L" + b"9" * 100_000 + b"L\n",
    "tuples": b")" + b"\x85" * 200_000,
    "lists": nested(b"](", b"e"),
    "dicts": nested(b"}" + text("model"), b"s"),
    "calls": nested(named("a", "b") + b"(", b"tR"),
    "states": nested(named("a", "b") + b")R", b"b", middle=b"}"),
    "hash of nested tuples": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
    "set of nested tuples": b"\x8f(" + b")" + b"\x85" * 200_000 + b"\x90",
    "frozen set of nested tuples": b"(" + b")" + b"\x85" * 200_000 + b"\x91",
    "nested tuples as an argument": ORDERED_DICT + b"](" + b")" + b"\x85" * 200_000 + b"N\x86e\x85R",
    "itself": b"}\x94" + text("model") + b"h\x00s",
    "copies of a list": LIST + (named("torch", "Size") + b"h\x00\x85R0") * 2_000,
    "copies of a dict": LIST + (ORDERED_DICT + b"h\x00\x85R0") * 2_000,
    "arguments": LIST + (named("a", "b") + b"h\x00R") * 2_000,
    "classes": b"](" + b"".join(named("a", f"b{n}") for n in range(30_000)) + b"e",
    "modules that share their children": (
        named("a", "b") + b")R\x94}" + text("_modules") + b"}\x94("
        + b"".join(text(str(n)) + named("a", "b") + b")R}" + text("_modules") + b"h\x01sb" for n in range(5_000))
        + b"usb"
    ),
    "deep module": nested(named("a", "b") + b")R}" + text("_modules") + b"}" + text("abcdefgh"), b"ssb", 10_000),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_bomb_is_refused_with_little_memory(path: Path, bomb: str) -> None:
    write_archive(path, whole(BOMBS[bomb]), {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 10, 1000, 0.5, 0.99])
def test_truncated_pickle_is_refused(path: Path, valid: Archive, cut: float) -> None:
    pickled, storages = valid
    write_archive(path, pickled[: cut if isinstance(cut, int) else int(cut * len(pickled))], storages)
    with pytest.raises(InputError):
        load_checkpoint(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6),
    insert=st.binary(max_size=8),
)
def test_damaged_pickle_loads_or_is_refused(
    path: Path, valid: Archive, changes: list[tuple[int, int]], insert: bytes
) -> None:
    pickled = bytearray(valid[0])
    for position, value in changes:
        pickled[position % len(pickled)] = value
    position = changes[0][0] % len(pickled)
    write_archive(path, bytes(pickled[:position] + insert + pickled[position:]), valid[1])
    with suppress(InputError):
        load_checkpoint(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from([
    *(bytes([code]) for code in range(256)), ORDERED_DICT, REBUILD, STORAGE, TENSOR, text("_modules"), text("model"),
    named("a", "b"), b"h\x00", b"\x94", b"K\x01", b"(", b")", b"}", b"t", b"R", b"s", b"b",
]), max_size=30))  # fmt: skip
def test_random_instructions_are_refused(path: Path, parts: list[bytes]) -> None:
    write_archive(path, whole(*parts), {"0": bytes(4)})
    with pytest.raises(InputError):
        load_checkpoint(path)


# --- tensors that do not fit their storage

KEY = "final2.1.conv.bias"  # two numbers
ROW = "Translayer1.conv.weight"  # its last two dimensions have one element


def tensor(
    shape: str = "(I2\nt",
    stride: str = "(I1\nt",
    offset: str = "I0\n",
    count: str = "I2\n",
    dtype: str = "FloatStorage",
) -> bytes:
    storage = b"(" + text("storage") + named("torch", dtype) + text("own") + text("cpu") + count.encode() + b"tQ"
    arguments = storage + offset.encode() + shape.encode() + stride.encode() + b"\x89" + ORDERED_DICT + b")R"
    return REBUILD + b"(" + arguments + b"tR"


TENSORS = {
    "huge shape, no stride": tensor(shape="(L1000000000000L\nt", stride="(I0\nt"),
    "shape beyond int64": tensor(shape=f"(L{10**30}L\nt"),
    "shape of many digits": tensor(shape=f"(L{'9' * 4000}L\nt"),
    "negative offset": tensor(offset="I-1\n"),
    "offset beyond the storage": tensor(offset="I1\n"),
    "offset beyond int64": tensor(offset=f"L{10**30}L\n"),
    "stride beyond the storage": tensor(stride="(I2\nt"),
    "negative stride": tensor(stride="(I-1\nt"),
    "stride beyond int64": tensor(stride=f"(L{1 << 70}L\nt"),
    "more strides than sizes": tensor(stride="(I1\nI1\nt"),
    "fractional shape": tensor(shape="(F2.0\nt"),
    "true as a size": tensor(shape="(I01\nt"),
    "text as a shape": tensor(shape="X\x02\0\0\0ab"),
    "none as a shape": tensor(shape="N"),
    "storage larger than the file": tensor(count=f"L{1 << 40}L\n"),
    "negative storage": tensor(count="I-2\n"),
    "storage of many digits": tensor(count=f"L{'9' * 4000}L\n"),
    "storage of another type": tensor(dtype="DoubleStorage"),
    "storage of an unknown type": tensor(dtype="ComplexFloatStorage"),
    "no storage": REBUILD + b"(NI0\n))\x89NtR",
    "too few arguments": REBUILD + b")R",
}


def with_tensor(valid: bytes, last: bytes, key: str = KEY) -> bytes:
    """Returns the pickle of the valid state dict with another tensor under ``key``."""
    return whole(b"}", text("model"), valid[2:-1], text(key), last, b"ss")


def test_tensor_in_its_own_storage_loads(path: Path, valid: Archive) -> None:
    write_archive(path, with_tensor(valid[0], tensor()), {**valid[1], "own": struct.pack("<2f", 3, 4)})
    assert load_checkpoint(path)[KEY].tolist() == [3, 4]


@pytest.mark.parametrize("case", TENSORS)
def test_tensor_that_does_not_fit_is_refused(path: Path, valid: Archive, case: str) -> None:
    write_archive(path, with_tensor(valid[0], TENSORS[case]), {**valid[1], "own": struct.pack("<2f", 3, 4)})
    with pytest.raises(InputError):
        load_checkpoint(path)


@pytest.mark.parametrize(("stride", "fits"), [(1 << 61, True), (1 << 63, False), (1 << 70, False)])
def test_huge_stride_of_one_element_is_accepted_up_to_int64(
    path: Path, valid: Archive, stride: int, fits: bool
) -> None:
    """Such a stride is never used, but PyTorch does not accept numbers beyond int64."""
    last = tensor("(I128\nI320\nI1\nI1\nt", f"(I320\nI1\nL{stride}L\nI1\nt", count="I40960\n")
    write_archive(path, with_tensor(valid[0], last, ROW), {**valid[1], "own": bytes(4 * 40960)})
    if fits:
        assert not load_checkpoint(path)[ROW].any()
    else:
        with pytest.raises(InputError):
            load_checkpoint(path)


def test_missing_storage_is_refused(path: Path, valid: Archive) -> None:
    write_archive(path, with_tensor(valid[0], tensor()), valid[1])
    with pytest.raises(InputError, match="data/own' is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused(path: Path, valid: Archive, method: int) -> None:
    write_archive(path, *valid, method)
    with pytest.raises(InputError, match="compressed"):
        load_checkpoint(path)


def test_overlong_pickle_is_refused(path: Path) -> None:
    write_archive(path, b"]" * (9 << 20), {})
    with pytest.raises(InputError, match="too large"):
        load_checkpoint(path)


def test_two_pickles_are_refused(path: Path, valid: Archive) -> None:
    write_archive(path, *valid)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", valid[0])
    with pytest.raises(InputError, match=r"does not have exactly one data\.pkl"):
        load_checkpoint(path)


def test_entry_that_declares_more_than_the_file_is_refused(path: Path, valid: Archive) -> None:
    write_archive(path, *valid)
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02", 0, content.rindex(b"archive/data/"))
    content[start + 20 : start + 28] = struct.pack("<II", 0xFFFFFF00, 0xFFFFFF00)
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_checkpoint(path)


def test_pickle_module_is_not_modified(path: Path) -> None:
    """The restricted unpickler has its own table of instructions."""
    torch.save(snapshot(light_state()), path)
    load_checkpoint(path)
    assert pickle._Unpickler.dispatch[pickle.BUILD[0]].__name__ == "load_build"
    assert pickle.loads(pickle.dumps({"a": {1, 2}, "b": builtins.len})) == {"a": {1, 2}, "b": len}

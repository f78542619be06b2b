"""Tests that every published checkpoint format loads to the same weights, and that other files are refused."""

from __future__ import annotations

import json
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from misgnet.checkpoint import load_checkpoint, load_network, save_checkpoint
from misgnet.network import build_misgnet
from misgnet_runtime.errors import InputError
from support.published import (
    State,
    ema_state,
    heavy_state,
    light_state,
    prefixed,
    save_ema,
    save_network,
    snapshot,
)

STATE = light_state()
ONLINE = light_state("online")
USED = light_state(stage_4=False)
KEY = "MGLNet1.mutualnet0.x1_proj0.anchor"

FORMS: dict[str, Callable[[Path], None]] = {
    "state dict": lambda path: torch.save(STATE, path),
    "state dict without stage 4": lambda path: torch.save(USED, path),
    "state dict, data-parallel": lambda path: torch.save(prefixed(STATE, "module."), path),
    "state dict, compiled": lambda path: torch.save(prefixed(STATE, "_orig_mod.module."), path),
    "state dict, protocol 5": lambda path: torch.save(STATE, path, pickle_protocol=5),
    "state dict of parameters": lambda path: torch.save(as_parameters(STATE), path),
    "snapshot": lambda path: torch.save(snapshot(STATE), path),
    "snapshot, data-parallel": lambda path: torch.save(snapshot(prefixed(STATE, "module.")), path),
    "snapshot, protocol 4": lambda path: torch.save(snapshot(STATE), path, pickle_protocol=4),
    "snapshot of an EMA": lambda path: torch.save(snapshot(ema_state(STATE, ONLINE)), path),
    "network": lambda path: save_network(path, STATE),
    "network, data-parallel": lambda path: save_network(path, STATE, wrapper="module"),
    "EMA": lambda path: save_ema(path, STATE, ONLINE),
    "EMA, online model in a list": lambda path: save_ema(path, STATE, ONLINE, plain="online_model"),
    "EMA, averaged model a plain attribute": lambda path: save_ema(path, STATE, ONLINE, plain="ema_model"),
    "EMA of data-parallel networks": lambda path: save_ema(path, STATE, ONLINE, inner="module"),
    "EMA within data-parallel": lambda path: save_ema(path, STATE, ONLINE, outer="module"),
    "EMA state dict": lambda path: torch.save(ema_state(STATE, ONLINE), path),
    "EMA state dict, data-parallel": lambda path: torch.save(prefixed(ema_state(STATE, ONLINE), "module."), path),
    "EMA state dict of data-parallel networks": lambda path: torch.save(
        ema_state(prefixed(STATE, "module."), prefixed(ONLINE, "module.")), path
    ),
    "safetensors float32": lambda path: save_file(full(STATE), path),
    "safetensors float16": lambda path: save_file(full(USED, torch.float16), path),
    "safetensors bfloat16": lambda path: save_file(full(USED, torch.bfloat16), path),
    "safetensors of an EMA": lambda path: save_file(full(ema_state(USED, ONLINE)), path),
}


def as_parameters(state: State) -> dict[str, nn.Parameter]:
    return {key: nn.Parameter(value, requires_grad=False) for key, value in state.items()}


def full(state: State, dtype: torch.dtype | None = None) -> State:
    """Returns contiguous tensors, as safetensors requires, with floating-point tensors converted to ``dtype``."""
    return {k: v.to((v.is_floating_point() and dtype) or v.dtype).contiguous() for k, v in state.items()}


def refusal(path: Path) -> str:
    """Returns the message with which ``path`` is refused, and checks that it is one line."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("form", FORMS)
def test_published_form_loads(path: Path, form: str) -> None:
    FORMS[form](path)
    assert not {"models", "ema_pytorch"} & set(sys.modules)
    loaded = load_checkpoint(path)
    path.unlink()
    assert loaded.keys() == USED.keys()
    for key, value in loaded.items():
        assert value.dtype == USED[key].dtype, key
        assert value.is_contiguous(), key
        assert torch.equal(value, USED[key]), key


def test_views_of_one_storage_load(path: Path) -> None:
    """Checks offsets and strides with a state dict that contains a slice and a transposed tensor."""
    state = dict(USED)
    shape = USED[KEY].shape
    flat = torch.arange(2.0 * shape.numel())
    state[KEY] = flat[shape.numel() :].view(shape)
    other = KEY.replace("anchor", "sigma")
    state[other] = flat[: shape.numel()].view(shape[::-1]).T
    torch.save(state, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded[KEY], state[KEY])
    assert torch.equal(loaded[other], state[other])


def test_load_network_returns_evaluation_mode(path: Path) -> None:
    torch.save(STATE, path)
    network = load_network(path)
    assert not network.training
    assert torch.equal(network.state_dict()[KEY], USED[KEY])


def test_published_size_loads_quickly(path: Path) -> None:
    torch.save(snapshot(heavy_state()), path)
    size = path.stat().st_size
    began = time.perf_counter()
    load_checkpoint(path)
    seconds = time.perf_counter() - began
    path.unlink()
    print(f"{size / 1e6:.0f} MB in {seconds:.2f} s")
    assert size > 60e6
    assert seconds < 6


# --- contents of the file


def without_key(state: State) -> State:
    return {key: value for key, value in state.items() if key != KEY}


def changed(value: torch.Tensor) -> State:
    return {**USED, KEY: value}


def broken(number: float) -> torch.Tensor:
    value = USED[KEY].clone()
    value[1, 2] = number
    return value


WRONG = {
    "missing": (without_key(USED), f"lacks 1 of {len(USED)} keys, the first is '{KEY}'"),
    "unexpected": ({**USED, "head.weight": torch.ones(1)}, "1 unexpected key, the first is 'head.weight'"),
    "unexpected, unprintable": ({**USED, "a\nb\x1b[2J": torch.ones(1)}, r"the first is 'a\nb\x1b[2J'"),
    "shape": (changed(torch.ones(3, 128)), f"'{KEY}' has shape [3, 128], MISGNet needs [4, 128]"),
    "dimensions": (changed(torch.ones(512)), f"'{KEY}' has shape [512], MISGNet needs [4, 128]"),
    "NaN": (changed(broken(float("nan"))), f"'{KEY}' holds NaN or Inf"),
    "Inf": (changed(broken(float("inf"))), f"'{KEY}' holds NaN or Inf"),
    "too large for float32": (changed(torch.full((4, 128), 1e30).double() * 1e30), f"'{KEY}' holds NaN or Inf"),
    "int": (changed(torch.ones(4, 128, dtype=torch.int64)), f"'{KEY}' holds torch.int64"),
    "int8": (changed(torch.ones(4, 128, dtype=torch.int8)), f"'{KEY}' holds torch.int8"),
    "bool": (changed(torch.ones(4, 128, dtype=torch.bool)), f"'{KEY}' holds torch.bool"),
    "another network": ({"conv.weight": torch.ones(1)}, "is not a MISGNet: it has 1 key, none is known"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_error_names_the_wrong_entry(tmp_path: Path, case: str, suffix: str) -> None:
    state, message = WRONG[case]
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(full(state), path)
    assert message in refusal(path)
    path.unlink()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "U16", "BOOL", "I8"])
def test_unsupported_types_in_safetensors_are_refused(path: Path, dtype: str) -> None:
    bits = {"F4": 4, "F6_E2M3": 6, "C64": 64, "U16": 16}.get(dtype, 8)
    write_safetensors(path, {KEY: (dtype, 4 * 128 * bits // 8)})
    message = refusal(path)
    assert KEY in message or "damaged" in message


def write_safetensors(path: Path, replaced: dict[str, tuple[str, int]]) -> None:
    """Writes a complete file in which the entries ``replaced`` have the given type and number of bytes."""
    header, data = {}, bytearray()
    for key, value in USED.items():
        floating = value.is_floating_point()
        dtype, size = replaced.get(key, ("F16" if floating else "I64", value.numel() * (2 if floating else 8)))
        offsets = [len(data), len(data) + size]
        header[key] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += bytes(size)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# --- other files


def png(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path, "PNG")


def zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "PNG": png,
    "text": lambda path: path.write_text("not a checkpoint, but quite long all the same\n"),
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(b"PK"),
    "one brace": lambda path: path.write_bytes(bytes(8) + b"{"),
    "JSON": lambda path: path.write_text('{"weights": [1, 2, 3]}'),
    "ONNX": lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.9.0:\x80\x01" + bytes(100)),
    "folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
    "zip of text": zip_of_text,
    "TorchScript": torchscript,
    "before PyTorch 1.6": lambda path: torch.save(without_key(USED), path, _use_new_zipfile_serialization=False),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "a list": lambda path: torch.save([torch.ones(3)], path),
    "a number": lambda path: torch.save(3, path),
    "an empty dict": lambda path: torch.save({}, path),
    "snapshot without a model": lambda path: torch.save({"epoch": 1, "model": None}, path),
    "empty safetensors": lambda path: save_file({}, path),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_refused(path: Path, kind: str) -> None:
    FOREIGN[kind](path)
    refusal(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(USED, path)
    else:
        write_safetensors(path, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refusal(path)
    path.unlink()


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns valid small files: a file of torch.save that loads, and a safetensors file with few tensors."""
    folder = tmp_path_factory.mktemp("small")
    torch.save(snapshot(USED), folder / "snapshot")
    save_file({KEY: torch.ones(2, 2), "a": torch.zeros(1)}, folder / "safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["snapshot", "safetensors"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_loads_or_is_refused(
    small_files: dict[str, bytes], path: Path, form: str, data: st.DataObject
) -> None:
    content = bytearray(small_files[form])
    changes = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(changes, min_size=1, max_size=4)):
        content[-1 - position] = value  # counted from the end, because a zip has its directory there
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    with suppress(InputError):
        load_checkpoint(path)


# --- writing


@pytest.mark.parametrize("half", [False, True])
def test_saved_checkpoint_loads_with_equal_weights(tmp_path: Path, half: bool) -> None:
    network = build_misgnet()
    path = tmp_path / "new" / "weights.safetensors"
    save_checkpoint(network, path, half=half, metadata={"note": "x"})
    loaded = load_checkpoint(path)
    for key, value in network.state_dict().items():
        expected = value.half().float() if half and value.is_floating_point() else value
        assert torch.equal(loaded[key], expected), key
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("halfway")

    monkeypatch.setattr("misgnet.checkpoint.save", fail)
    with pytest.raises(RuntimeError, match="halfway"):
        save_checkpoint(build_misgnet(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

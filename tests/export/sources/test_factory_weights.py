"""Tests which weights a factory's network loads, from files of all shapes, and which are refused."""

from __future__ import annotations

import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the compiler needs the [export] extra")
pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")

from safetensors.torch import save_file
from torch import Tensor, nn

from misgnet_export.sources.factory_weights import load_weights
from misgnet_runtime.errors import InputError, UsageError

State = dict[str, Any]


class Network(nn.Module):
    """Has a batch norm, a buffer of integers, a mask with infinities and two names of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(3, 4, 1)
        self.second.weight = self.first.weight
        self.register_buffer("index", torch.arange(6))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def state() -> State:
    """Returns the state dict of another network."""
    torch.manual_seed(1)
    other = Network()
    other.norm.num_batches_tracked += 5
    other.index += 1
    return dict(other.state_dict())


def nested(state: State) -> State:
    found: State = {}
    for key, value in state.items():
        group, _, name = key.rpartition(".")
        (found.setdefault(group, {}) if group else found)[name] = value
    return found


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def half(state: State, dtype: torch.dtype) -> State:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "state dict": lambda state: state,
    "parameters": lambda state: {k: nn.Parameter(v, requires_grad=v.is_floating_point()) for k, v in state.items()},
    "state_dict and more": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: torch.zeros(2)}}},
    "model": lambda state: {"model": state, "args": "text", "best": 0.5},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": torch.zeros(1)},
    "another key": lambda state: {"weights_of_mine": state, "epoch": 3},
    "nested": lambda state: {"net": nested(state)},
    "module.": lambda state: {"state_dict": prefixed(state, "module.")},
    "model.": lambda state: prefixed(state, "model."),
    "_orig_mod.": lambda state: prefixed(state, "_orig_mod."),
    "module._orig_mod.model.": lambda state: prefixed(state, "module._orig_mod.model."),
    "one name of a shared tensor": lambda state: {k: v for k, v in state.items() if k != "second.weight"},
    "no counter": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("form", FORMS)
def test_file_of_any_usual_form_is_loaded(network: Network, state: State, tmp_path: Path, form: str) -> None:
    torch.save(FORMS[form](state), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt", None)
    assert_loaded(network, state, without="num_batches" if form == "no counter" else None)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_safetensors_are_loaded(network: Network, state: State, tmp_path: Path, prefix: str) -> None:
    del state["second.weight"]  # the format has no shared tensors
    save_file(prefixed(state, prefix), tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors", None)
    assert_loaded(network, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(network: Network, state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    state = half(state, dtype)
    torch.save(state, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt", None)
    assert_loaded(network, {k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    assert network.first.weight.dtype == torch.float32


def assert_loaded(network: Network, state: State, without: str | None = None) -> None:
    found = network.state_dict()
    for key, value in state.items():
        assert torch.equal(found[key], value) or (without and without in key), key
    assert network.second.weight is network.first.weight


@pytest.mark.parametrize("key", ["ema", "runs.best", "runs"])
def test_state_key_selects_one_of_several(network: Network, state: State, tmp_path: Path, key: str) -> None:
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save(
        {"state_dict": zeros, "ema": state, "runs": {"best": state} if key == "runs.best" else state}, tmp_path / "w.pt"
    )
    load_weights(network, tmp_path / "w.pt", key)
    assert_loaded(network, state)


def test_state_key_of_safetensors_is_the_first_part_of_the_names(
    network: Network, state: State, tmp_path: Path
) -> None:
    del state["second.weight"]
    save_file({**prefixed(state, "ema."), "other": torch.zeros(1)}, tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors", "ema")
    assert_loaded(network, state)
    with pytest.raises(UsageError, match=r"--state-key is 'best', but no name in .* begins with it"):
        load_weights(network, tmp_path / "w.safetensors", "best")


def test_several_state_dicts_need_a_key(network: Network, state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "ema": dict(state)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"holds 2 state dicts; add --state-key; tensors are in 'state_dict', 'ema'"):
        load_weights(network, tmp_path / "w.pt", None)


@pytest.mark.parametrize("key", ["best", "epoch", "state_dict.x", ""])
def test_wrong_key_is_refused_with_those_of_the_file(network: Network, state: State, tmp_path: Path, key: str) -> None:
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(
        UsageError, match=r"--state-key is .*, but .* has no tensors there; tensors are in 'state_dict'"
    ):
        load_weights(network, tmp_path / "w.pt", key)


def test_all_that_does_not_fit_is_named_at_once(network: Network, state: State, tmp_path: Path) -> None:
    for key in ("norm.weight", "index", "mask", "norm.bias"):
        del state[key]
    state |= {"head.weight": torch.zeros(1), "\x1b[31m": torch.zeros(1), "first.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        load_weights(network, tmp_path / "w.pt", None)
    assert str(caught.value) == (
        f"weights {tmp_path / 'w.pt'} do not fit the network; missing: 4 of 11 keys ('index', 'mask', 'norm.weight', "
        "...); unexpected: 2 keys ('head.weight', '\\x1b[31m'); other shapes: 1 key ('first.bias' is [5], the network "
        "has [4])"
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("first.bias", torch.tensor([1.0, float("nan"), 0, 0]), "'first.bias' holds NaN or Inf"),
        ("first.bias", torch.tensor([1.0, float("inf"), 0, 0]), "'first.bias' holds NaN or Inf"),
        (
            "first.bias",
            torch.ones(4, dtype=torch.int64),
            "'first.bias' holds torch.int64, the network has torch.float32",
        ),
        ("index", torch.ones(6), "'index' holds torch.float32, the network has torch.int64"),
        ("second.weight", torch.ones(4, 3, 1, 1), "'first.weight' and 'second.weight' are one tensor in the network"),
    ],
)
def test_wrong_values_are_refused(
    network: Network, state: State, tmp_path: Path, key: str, value: Tensor, message: str
) -> None:
    torch.save(state | {key: value}, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        load_weights(network, tmp_path / "w.pt", None)
    assert message in str(caught.value)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("harmed", "w")


def test_code_in_a_pickle_does_not_run(
    network: Network, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state, "harm": Harmful()}, tmp_path / "w.pt")
    (tmp_path / "harmed").unlink(missing_ok=True)
    load_weights(network, tmp_path / "w.pt", None)
    assert_loaded(network, state)
    assert not (tmp_path / "harmed").exists()


def test_dict_that_contains_itself_and_shared_dicts_end(network: Network, state: State, tmp_path: Path) -> None:
    """Nested dicts that each hold the next one a hundred times would be 10^40 tensors, if each were visited."""
    inner: State = dict(state)
    for _ in range(20):
        inner = {f"k{i}": inner for i in range(100)}
    inner["self"] = inner
    torch.save({"state_dict": inner}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="do not fit the network"):
        load_weights(network, tmp_path / "w.pt", None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"not a checkpoint", "neither safetensors nor a file of torch.save"),
        (pickle.dumps({"a": 1}), "neither safetensors nor a file of torch.save"),
    ],
)
def test_other_files_are_refused(network: Network, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_weights(network, tmp_path / "w.pt", None)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [], 3])
def test_file_without_tensors_is_refused(network: Network, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds no tensors"):
        load_weights(network, tmp_path / "w.pt", None)


def test_truncated_file_is_refused(network: Network, state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    data = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_weights(network, tmp_path / "w.pt", None)
    assert not zipfile.is_zipfile(tmp_path / "w.pt")


def test_dict_under_many_keys_is_visited_once(network: Network, state: State, tmp_path: Path) -> None:
    many = {f"t{i}": torch.zeros(1).expand(1) for i in range(500)}
    torch.save({f"k{i}": {"own": {}, "shared": many} for i in range(5000)}, tmp_path / "w.pt")
    begin = time.process_time()
    with pytest.raises(InputError, match="do not fit the network"):
        load_weights(network, tmp_path / "w.pt", None)
    assert time.process_time() - begin < 10

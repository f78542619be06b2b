"""Tests the network in half precision: its types, and its agreement with the float network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the compiler needs the [export] extra")

from misgnet import load_network
from misgnet.synthetic import make_pair
from misgnet.tensors import normalise, unit_range
from misgnet_export.graph.half_network import Float32Island, HalfNetwork
from misgnet_export.graph.stacked_guidance import with_stacked_guidance
from support.golden import CASES
from support.paths import DEMO_WEIGHTS

FORMS: dict[str, Callable[[Any], Any]] = {"original": lambda network: network, "stacked": with_stacked_guidance}


@pytest.mark.parametrize("form", FORMS)
def test_only_the_guidance_is_float32(form: str) -> None:
    network = CASES[0].network()
    half = HalfNetwork(FORMS[form](network))
    within: dict[bool, set[Any]] = {True: set(), False: set()}
    for name, value in half.state_dict().items():
        if value.is_floating_point():
            within["MGLNet" in name].add(value.dtype)
    assert within == {True: {torch.float32}, False: {torch.float16}}
    assert sum(isinstance(module, Float32Island) for module in half.modules()) == 3
    assert {value.dtype for value in network.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_norms_are_folded_before_rounding() -> None:
    """A variance of 1e-9 is 0 in half precision."""
    network = CASES[0].network()
    norm = network.decode3.bn3
    with torch.no_grad():
        for name, value in (("weight", 1e-4), ("running_var", 1e-9)):
            getattr(norm, name).fill_(value)
    norm.eps = 0.0
    folded = HalfNetwork(network).network.decode3
    expected = network.decode3.conv3.weight * (1e-4 / 1e-9**0.5)
    assert torch.allclose(folded.conv3.weight.float(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
def test_golden_weights_agree_in_float16(case: Any, form: str) -> None:
    """Float16 on a CPU is slow, so the case of 256 px is left out."""
    network, images = case.network(), case.images()
    with torch.inference_mode():
        expected, found = network(*images), HalfNetwork(FORMS[form](network))(*images)
    assert found.dtype == torch.float32 and found.isfinite().all()
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 0.02 * scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_of_demo_tiles_agree(dtype: Any) -> None:
    network = load_network(DEMO_WEIGHTS).eval()
    pairs = [make_pair(seed, 128) for seed in range(4)]
    images = [normalise(unit_range(np.stack([getattr(pair, date) for pair in pairs]))) for date in ("before", "after")]
    half = HalfNetwork(with_stacked_guidance(network), dtype)
    with torch.inference_mode():
        expected, found = (mask(logits) for logits in (network(*images), half(*images)))
    assert 0.01 < expected.float().mean() < 0.9, "tiles without detected changes would not test anything"
    assert (expected == found).float().mean() >= 0.999


def mask(logits: Any) -> Any:
    return logits[:, 1] > logits[:, 0]

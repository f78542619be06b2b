"""Tests that the stacked guidance computes what the network's guidance computes, and leaves the network unchanged."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="export needs the [export] extra")

from misgnet_export.graph.stacked_guidance import StackedLevel, with_stacked_guidance
from support.golden import make_images, make_network

TILE = 128
SEED = 20260103  # with norm factor 4, some graph nodes of this seed receive no pixel


@pytest.mark.parametrize("norm", [1, 4])
@pytest.mark.parametrize("guidance", [1, 10])
def test_logits_of_a_batch_change_only_by_float32_rounding(guidance: float, norm: float) -> None:
    network, images = make_network(SEED, guidance, norm), make_images(SEED, 3, TILE, TILE)
    with torch.inference_mode():
        expected, found = network(*images), with_stacked_guidance(network)(*images)
    assert (found - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_each_level_agrees_with_float64(level: int) -> None:
    """Differences of single levels are not hidden by the decoder."""
    network = make_network(SEED, 10, 4)
    maps = _maps_of(network, level)
    guidance = network.get_submodule(f"MGLNet{level}")
    with torch.inference_mode():
        found = StackedLevel(guidance)(maps)
        expected = guidance.double()(maps.double())
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_nodes_without_pixels_stay_zero_vectors() -> None:
    network = make_network(SEED, norm=4)
    empty = []
    for level in range(3):
        projection = StackedLevel(network.get_submodule(f"MGLNet{level}")).mutualnet0.projection
        maps = _maps_of(network, level)
        with torch.inference_mode():
            nodes, assignment = projection(maps.reshape(2, -1, maps.shape[1], maps.shape[2] * maps.shape[3]))
        assert nodes.isfinite().all()
        # undo the transpose and the reinterpretation as C x K
        rows = nodes.transpose(2, 3).reshape(*assignment.shape[:3], -1)
        empty.append(rows[assignment.sum(3) == 0])
    assert any(len(rows) for rows in empty), "an empty node occurs"
    assert all((rows == 0).all() for rows in empty)


def test_network_and_its_keys_stay_unchanged() -> None:
    network = make_network(SEED)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    stacked = with_stacked_guidance(network)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(isinstance(module, StackedLevel) for module in network.modules())
    assert [name for name, module in stacked.named_modules() if isinstance(module, StackedLevel)] == [
        "MGLNet0", "MGLNet1", "MGLNet2",
    ]  # fmt: skip


def test_network_without_guidance_is_only_copied() -> None:
    network = torch.nn.Conv2d(3, 2, 1)
    copied = with_stacked_guidance(network)
    assert copied is not network and torch.equal(copied.weight, network.weight)


def _maps_of(network: Any, level: int) -> torch.Tensor:
    """Returns the encoder's map of one level for a batch of two pairs, float32 (4, C, h, w)."""
    with torch.inference_mode():
        maps: list[torch.Tensor] = network.backbone(torch.cat(make_images(SEED, 2, TILE, TILE)))
    return maps[level]

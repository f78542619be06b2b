"""Tests that the network computes the logits of the published network for all sizes, batches and precisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from misgnet.network import MISGNet, build_misgnet
from support.golden import CASES, COMPACT, SUBSET, Golden, make_images, make_network

UNUSED = ("backbone.patch_embed4.", "backbone.block4.", "backbone.norm4.")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def computed(request: pytest.FixtureRequest) -> tuple[Golden, np.ndarray]:
    """Returns a golden case and the logits of our network for it."""
    case: Golden = request.param
    return case, logits_of(case.network(), *case.images())


@pytest.fixture(scope="module")
def network() -> MISGNet:
    return make_network(7, guidance=10)


@pytest.fixture(scope="module")
def crowded() -> MISGNet:
    """Returns a network that assigns all pixels to the same few graph nodes, so that other nodes stay empty."""
    return make_network(11, norm=4)


@torch.inference_mode()
def logits_of(network: MISGNet, before: Tensor, after: Tensor) -> np.ndarray:
    return network(before, after).numpy()


def test_logits_equal_the_golden_subset(computed: tuple[Golden, np.ndarray]) -> None:
    case, logits = computed
    expected = np.load(COMPACT)[case.name]
    assert expected.shape == logits[SUBSET].shape
    assert np.abs(logits[SUBSET] - expected).max() < case.tolerance


def test_logits_equal_the_full_golden_arrays(computed: tuple[Golden, np.ndarray], reference: Path) -> None:
    case, logits = computed
    expected = np.load(reference / "reference" / "golden_logits.npz")[case.name]
    assert expected.shape == logits.shape
    assert np.abs(logits - expected).max() < case.tolerance


def test_golden_subset_is_cut_from_the_full_arrays(reference: Path) -> None:
    full, compact = np.load(reference / "reference" / "golden_logits.npz"), np.load(COMPACT)
    assert set(full) == set(compact)
    assert all((full[name][SUBSET] == compact[name]).all() for name in full)


def test_state_dict_equals_the_published_one_without_stage_4(reference: Path) -> None:
    published = json.loads((reference / "reference" / "state_dict_shapes.json").read_text())
    expected = {key: tuple(shape) for key, shape in published.items() if not key.startswith(UNUSED)}
    assert {key: tuple(value.shape) for key, value in build_misgnet().state_dict().items()} == expected


def test_stage_4_is_absent() -> None:
    network = build_misgnet()
    assert not [key for key in network.state_dict() if key.startswith(UNUSED)]
    assert sum(p.numel() for p in network.parameters()) == 17_674_850 - 7_822_848


@pytest.mark.parametrize(("seed", "guidance", "norm", "tolerance"), [(7, 10, 1, 1e-4), (8, 1, 4, 1e-3)])
def test_float32_agrees_with_float64(seed: int, guidance: float, norm: float, tolerance: float) -> None:
    network, images = make_network(seed, guidance, norm), make_images(seed, 1, 64, 96)
    narrow = logits_of(network, *images)
    wide = logits_of(network.double(), *(image.double() for image in images))
    assert wide.dtype == np.float64
    assert np.abs(narrow - wide).max() < tolerance


def test_empty_nodes_give_finite_logits(crowded: MISGNet) -> None:
    with FewestPixels(crowded) as fewest, torch.inference_mode():
        logits = crowded(*make_images(11, 1, 64, 64))
    assert min(fewest.totals) == 0, "no node was empty, so the test proves nothing"
    assert logits.isfinite().all()


def test_empty_nodes_give_finite_gradients(crowded: MISGNet) -> None:
    crowded(*make_images(11, 1, 64, 64)).square().mean().backward()
    gradients = [p.grad for p in crowded.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    crowded.zero_grad()


@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 100), (1, 3, 48, 64), (1, 1, 64, 64), (1, 4, 64, 64), (3, 64, 64), (1, 3, 0, 64)]
)
def test_wrong_shapes_are_refused(network: MISGNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        network(torch.zeros(shape), torch.zeros(shape))


def test_dates_of_different_size_are_refused(network: MISGNet) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        network(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 160), (96, 64), (224, 32)])
def test_logits_have_the_size_of_the_images(network: MISGNet, height: int, width: int) -> None:
    logits = logits_of(network, *make_images(1, 1, height, width))
    assert logits.shape == (1, 2, height, width)
    assert np.isfinite(logits).all()


def test_logits_of_a_pair_do_not_depend_on_its_batch(network: MISGNet) -> None:
    before, after = make_images(5, 3, 64, 64)
    together = logits_of(network, before, after)
    for index in range(3):
        alone = logits_of(network, before[index : index + 1], after[index : index + 1])
        assert np.abs(together[index] - alone[0]).max() < 1e-4
    assert np.abs(together[0] - together[1]).max() > 1e-2


@pytest.mark.parametrize("level", [0, 1, 2])
def test_guidance_creates_no_tensor_per_node_and_pixel(network: MISGNet, level: int) -> None:
    """The residual r of the formula has K x C x N numbers; with C x N, memory does not depend on K."""
    guidance = network.get_submodule(f"MGLNet{level}")
    channels = (64, 128, 320)[level]
    maps = torch.rand(4, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    with LargestTensor() as largest, torch.inference_mode():
        guidance(maps)
    assert largest.numel == maps.numel() // 2


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


class FewestPixels:
    """Records, for each projection of the network, the smallest sum of assignments of a graph node."""

    def __init__(self, network: nn.Module) -> None:
        self.totals: list[float] = []
        self._projections = [m for m in network.modules() if type(m).__name__ == "Projection"]

    def __enter__(self) -> FewestPixels:
        self._hooks = [p.register_forward_hook(self._note) for p in self._projections]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, module: nn.Module, inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.totals.append(outputs[1].sum(2).min().item())

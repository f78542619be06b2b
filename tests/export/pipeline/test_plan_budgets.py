"""Tests that the demo network's plans stay within budgets: a change that breaks a fusion of the builder fails here.

TensorRT for RTX compiles without a GPU, and its log lists the kernels that it made. A budget is the measured value plus
5 %. To renew them, run ``pytest tests/export/pipeline/test_plan_budgets.py -s``, which prints the measured values, and
copy them to MEASURED. They are of one version of TensorRT for RTX; for another, measure them again.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")

from misgnet_calibration.quantizer.recipes import RTX, TENSORRT, TENSORRT_FP16, Recipe
from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan
from misgnet_runtime.engines.tensorrt.layers import ProfileLayers
from support.demo_graphs import demo_graph

VERSION = "1.7.1"
ALLOWED = 1.05
MORE = ("sm89", "sm120")
MOST_ACTIVATIONS = 100_000_000  # bytes


class Cost(NamedTuple):
    """What one inference of a static batch of 1 consists of."""

    kernels: int
    guidance_kernels: int
    megabytes: float  # read and written
    activation_megabytes: float


MEASURED = {
    TENSORRT_FP16: Cost(212, 94, 277.8, 31.7),
    RTX: Cost(218, 94, 285.8, 32.8),
    TENSORRT: Cost(230, 94, 310.6, 32.3),  # INT8 for TensorRT proper, as TensorRT for RTX compiles it
}
RECIPES = pytest.mark.parametrize("recipe", MEASURED, ids=lambda recipe: recipe.name)

pytestmark = pytest.mark.skipif(
    not rtx.__version__.startswith(VERSION),
    reason=f"the budgets are of TensorRT for RTX {VERSION}, installed is {rtx.__version__}",
)


@pytest.fixture(scope="module")
def graphs() -> dict[Recipe, bytes]:
    return {recipe: demo_graph(recipe).SerializeToString() for recipe in MEASURED}


def compiled(graph: bytes, capability: str) -> ProfileLayers:
    options = PlanOptions(vendor="rtx", compute_capabilities=(capability,), profiles=((1, 1, 1),))
    layers = compile_plan(graph, options).layers
    assert layers.note == ""
    return layers.profiles[0]


def cost(profile: ProfileLayers) -> Cost:
    total = profile.total()
    assert total.bytes_moved is not None and profile.context_bytes is not None
    return Cost(
        total.kernels, profile.guidance().kernels, round(total.bytes_moved / 1e6, 1),
        round(profile.context_bytes / 1e6, 1),
    )  # fmt: skip


@RECIPES
@pytest.mark.parametrize("capability", ["sm86", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_plan_stays_within_its_budget(graphs: dict[Recipe, bytes], recipe: Recipe, capability: str) -> None:
    profile = compiled(graphs[recipe], capability)
    found = cost(profile)
    print(f"\n{recipe.name} {capability}: {found}")
    over = [name for name in Cost._fields if getattr(found, name) > ALLOWED * getattr(MEASURED[recipe], name)]
    assert over == [], f"{found}, allowed are 5 % more than {MEASURED[recipe]}"
    assert profile.context_bytes is not None and profile.context_bytes <= MOST_ACTIVATIONS
    assert profile.total().macs is not None, "every convolution and product has a known size"

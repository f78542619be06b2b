"""Defines each target as data: the engine that opens it, its recipe, and the required processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from misgnet_calibration.quantizer.recipes import CPU, CPU_ARM, CPU_VNNI, OPENVINO, RTX, TENSORRT, TENSORRT_FP16, Recipe
from misgnet_runtime.bundle import EngineKind
from misgnet_runtime.bundle.targets import Kind, Target


@dataclass(frozen=True)
class Board:
    """A device that a plan must be compiled on."""

    compute_capabilities: tuple[str, ...]
    platform: str


@dataclass(frozen=True, kw_only=True)
class Product:
    """The engine that a target is built into."""

    engine: EngineKind
    recipe: Recipe | None  # of its graph; None: the float graph itself
    needs: tuple[str, ...] = ()  # instruction sets of which the processor must have one, as in the manifest
    float_type: str = "float32"  # type in which a CPU engine computes the float32 operators of the graph
    board: Board | None = None  # set if the plan can be compiled only on this device
    from_program: bool = False  # Torch-TensorRT compiles the plan from the exported program, not from the graph

    @property
    def precision(self) -> str:
        """The precision as recorded in the manifest."""
        if self.recipe is None:
            return self.float_type
        return f"{self.recipe.precision}+bf16" if self.float_type == "bf16" else self.recipe.precision

    @property
    def library(self) -> str:
        """The Python package of an engine that opens the graph itself."""
        return self.engine.removesuffix("-cuda")

    @property
    def has_plan(self) -> bool:
        """Whether a plan is compiled; other engines open the graph itself."""
        return self.engine in ("rtx", "tensorrt")


_VNNI = ("avx512_vnni", "avx_vnni")  # without VNNI, x86 adds two products of 8-bit weights in 16 bits, which saturates
_BF16 = ("avx512_bf16", "amx_bf16")

_ORIN = Board(("sm87",), "linux-aarch64")
_THOR = Board(("sm110",), "linux-aarch64")  # since CUDA 13; before that, it was sm101

FLOAT = Product(engine="onnxruntime", recipe=None)  # in every bundle
# Of every kind but those that stand for two: see ``Target.variants``.
PRODUCTS: Mapping[Kind, Product] = {
    "cpu": Product(engine="onnxruntime", recipe=CPU),
    "cpu-vnni": Product(engine="onnxruntime", recipe=CPU_VNNI, needs=_VNNI),
    "cpu-arm": Product(engine="onnxruntime", recipe=CPU_ARM, needs=("aarch64",)),
    "cuda": Product(engine="onnxruntime-cuda", recipe=None),
    "openvino": Product(engine="openvino", recipe=OPENVINO),
    "openvino-bf16": Product(engine="openvino", recipe=None, needs=_BF16, float_type="bf16"),
    "openvino-int8-bf16": Product(engine="openvino", recipe=OPENVINO, needs=_BF16, float_type="bf16"),
    "rtx-int8": Product(engine="rtx", recipe=RTX),
    "rtx-fp16": Product(engine="rtx", recipe=TENSORRT_FP16),
    "tensorrt-int8": Product(engine="tensorrt", recipe=TENSORRT),
    "tensorrt-fp16": Product(engine="tensorrt", recipe=TENSORRT_FP16),
    "torch-tensorrt": Product(engine="tensorrt", recipe=TENSORRT_FP16, from_program=True),
    "jetson-orin-int8": Product(engine="tensorrt", recipe=TENSORRT, board=_ORIN),
    "jetson-orin-fp16": Product(engine="tensorrt", recipe=TENSORRT_FP16, board=_ORIN),
    "jetson-thor-int8": Product(engine="tensorrt", recipe=TENSORRT, board=_THOR),
    "jetson-thor-fp16": Product(engine="tensorrt", recipe=TENSORRT_FP16, board=_THOR),
}


def product_of(target: Target) -> Product:
    return PRODUCTS[target.kind]


def recipes_of(targets: Iterable[Target]) -> list[Recipe]:
    """Returns the recipes of the graphs that ``targets`` need, each once."""
    found = [product_of(target).recipe for target in targets]
    return list(dict.fromkeys(recipe for recipe in found if recipe is not None))

"""What each target is made of, as data: the engine that opens it, its recipe, and the processor it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from misgnet_calibration.quantizer.recipes import CPU, CPU_ARM, CPU_VNNI, OPENVINO, TENSORRT, TENSORRT_FP16, Recipe
from misgnet_runtime.bundle import EngineKind
from misgnet_runtime.bundle.targets import Kind, Target


@dataclass(frozen=True)
class Board:
    """What a plan is compiled on, by itself."""

    compute_capabilities: tuple[str, ...]
    platform: str


@dataclass(frozen=True, kw_only=True)
class Product:
    """``recipe``: of its graph; None is the float graph itself. ``float_type``: what an engine for the CPU computes in
    where its graph is float32.

    ``needs``: one of these is what the processor must have, as in the manifest's engine entry. ``board``: of a plan
    that can only be compiled there. ``from_program``: its plan is compiled by Torch-TensorRT from the exported program.
    """

    engine: EngineKind
    recipe: Recipe | None
    needs: tuple[str, ...] = ()
    float_type: str = "float32"
    board: Board | None = None
    from_program: bool = False

    @property
    def precision(self) -> str:
        """As the manifest says it."""
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


_VNNI = ("avx512_vnni", "avx_vnni")  # without it x86 adds two products with 8-bit weights in 16 bits: they saturate
_BF16 = ("avx512_bf16", "amx_bf16")

_ORIN = Board(("sm87",), "linux-aarch64")
_THOR = Board(("sm110",), "linux-aarch64")  # since CUDA 13; before, it was sm101

FLOAT = Product(engine="onnxruntime", recipe=None)  # in every bundle
PRODUCTS: Mapping[Kind, Product] = {
    "cpu": Product(engine="onnxruntime", recipe=CPU),
    "cpu-vnni": Product(engine="onnxruntime", recipe=CPU_VNNI, needs=_VNNI),
    "cpu-arm": Product(engine="onnxruntime", recipe=CPU_ARM, needs=("aarch64",)),
    "cuda": Product(engine="onnxruntime-cuda", recipe=None),
    "openvino": Product(engine="openvino", recipe=OPENVINO),
    "openvino-bf16": Product(engine="openvino", recipe=None, needs=_BF16, float_type="bf16"),
    "openvino-int8-bf16": Product(engine="openvino", recipe=OPENVINO, needs=_BF16, float_type="bf16"),
    "rtx": Product(engine="rtx", recipe=TENSORRT),
    "rtx-fp16": Product(engine="rtx", recipe=TENSORRT_FP16),
    "tensorrt": Product(engine="tensorrt", recipe=TENSORRT),
    "tensorrt-fp16": Product(engine="tensorrt", recipe=TENSORRT_FP16),
    "torch-tensorrt": Product(engine="tensorrt", recipe=None, from_program=True),
    "jetson-orin": Product(engine="tensorrt", recipe=TENSORRT, board=_ORIN),
    "jetson-orin-fp16": Product(engine="tensorrt", recipe=TENSORRT_FP16, board=_ORIN),
    "jetson-thor": Product(engine="tensorrt", recipe=TENSORRT, board=_THOR),
    "jetson-thor-fp16": Product(engine="tensorrt", recipe=TENSORRT_FP16, board=_THOR),
}


def product_of(target: Target) -> Product:
    return PRODUCTS[target.kind]


def recipes_of(targets: Iterable[Target]) -> list[Recipe]:
    """The recipes of the graphs that ``targets`` need, each once."""
    found = [product_of(target).recipe for target in targets]
    return list(dict.fromkeys(recipe for recipe in found if recipe is not None))

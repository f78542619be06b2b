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


@dataclass(frozen=True)
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

FLOAT = Product("onnxruntime", None)  # in every bundle
PRODUCTS: Mapping[Kind, Product] = {
    "cpu": Product("onnxruntime", CPU),
    "cpu-vnni": Product("onnxruntime", CPU_VNNI, _VNNI),
    "cpu-arm": Product("onnxruntime", CPU_ARM, ("aarch64",)),
    "cuda": Product("onnxruntime-cuda", None),
    "openvino": Product("openvino", OPENVINO),
    "openvino-bf16": Product("openvino", None, _BF16, "bf16"),
    "openvino-int8-bf16": Product("openvino", OPENVINO, _BF16, "bf16"),
    "rtx": Product("rtx", TENSORRT),
    "rtx-fp16": Product("rtx", TENSORRT_FP16),
    "tensorrt": Product("tensorrt", TENSORRT),
    "tensorrt-fp16": Product("tensorrt", TENSORRT_FP16),
    "torch-tensorrt": Product("tensorrt", None, from_program=True),
    "jetson-orin": Product("tensorrt", TENSORRT, board=_ORIN),
    "jetson-orin-fp16": Product("tensorrt", TENSORRT_FP16, board=_ORIN),
    "jetson-thor": Product("tensorrt", TENSORRT, board=_THOR),
    "jetson-thor-fp16": Product("tensorrt", TENSORRT_FP16, board=_THOR),
}


def product_of(target: Target) -> Product:
    return PRODUCTS[target.kind]


def recipes_of(targets: Iterable[Target]) -> list[Recipe]:
    """The recipes of the graphs that ``targets`` need, each once."""
    found = [product_of(target).recipe for target in targets]
    return list(dict.fromkeys(recipe for recipe in found if recipe is not None))

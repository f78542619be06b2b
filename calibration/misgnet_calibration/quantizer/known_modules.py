"""Defines what is known of a network: by the names of its modules, and from measurements of its INT8 graphs.

Of a network that is not known, nothing may be concluded from its names: a stranger's ``backbone`` is another encoder.
So the source of the model hands in what it knows, and the default is to know nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.rules import INT8_DEPTHWISE, Rule

# How accuracy control groups operators: by the modules of MISGNet at one of four depths, or by shares of the MACs.
Depth = Literal["stage", "block", "module", "operator", "balanced"]


@dataclass(frozen=True, kw_only=True)
class KnownModules:
    """What is known of a network's modules. The default is nothing."""

    # Patterns of ``fnmatch`` for an operator's module or name that must not compute in float16, with the reason.
    float32_scopes: Mapping[str, str] = field(default_factory=dict)
    # By a recipe's name, rules that apply before the recipe's own.
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    groups: Depth = "balanced"
    # Share of pixels whose mask usually differs in INT8; None: not known, so it is estimated from the float graph.
    usual_differing: float | None = None

    def applied_to(self, recipe: Recipe) -> Recipe:
        """Returns ``recipe`` with the rules for this network."""
        return replace(recipe, rules=(*self.rules.get(recipe.name, ()), *recipe.rules))

    def keeping_float32(self, patterns: Iterable[str], reason: str) -> KnownModules:
        """Returns these modules with further patterns that must not compute in float16."""
        return replace(self, float32_scopes={**self.float32_scopes, **dict.fromkeys(patterns, reason)})


UNKNOWN = KnownModules()

_COUNTED = "kernels and bytes that TensorRT-RTX 1.7.1 lists for SM86 and one pair; FP16 has 212 kernels, 278 MB"
# TensorRT converts between INT8 and FP16 in kernels of its own unless INT8 operators follow each other.
_ATTENTION = Rule(
    name="linear layer of attention", decision="float",
    why="FP16 adds the bias in the same kernel and feeds one fused kernel of attention; the INT8 weight of keys and "
    "values is dequantized at every inference", source=_COUNTED,
    operators=("MatMul",), weighted=True, within=("backbone.*.attn.*",),
)  # fmt: skip
_WIDE_MLP = Rule(
    name="wide MLP", decision="float",
    why="maps of eight times the channels, which INT8 kernels write in FP32: twelve such layers in INT8 move 449 MB",
    source=_COUNTED, operators=("Conv", "MatMul"), weighted=True, within=("backbone.block[12].*.mlp.fc[12]",),
)  # fmt: skip
# The INT8 convolutions of TensorRT for RTX write FP32, whether their output is quantized or not.
_ENCODER = Rule(
    name="encoder", decision="float",
    why="INT8 saves less time than its FP32 outputs cost: reduction convolutions have 4 % of the MACs and move 10 MB "
    "more, patch embeddings 6 % and 3 MB, the last MLPs 14 % and 15 MB; the decoder has 27 % and moves 8 MB more",
    source=_COUNTED, within=("backbone.*",),
)  # fmt: skip

MISGNET = KnownModules(
    # Exponents in the thousands, and sums as small as 1e-20 that still determine a direction.
    float32_scopes={"MGLNet*": "guidance: its exponents exceed half precision"},
    rules={
        **dict.fromkeys(("cpu", "cpu-vnni", "cpu-arm"), (INT8_DEPTHWISE,)),
        "tensorrt": (_ATTENTION, _WIDE_MLP),
        "rtx": (_ENCODER, _ATTENTION, _WIDE_MLP),
    },
    groups="module",
    usual_differing=0.0007,  # 0.0005 to 0.0007 before and 0.0004 to 0.0006 after bias correction
)

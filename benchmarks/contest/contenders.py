"""Who takes part, as data: what makes each graph, with which settings and why, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Engine:
    """What runs a graph. ``precision``: of what is not INT8; "" leaves it to the engine."""

    name: str
    environment: str
    script: str
    precision: str = ""


ONNX_RUNTIME = Engine("ONNX Runtime", "onnxruntime", "run_onnxruntime.py")
OPENVINO = Engine("OpenVINO", "openvino", "run_openvino.py", "f32")
# What a user of OpenVINO gets who asks for nothing: BF16 where the processor has it.
OPENVINO_OWN = Engine("OpenVINO", "openvino", "run_openvino.py")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Where an INT8 graph comes from. ``note`` says every setting that is not the default, with its reason."""

    key: str
    title: str
    environment: str
    script: str
    suffix: str
    engines: tuple[Engine, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""


PEERS = (
    Contender(
        key="quantize_static", title="`quantize_static`, default", environment="onnxruntime",
        script="quantize_onnxruntime.py", suffix=".onnx", engines=(ONNX_RUNTIME,),
    ),
    Contender(
        key="modelopt", title="Model-Optimizer, default", environment="modelopt", script="quantize_modelopt.py",
        suffix=".onnx", engines=(ONNX_RUNTIME,),
        note="what is not INT8 is FP16 by its default, for which ONNX Runtime has no fast CPU kernels",
    ),
    Contender(
        key="modelopt-fp32", title="Model-Optimizer, FP32 remainder", environment="modelopt",
        script="quantize_modelopt.py", suffix=".onnx", engines=(ONNX_RUNTIME,),
        settings={"high_precision_dtype": "fp32"},
        note="not its default: with high_precision_dtype fp32 for a fairer speed on a CPU",
    ),
    Contender(
        key="nncf", title="NNCF, default", environment="openvino", script="quantize_nncf.py", suffix=".xml",
        engines=(OPENVINO, OPENVINO_OWN),
    ),
    Contender(
        key="nncf-transformer", title="NNCF, transformer preset", environment="openvino", script="quantize_nncf.py",
        suffix=".xml", engines=(OPENVINO, OPENVINO_OWN), settings={"model_type": "TRANSFORMER"},
    ),
)  # fmt: skip
GIVEN_ENGINES = (ONNX_RUNTIME, OPENVINO, OPENVINO_OWN)  # of the float graph and of this project's
FLOAT, OURS = "float32", "this project"

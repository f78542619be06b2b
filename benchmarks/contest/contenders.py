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


@dataclass(frozen=True)
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
        "quantize_static", "`quantize_static`, default", "onnxruntime", "quantize_onnxruntime.py", ".onnx",
        (ONNX_RUNTIME,),
    ),
    Contender(
        "modelopt", "Model-Optimizer, default", "modelopt", "quantize_modelopt.py", ".onnx", (ONNX_RUNTIME,),
        note="what is not INT8 is FP16 by its default, for which ONNX Runtime has no fast CPU kernels",
    ),
    Contender(
        "modelopt-fp32", "Model-Optimizer, FP32 remainder", "modelopt", "quantize_modelopt.py", ".onnx",
        (ONNX_RUNTIME,), {"high_precision_dtype": "fp32"},
        note="not its default: with high_precision_dtype fp32 for a fairer speed on a CPU",
    ),
    Contender(
        "nncf", "NNCF, default", "openvino", "quantize_nncf.py", ".xml", (OPENVINO, OPENVINO_OWN),
    ),
    Contender(
        "nncf-transformer", "NNCF, transformer preset", "openvino", "quantize_nncf.py", ".xml",
        (OPENVINO, OPENVINO_OWN), {"model_type": "TRANSFORMER"},
    ),
)  # fmt: skip
GIVEN_ENGINES = (ONNX_RUNTIME, OPENVINO, OPENVINO_OWN)  # of the float graph and of this project's
FLOAT, OURS = "float32", "this project"

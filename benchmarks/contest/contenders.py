"""Defines the contenders as data: the tool that makes each graph, its settings, and the engines that run it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Engine:
    """An engine that runs a graph."""

    name: str
    environment: str
    script: str
    # Precision of operators that are not INT8; "" leaves the choice to the engine.
    precision: str = ""


ONNX_RUNTIME = Engine("ONNX Runtime", "onnxruntime", "run_onnxruntime.py")
OPENVINO = Engine("OpenVINO", "openvino", "run_openvino.py", "f32")
# OpenVINO's default precision: BF16 if the processor supports it.
OPENVINO_OWN = Engine("OpenVINO", "openvino", "run_openvino.py")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A tool that makes an INT8 graph."""

    key: str
    title: str
    environment: str
    script: str
    suffix: str
    engines: tuple[Engine, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    # States every setting that is not the default, and why.
    note: str = ""


PEERS = (
    Contender(
        key="quantize_static", title="`quantize_static`, default", environment="onnxruntime",
        script="quantize_onnxruntime.py", suffix=".onnx", engines=(ONNX_RUNTIME,),
    ),
    Contender(
        key="modelopt", title="Model-Optimizer, default", environment="modelopt", script="quantize_modelopt.py",
        suffix=".onnx", engines=(ONNX_RUNTIME,),
        note="by default, operators that are not INT8 are FP16, for which ONNX Runtime has no fast CPU kernels",
    ),
    Contender(
        key="modelopt-fp32", title="Model-Optimizer, FP32 remainder", environment="modelopt",
        script="quantize_modelopt.py", suffix=".onnx", engines=(ONNX_RUNTIME,),
        settings={"high_precision_dtype": "fp32"},
        note="not the default: high_precision_dtype is fp32, for a fairer speed on a CPU",
    ),
    Contender(
        key="nncf", title="NNCF, default", environment="openvino", script="quantize_nncf.py", suffix=".xml",
        engines=(OPENVINO, OPENVINO_OWN),
    ),
    Contender(
        key="nncf-transformer", title="NNCF, transformer preset", environment="openvino", script="quantize_nncf.py",
        suffix=".xml", engines=(OPENVINO, OPENVINO_OWN), settings={"model_type": "TRANSFORMER"},
    ),
    Contender(
        key="nncf-guide", title="NNCF, mixed preset, attention and guidance ignored", environment="openvino",
        script="quantize_nncf.py", suffix=".xml", engines=(OPENVINO, OPENVINO_OWN),
        settings={"preset": "MIXED", "ignored": ["MGLNet.*", r".*\.attn/MatMul.*"], "fixed_batch": True},
        note="not the default, but what its guide advises where accuracy is lost: asymmetric activations, and an "
        "ignored_scope with the guidance and the attention's products of two activations; the batch is fixed to 1",
    ),
)  # fmt: skip
GIVEN_ENGINES = (ONNX_RUNTIME, OPENVINO, OPENVINO_OWN)  # for the float graph and this project's INT8 graph
FLOAT, OURS = "float32", "this project"

"""Compiles ONNX graphs to plans of TensorRT or TensorRT for RTX, checks plan compatibility, and runs plans."""

from misgnet_runtime.engines.tensorrt.bindings import load_vendor, parse_version, vendor_version
from misgnet_runtime.engines.tensorrt.compatibility import (
    MachineCompatibility,
    PlanCompatibility,
    check_plan_fits,
    this_platform,
)
from misgnet_runtime.engines.tensorrt.compiler import check_options, compile_plan
from misgnet_runtime.engines.tensorrt.engine import open_plan
from misgnet_runtime.engines.tensorrt.layers import PlanLayers
from misgnet_runtime.engines.tensorrt.logger import one_line
from misgnet_runtime.engines.tensorrt.plan import Plan, PlanOptions, dynamic_profile

__all__ = [
    "MachineCompatibility", "Plan", "PlanCompatibility", "PlanLayers", "PlanOptions", "check_options",
    "check_plan_fits", "compile_plan", "dynamic_profile", "load_vendor", "one_line", "open_plan", "parse_version",
    "this_platform", "vendor_version",
]  # fmt: skip

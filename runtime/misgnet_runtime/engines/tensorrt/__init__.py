"""TensorRT plans: how a graph becomes a plan, and whether a plan fits a machine."""

from misgnet_runtime.engines.tensorrt.bindings import load_vendor
from misgnet_runtime.engines.tensorrt.compatibility import MachineCompatibility, PlanCompatibility, check_plan_fits
from misgnet_runtime.engines.tensorrt.compiler import check_options, compile_plan
from misgnet_runtime.engines.tensorrt.plan import Plan, PlanOptions

__all__ = [
    "MachineCompatibility",
    "Plan",
    "PlanCompatibility",
    "PlanOptions",
    "check_options",
    "check_plan_fits",
    "compile_plan",
    "load_vendor",
]

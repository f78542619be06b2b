"""TensorRT plans: how a graph becomes a plan, and whether a plan fits a machine."""

from misgnet_runtime.plans.compile import check_options, compile_plan
from misgnet_runtime.plans.facts import MachineFacts, PlanFacts, check_plan_fits
from misgnet_runtime.plans.plan import Plan, PlanOptions
from misgnet_runtime.plans.vendor import load_vendor

__all__ = [
    "MachineFacts",
    "Plan",
    "PlanFacts",
    "PlanOptions",
    "check_options",
    "check_plan_fits",
    "compile_plan",
    "load_vendor",
]

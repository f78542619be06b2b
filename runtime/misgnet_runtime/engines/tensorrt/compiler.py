"""Compiles an ONNX graph to a plan of TensorRT or TensorRT for RTX.

Networks are strongly typed: the graph's Q/DQ nodes and float types decide every precision. This is the only mode that
behaves equally in TensorRT 10.3 to 11.x and in TensorRT for RTX.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

from misgnet_runtime.bundle.targets import sorted_capabilities
from misgnet_runtime.engines.cuda import CudaDriver, first_device, open_driver
from misgnet_runtime.engines.tensorrt.bindings import known_capabilities, load_vendor, rules, vendor_version
from misgnet_runtime.engines.tensorrt.builder import Build
from misgnet_runtime.engines.tensorrt.compatibility import PlanCompatibility, this_platform
from misgnet_runtime.engines.tensorrt.layer_list import layers_of_inspector, layers_of_log
from misgnet_runtime.engines.tensorrt.layers import PlanLayers, described
from misgnet_runtime.engines.tensorrt.logger import counted
from misgnet_runtime.engines.tensorrt.plan import Plan, PlanOptions
from misgnet_runtime.engines.tensorrt.progress import Progress, Share
from misgnet_runtime.engines.tensorrt.timing_cache import CacheFile, PlainFile
from misgnet_runtime.errors import UnavailableError, UsageError


def compile_plan(
    onnx_model: bytes,
    options: PlanOptions,
    *,
    timing_cache: Path | CacheFile | None = None,
    progress: Progress | None = None,
    share: Share | None = None,
    driver: CudaDriver | None = None,
) -> Plan:
    """Compiles a graph whose inputs have a dynamic first axis, the batch, and no other dynamic axis.

    An exception raised by ``progress`` or ``share``, or Ctrl-C, stops the build at its next step and is raised here.

    Args:
        onnx_model: The graph.
        options: Vendor, compute capabilities, batches and limits.
        timing_cache: Read if it exists and written afterwards; its failures become notes of the plan.
        progress: Called with (phase, steps done, steps in total); phases nest, and TensorRT names them.
        share: Called with the fraction of the build that is done, 0 to 1.
        driver: CUDA (default: opened here).

    Raises:
        UnavailableError: TensorRT, or a GPU that is needed, is missing.
        UsageError: TensorRT does not know a compute capability.
        InputError: The parser rejects the graph.
        MisgnetError: TensorRT fails to build the plan.
    """
    module = load_vendor(options.vendor)
    capabilities = check_options(options, driver)
    started = time.perf_counter()
    build = Build(module, options)
    build.parse(onnx_model)
    build.configure()
    cache = PlainFile(timing_cache) if isinstance(timing_cache, Path) else timing_cache
    data = build.run(cache, progress, share)
    kinds, warnings = build.layer_kinds(), counted(build.log.warnings)
    layers = _layers(build, options, data)
    compatibility = PlanCompatibility(
        vendor=options.vendor, vendor_version=vendor_version(module), compute_capabilities=capabilities,
        platform=this_platform(), plan_bytes=len(data),
        cuda_driver="" if options.compute_capabilities else (driver or open_driver()).version(),
    )  # fmt: skip
    return Plan(
        data=data, compatibility=compatibility, seconds=time.perf_counter() - started, network_layers=kinds.total(),
        quantize_layers=kinds["QUANTIZE"], dequantize_layers=kinds["DEQUANTIZE"],
        layers=layers, profiles=described(options.profiles, layers), warnings=warnings, notes=tuple(build.notes),
    )  # fmt: skip


def _layers(build: Build, options: PlanOptions, data: bytes) -> PlanLayers:
    """Returns the kernels that the log lists, or else, if the plan is for this machine's GPU, the engine inspector."""
    profiles = len(options.profiles)
    found = layers_of_log(build.log.layers, build.log.activation_bytes, profiles)
    if found.profiles or options.compute_capabilities:
        return found
    return layers_of_inspector(build.inspect(data), build.log.activation_bytes, profiles)


def check_options(options: PlanOptions, driver: CudaDriver | None = None) -> tuple[str, ...]:
    """Returns the compute capabilities of the plan: the requested ones, or that of this machine's GPU.

    Checks them before any work; raises UnavailableError and UsageError as :func:`compile_plan` does.
    """
    module = load_vendor(options.vendor)
    if options.compute_capabilities:
        return _requested_capabilities(module, options)
    return (_own_capability(module, options, driver),)


def _requested_capabilities(module: ModuleType, options: PlanOptions) -> tuple[str, ...]:
    known = known_capabilities(module)
    requested = sorted_capabilities(options.compute_capabilities)
    unknown = [name for name in requested if name not in known]
    if unknown:
        raise UsageError(
            f"{rules(options.vendor).title} {vendor_version(module)} does not compile for "
            f"{', '.join(unknown)}; it supports {', '.join(known) or 'no selection'}"
        )
    return requested


def _own_capability(module: ModuleType, options: PlanOptions, driver: CudaDriver | None) -> str:
    title = rules(options.vendor).title
    try:
        device = first_device(driver or open_driver())
    except UnavailableError as error:
        hint = "; or specify compute capabilities, as in --target rtx-sm86" if options.vendor == "rtx" else ""
        raise UnavailableError(f"{title} must compile for this machine's GPU, but {error}{hint}") from error
    known = known_capabilities(module)
    if options.vendor == "rtx" and device.compute_capability not in known:
        raise UnavailableError(
            f"{title} {vendor_version(module)} does not compile for {device.name} "
            f"({device.compute_capability}); it supports {', '.join(known)}"
        )
    return device.compute_capability

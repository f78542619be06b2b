"""Builds one plan with the vendor's objects: parser, profile, timing cache, progress, serialisation."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

from misgnet_runtime.bundle.targets import sorted_capabilities
from misgnet_runtime.engines.tensorrt.bindings import (
    DETAILED,
    PROGRESS,
    TF32,
    has,
    network_flags,
    rules,
    vendor_version,
)
from misgnet_runtime.engines.tensorrt.logger import VendorLog, make_logger, one_line
from misgnet_runtime.engines.tensorrt.plan import PlanOptions
from misgnet_runtime.engines.tensorrt.progress import Cancellation, Progress, Share, deferred_interrupt, make_monitor
from misgnet_runtime.engines.tensorrt.timing_cache import CacheFile, load_timing_cache, save_timing_cache
from misgnet_runtime.errors import InputError, MisgnetError, UsageError

# Runs of a kernel that TensorRT averages before it compares it with others, as many as NVIDIA's trtexec takes. With its
# own default of 1, the clock and other programs choose among kernels that differ by a few percent.
_TIMINGS = 8


class Build:
    """One build. It owns the vendor's objects, which refer to each other and must be freed together."""

    def __init__(self, module: Any, options: PlanOptions) -> None:
        self.log = VendorLog()
        self.notes: list[str] = []
        self._module = module
        self._options = options
        self._logger = make_logger(module, self.log)
        # TensorRT logs while it holds a lock in Builder(), and the lock is needed to free another builder. One that is
        # left in a reference cycle, as by a failed build's traceback, must not be freed by the logger's allocations.
        gc.collect()
        self._builder = module.Builder(self._logger)
        self._network = self._builder.create_network(network_flags(module, options.vendor))
        self._parser = module.OnnxParser(self._network, self._logger)  # it owns the weights
        self._config = self._builder.create_builder_config()

    def parse(self, onnx_model: bytes) -> None:
        if not self._parser.parse(onnx_model):
            errors = (self._parser.get_error(index) for index in range(self._parser.num_errors))
            reasons = " | ".join(dict.fromkeys(map(_parser_error, errors))) or self.log.last_errors()
            title = rules(self._options.vendor).title
            raise InputError(f"{title} {vendor_version(self._module)} rejects the graph: {reasons}")
        if self._network.num_outputs == 0:  # the parser accepts an empty file
            raise InputError(f"the graph of {len(onnx_model)} bytes has no output; it is not a complete ONNX file")

    def configure(self) -> None:
        options, config = self._options, self._config
        if has(self._module, TF32):  # on by default; it rounds the inputs of float32 products to 10 bits
            config.clear_flag(self._module.BuilderFlag.TF32)
        if options.vendor == "tensorrt":  # TensorRT for RTX does not time kernels
            config.avg_timing_iterations = _TIMINGS
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(self._module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.builder_bytes is not None:
            # On a board with shared memory the default is three quarters of the total memory, free or not.
            power = 1 << options.builder_bytes.bit_length() - 1  # TensorRT accepts only powers of 2
            config.set_memory_pool_limit(self._module.MemoryPoolType.TACTIC_DRAM, power)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if has(self._module, DETAILED):  # without it, the log and the engine inspector list names of layers only
            config.profiling_verbosity = self._module.ProfilingVerbosity.DETAILED
        if options.vendor == "rtx":
            self._set_capabilities()
        for batches in options.profiles:
            self._add_profile(batches)

    def _set_capabilities(self) -> None:
        names = sorted_capabilities(self._options.compute_capabilities) or ("current",)
        self._config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            capability = getattr(self._module.ComputeCapability, name.upper())
            if not self._config.set_compute_capability(capability, index):
                raise UsageError(f"TensorRT for RTX rejects {', '.join(names)}: {self.log.last_errors()}")

    def _add_profile(self, batches: tuple[int, int, int]) -> None:
        profile = self._builder.create_optimization_profile()
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            rest = _static_axes(tensor.name, tuple(tensor.shape))
            profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
        if self._config.add_optimization_profile(profile) < 0:
            raise MisgnetError(f"the optimization profile was rejected: {self.log.last_errors()}")

    def run(self, timing_cache: CacheFile | None, progress: Progress | None, share: Share | None) -> bytes:
        """Returns the serialised engine.

        Raises what ``progress`` or ``share`` raised, or MisgnetError with TensorRT's reason.
        """
        cancellation = Cancellation()
        if has(self._module, PROGRESS):
            self._config.progress_monitor = make_monitor(self._module, progress, cancellation, share)
        cached = timing_cache is not None and self._take_timing_cache(timing_cache)
        with deferred_interrupt(cancellation):
            serialized = self._builder.build_serialized_network(self._network, self._config)
        cancellation.raise_if_any()
        if serialized is None:
            raise MisgnetError(f"{rules(self._options.vendor).title} failed to build a plan: {self.log.last_errors()}")
        if cached and timing_cache is not None:
            self._note(save_timing_cache(self._config, timing_cache))
        return bytes(serialized)

    def _take_timing_cache(self, file: CacheFile) -> bool:
        if not rules(self._options.vendor).keeps_timing_cache:
            self._note("timing cache unused: TensorRT for RTX does not support one")
            return False
        self._note(load_timing_cache(self._config, file, self.log))
        return True

    def _note(self, note: str | None) -> None:
        if note is not None:
            self.notes.append(note)

    def inspect(self, data: bytes) -> str:
        """Opens a plan that was built for this machine's GPU, and returns its layers as JSON; empty if that failed."""
        engine = self._module.Runtime(self._logger).deserialize_cuda_engine(data)
        if engine is None:
            return ""
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._module.LayerInformationFormat.JSON))

    def layer_kinds(self) -> Counter[str]:
        layers = (self._network.get_layer(index) for index in range(self._network.num_layers))
        return Counter(layer.type.name for layer in layers)


def _static_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or shape[0] != -1 or -1 in shape[1:]:
        raise InputError(
            f"graph input '{name}' has shape {shape}; only its first axis, the batch, must be dynamic (-1)"
        )
    return shape[1:]


def _parser_error(error: Any) -> str:
    """Formats a parser error as one line (operator, node, reason), without messages about a missing driver."""
    reason = "\n".join(line for line in error.desc().splitlines() if "cudaError" not in line)
    node = f"{error.node_operator()} '{error.node_name()}'" if error.node_name() else error.node_operator()
    return one_line(": ".join(part for part in (node, reason) if part) or "it is not an ONNX model")

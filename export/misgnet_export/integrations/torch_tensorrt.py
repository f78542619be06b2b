"""Converts the exported program to a TensorRT plan with Torch-TensorRT's dynamo path. The plan runs without torch."""

from __future__ import annotations

import importlib
import logging
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misgnet_export.graph.quiet import quiet
from misgnet_runtime.bundle import Interface
from misgnet_runtime.engines.cuda import open_driver
from misgnet_runtime.engines.tensorrt import (
    PlanOptions,
    check_options,
    load_vendor,
    one_line,
    parse_version,
    this_platform,
    vendor_version,
)
from misgnet_runtime.errors import UnavailableError

if TYPE_CHECKING:
    from misgnet.network import MISGNet

OLDEST = (2, 14)  # the first version whose plans keep the requested tensor names
DEVICE = "cuda:0"
_ANYWHERE = "use --target tensorrt --on-device to compile the plan later on the GPU that runs it"


@dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """A serialised engine, its compatibility information, and the number of operators of the exported program."""

    data: bytes = field(repr=False)
    operators: int
    converter_version: str
    vendor_version: str
    compute_capability: str
    platform: str
    cuda_driver: str


def load_torch_tensorrt() -> Any:
    """Imports ``torch_tensorrt``. Raises UnavailableError if it is missing, too old or built for TensorRT for RTX."""
    install = "install it with: pip install 'misgnet-export[torch-tensorrt]'"
    try:
        with redirect_stdout(StringIO()):  # it also prints the errors that it raises
            module = importlib.import_module("torch_tensorrt")
    except Exception as error:  # raised as plain Exception if TensorRT is missing
        found = f"importing torch_tensorrt failed: {one_line(str(error))}"
        raise UnavailableError(f"target torch-tensorrt: {found}; {install}; or {_ANYWHERE}") from error
    if parse_version(module.__version__) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UnavailableError(f"Torch-TensorRT {oldest} or newer required, found {module.__version__}; {install}")
    if module.ENABLED_FEATURES.tensorrt_rtx:
        raise UnavailableError(
            f"this Torch-TensorRT is built for TensorRT for RTX; {install}; or use --target rtx-smNN"
        )
    return module


def check_torch_tensorrt(options: PlanOptions) -> str:
    """Returns the compute capability of the plan. Raises UnavailableError if this machine cannot compile one."""
    import torch

    load_torch_tensorrt()
    if not torch.cuda.is_available():
        raise UnavailableError(
            f"Torch-TensorRT compiles on the GPU that runs the plan, but torch {torch.__version__} finds no CUDA here; "
            f"check the output of nvidia-smi and that torch is not a CPU-only build; or {_ANYWHERE}"
        )
    (capability,) = check_options(options)
    return capability


def compile_program(
    network: MISGNet, interface: Interface, options: PlanOptions, timing_cache: Path | None = None
) -> ProgramPlan:
    """Exports ``network`` on the GPU in float16, with its guidance in float32, and converts all of it to a plan.

    The plan has a dynamic batch and the types of the program: float32 operators do not use TF32.

    Raises:
        UnavailableError: The library or a GPU is missing, or the conversion failed; the message names the operator.
    """
    from misgnet_export.graph.export import export_program

    capability = check_torch_tensorrt(options)
    module = load_torch_tensorrt()
    program = export_program(network, interface, DEVICE, half=True)
    # Its log prints errors with full tracebacks, and its warnings concern its own deprecated calls.
    with tempfile.TemporaryDirectory() as folder, quiet("torch_tensorrt", logging.CRITICAL):
        settings = conversion_settings(module, interface, options, timing_cache or Path(folder) / "timings")
        try:
            data = module.dynamo.convert_exported_program_to_serialized_trt_engine(program, **settings)
        except Exception as error:  # its own types, torch's, and TensorRT's
            raise UnavailableError(
                f"Torch-TensorRT {module.__version__} cannot convert the network: {_first_cause(error)}; use "
                "--target tensorrt, which converts the ONNX graph"
            ) from error
    return ProgramPlan(
        data=bytes(data), operators=sum(node.op == "call_function" for node in program.graph.nodes),
        converter_version=module.__version__, vendor_version=vendor_version(load_vendor("tensorrt")),
        compute_capability=capability, platform=this_platform(), cuda_driver=open_driver().version(),
    )  # fmt: skip


def conversion_settings(module: Any, interface: Interface, options: PlanOptions, timings: Path) -> dict[str, Any]:
    """Returns the arguments for Torch-TensorRT: nothing falls back to torch, tensors are named as in ``interface``."""
    import torch

    (output,) = interface.outputs()
    return {
        "arg_inputs": [_input(module, entry.dtype, entry.shape[1:], options) for entry in interface.inputs()],
        "arg_input_binding_names": tuple(entry.name for entry in interface.inputs()),
        "output_binding_names": output.name,
        "device": torch.device(DEVICE),
        "disable_tf32": True,
        "use_explicit_typing": True,  # the types of the program; TensorRT chooses none
        "require_full_compilation": True,
        "workspace_size": options.workspace_bytes or 0,  # 0: no limit
        "optimization_level": options.optimization_level,
        "timing_cache_path": str(timings),
    }


def _input(module: Any, dtype: str, rest: list[int], options: PlanOptions) -> Any:
    import torch

    (batches,) = options.profiles  # Torch-TensorRT makes one profile
    low, best, high = ((batch, *rest) for batch in batches)
    return module.Input(min_shape=low, opt_shape=best, max_shape=high, dtype=getattr(torch, dtype))


def _first_cause(error: BaseException) -> str:
    """Returns the message of the innermost error; the outer ones contain the whole module."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(str(error).partition("\n")[0]) or type(error).__name__

"""Selects the PyTorch device and floating-point type."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import cpu_flags

Precision = Literal["auto", "bf16", "fp16", "fp32"]
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is an ARM flag
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device ``name``; ``auto`` selects CUDA if PyTorch can use it, else the CPU.

    Under torchrun, ``cuda`` selects a separate GPU for each process. Raises UnavailableError if the device does not
    exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise UnavailableError(
            f"--device {name} is not available: {reason}; omit --device, or use --device cpu"
        ) from error
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def choose_precision(
    wanted: Precision, device: torch.device, *, flags: Callable[[], set[str]] = cpu_flags
) -> Precision:
    """Returns ``wanted``, with ``auto`` resolved for ``device``.

    ``auto`` selects bfloat16 if the hardware supports it, else float16 on CUDA and float32 on CPUs. ``flags`` returns
    the instruction sets of this processor.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if flags() & _BFLOAT16_FLAGS else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns a context that runs the network in ``precision``; its guidance modules always compute in float32."""
    return torch.autocast(device.type, _TYPES.get(precision, torch.bfloat16), enabled=precision in _TYPES)

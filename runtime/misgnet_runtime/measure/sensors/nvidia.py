"""Power of NVIDIA GPUs through the driver's management library (NVML). It reports none of a Jetson: see the INA3221."""

from __future__ import annotations

import importlib
from typing import Any

from misgnet_runtime.errors import UnavailableError


class Nvml:
    """Boards, each with its memory and fan; none of them is the whole machine."""

    source = "NVML"
    total = None

    def __init__(self, library: Any) -> None:
        """``library``: the module ``pynvml`` of nvidia-ml-py. Raises its NVMLError where there is no driver."""
        self._library = library
        library.nvmlInit()
        handles = map(library.nvmlDeviceGetHandleByIndex, range(library.nvmlDeviceGetCount()))
        self._boards = {f"GPU {i} ({library.nvmlDeviceGetName(handle)})": handle for i, handle in enumerate(handles)}

    def read(self) -> dict[str, float]:
        """Watts by board, which newer ones average over a second; without those that report none."""
        found = {}
        for rail, handle in self._boards.items():
            try:
                found[rail] = self._library.nvmlDeviceGetPowerUsage(handle) / 1000
            except self._library.NVMLError:  # no sensor, or a board that fell off the bus
                continue
        return found


def find_nvml() -> Nvml:
    """Raises UnavailableError where nvidia-ml-py or the driver is missing, or no GPU reports its power."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        raise UnavailableError("no NVML: pip install nvidia-ml-py where there is an NVIDIA GPU") from None
    try:
        meter = Nvml(library)
    except (library.NVMLError, UnicodeDecodeError) as error:  # of a name, in WSL
        raise UnavailableError(f"no NVML: {error}") from error
    if not meter.read():
        raise UnavailableError("NVML: no GPU reports its power")
    return meter

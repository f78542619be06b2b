"""Reads the power of NVIDIA GPUs with NVML, the driver's management library.

NVML reports no power on a Jetson; see :mod:`~misgnet_runtime.measure.sensors.ina3221`.
"""

from __future__ import annotations

import importlib
from typing import Any

from misgnet_runtime.errors import UnavailableError


class Nvml:
    """Measures the power of GPU boards, including memory and fan; no rail covers the whole machine."""

    source = "NVML"
    total = None

    def __init__(self, library: Any) -> None:
        """Initialises ``library``, the module ``pynvml`` of nvidia-ml-py. Raises its NVMLError without a driver."""
        self._library = library
        library.nvmlInit()
        handles = map(library.nvmlDeviceGetHandleByIndex, range(library.nvmlDeviceGetCount()))
        self._boards = {f"GPU {i} ({library.nvmlDeviceGetName(handle)})": handle for i, handle in enumerate(handles)}

    def read(self) -> dict[str, float]:
        """Returns the watts of each board that reports them; newer boards average over a second."""
        found = {}
        for rail, handle in self._boards.items():
            try:
                found[rail] = self._library.nvmlDeviceGetPowerUsage(handle) / 1000
            except self._library.NVMLError:  # no sensor, or a board that fell off the bus
                continue
        return found


def find_nvml() -> Nvml:
    """Finds GPUs; raises UnavailableError if nvidia-ml-py or the driver is missing, or no GPU reports its power."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        raise UnavailableError("no NVML: on a machine with an NVIDIA GPU, pip install nvidia-ml-py") from None
    try:
        meter = Nvml(library)
    except (library.NVMLError, UnicodeDecodeError) as error:  # a device name, in WSL
        raise UnavailableError(f"no NVML: {error}") from error
    if not meter.read():
        raise UnavailableError("NVML: no GPU reports its power")
    return meter

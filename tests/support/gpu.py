"""Finds the GPU of this machine, for tests that run on real hardware if there is any."""

from __future__ import annotations

from misgnet_runtime.engines import cuda
from misgnet_runtime.engines.cuda import CudaDriver, CudaPython, PyCuda, first_device
from misgnet_runtime.errors import UnavailableError

DRIVERS: dict[str, CudaDriver] = {}
"""Drivers that find a GPU, by library."""
REASONS: list[str] = []
"""The reasons why other libraries do not."""

for _load, _kind in ((cuda._load_cuda_python, CudaPython), (cuda._load_pycuda, PyCuda)):
    try:
        _driver = _kind(_load())
        first_device(_driver)
    except (ImportError, UnavailableError) as error:
        REASONS.append(f"{_kind.library}: {error}")
    else:
        DRIVERS[_kind.library] = _driver

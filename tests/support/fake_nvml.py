"""A stand-in for ``pynvml``, the module of nvidia-ml-py: only the calls that the runtime makes."""

from __future__ import annotations


class NVMLError(Exception):
    """What every failing call raises."""


class FakeNvml:
    """``milliwatts``: by the board's name; None of one without a sensor. ``driver``: whether there is any."""

    NVMLError = NVMLError

    def __init__(self, milliwatts: dict[str, int | None], driver: bool = True) -> None:
        self.milliwatts = milliwatts
        self._driver = driver
        self._ready = False

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._driver:
            raise NVMLError("NVML Shared Library Not Found")
        self._ready = True

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if not self._ready:
            raise NVMLError("Uninitialized")
        return len(self.milliwatts)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> list[str]:  # noqa: N802
        return [list(self.milliwatts)[index]]  # as ctypes' pointers, a handle is compared with nothing else

    def nvmlDeviceGetName(self, handle: list[str]) -> str:  # noqa: N802
        return handle[0]

    def nvmlDeviceGetPowerUsage(self, handle: list[str]) -> int:  # noqa: N802
        found = self.milliwatts[handle[0]]
        if found is None:
            raise NVMLError("Not Supported")
        return found

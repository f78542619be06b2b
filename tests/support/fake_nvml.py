"""Provides a fake of ``pynvml``, the module of nvidia-ml-py, with the calls that the runtime makes."""

from __future__ import annotations


class NVMLError(Exception):
    """Raised by every failing call."""


class FakeNvml:
    """The module ``pynvml``."""

    NVMLError = NVMLError

    def __init__(self, milliwatts: dict[str, int | None], driver: bool = True) -> None:
        """``milliwatts`` by the board's name (None: no sensor); ``driver``: whether a driver is installed."""
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
        return [list(self.milliwatts)[index]]  # a list, because handles (ctypes pointers) are not comparable either

    def nvmlDeviceGetName(self, handle: list[str]) -> str:  # noqa: N802
        return handle[0]

    def nvmlDeviceGetPowerUsage(self, handle: list[str]) -> int:  # noqa: N802
        found = self.milliwatts[handle[0]]
        if found is None:
            raise NVMLError("Not Supported")
        return found

"""The two CUDA libraries, each played by a fake of the calls that are used."""
# ruff: noqa: N802, N815 (the names are CUDA's)

from __future__ import annotations

import ctypes
import importlib
import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from misgnet_runtime import cuda
from misgnet_runtime.cuda import CudaDriver, CudaPython, PyCuda, first_device, open_driver
from misgnet_runtime.errors import UnavailableError

LIBRARIES = ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart", "pycuda", "pycuda.driver")


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class FakeRuntime:
    """cuda-python's way: every call returns a tuple that starts with a status; memory is this process's."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")

    def __init__(self, status: Status = Status.cudaSuccess) -> None:
        self.status = status
        self.memory: dict[int, Any] = {}
        self.kinds: list[str] = []

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self.status, 1

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return self.status, SimpleNamespace(name=b"Orin\0\0", major=8, minor=7, totalGlobalMem=1 << 33)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > 1 << 20:
            return Status.cudaErrorMemoryAllocation, None
        block = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(block)] = block
        return self.status, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.memory[address]
        return (self.status,)

    cudaFreeHost = cudaFree

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return self.status, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        assert stream == 77
        return (self.status,)

    cudaStreamSynchronize = cudaStreamDestroy

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[Any, ...]:
        ctypes.memmove(to, source, size)
        self.kinds.append(kind)
        assert stream == 77
        return (self.status,)


class FakePyCuda:
    """pycuda's way: objects that free themselves, exceptions for errors."""

    class Error(Exception):
        pass

    def __init__(self, failure: str = "") -> None:
        self.failure = failure
        self.pushed = 0
        self.freed: list[int] = []
        self.Device = type("Device", (FakePyCudaDevice,), {"driver": self})

    def init(self) -> None:
        if self.failure:
            raise self.Error(self.failure)

    def mem_alloc(self, size: int) -> Any:
        if size > 1 << 20:
            raise self.Error("cuMemAlloc failed: out of memory")
        return FakeAllocation(self, size)

    def pagelocked_empty(self, size: int, dtype: Any) -> Any:
        return np.empty(size, dtype)

    def Stream(self) -> Any:
        return SimpleNamespace(handle=77, synchronize=lambda: None)

    def memcpy_htod_async(self, to: int, host: Any, stream: Any) -> None:
        assert stream.handle == 77
        ctypes.memmove(to, host.ctypes.data, host.nbytes)

    def memcpy_dtoh_async(self, host: Any, source: int, stream: Any) -> None:
        assert stream.handle == 77
        ctypes.memmove(host.ctypes.data, source, host.nbytes)


class FakePyCudaDevice:
    driver: FakePyCuda

    def __init__(self, index: int) -> None:
        assert index == 0

    @staticmethod
    def count() -> int:
        return 1

    def retain_primary_context(self) -> Any:
        def push() -> None:
            self.driver.pushed += 1

        return SimpleNamespace(push=push, pop=lambda: None)

    def compute_capability(self) -> tuple[int, int]:
        return (8, 7)

    def name(self) -> str:
        return "Orin"

    def total_memory(self) -> int:
        return 1 << 33


class FakeAllocation:
    def __init__(self, driver: FakePyCuda, size: int) -> None:
        self.driver = driver
        self.block = (ctypes.c_uint8 * size)()

    def __int__(self) -> int:
        return ctypes.addressof(self.block)

    def free(self) -> None:
        self.driver.freed.append(int(self))


@pytest.fixture(params=["cuda-python", "pycuda"])
def driver(request: pytest.FixtureRequest) -> CudaDriver:
    return CudaPython(FakeRuntime()) if request.param == "cuda-python" else PyCuda(FakePyCuda())


def test_the_device_is_described(driver: CudaDriver) -> None:
    assert first_device(driver) == cuda.Device("Orin", "sm87", 1 << 33)


def test_bytes_go_to_the_device_and_back(driver: CudaDriver) -> None:
    stream, address = driver.create_stream(), driver.allocate(8)
    there, back = driver.allocate_host(8), driver.allocate_host(8)
    assert there.dtype == np.uint8 and there.shape == (8,)
    there[:] = range(8)
    back[:] = 0
    driver.copy_to_device(address, there[:6], stream)
    driver.copy_to_host(back[:6], address, stream)
    driver.synchronize(stream)
    assert back.tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    for host in (there, back):
        driver.free_host(host)
    driver.free(address)
    driver.destroy_stream(stream)


def test_directions_of_cuda_python() -> None:
    runtime = FakeRuntime()
    driver = CudaPython(runtime)
    address, host = driver.allocate(4), driver.allocate_host(4)
    driver.copy_to_device(address, host, 77)
    driver.copy_to_host(host, address, 77)
    assert runtime.kinds == ["to device", "to host"]
    driver.free(address)
    driver.free_host(host)
    assert not runtime.memory


def test_pycuda_frees_and_pushes_the_primary_context() -> None:
    library = FakePyCuda()
    driver = PyCuda(library)
    address = driver.allocate(4)
    driver.free(address)
    assert (library.freed, library.pushed) == ([address], 1)


def test_too_little_memory_is_told(driver: CudaDriver) -> None:
    with pytest.raises(UnavailableError, match=r"cudaErrorMemoryAllocation|out of memory"):
        driver.allocate(1 << 30)


def test_a_missing_driver_is_told_with_its_error() -> None:
    with pytest.raises(UnavailableError, match="cudaGetDeviceCount failed: cudaErrorNoDevice; is an NVIDIA driver"):
        CudaPython(FakeRuntime(Status.cudaErrorNoDevice))
    with pytest.raises(UnavailableError, match="pycuda found no usable CUDA driver: no CUDA-capable device"):
        PyCuda(FakePyCuda("no CUDA-capable device"))


def test_without_a_library_the_install_lines_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=r"cuda-python: .*pycuda: .*pip install cuda-python.*\[pycuda\]"):
        open_driver()


@pytest.mark.parametrize(
    ("installed", "library", "expected"),
    [
        ("cuda.bindings.runtime", FakeRuntime(), "cuda-python"),
        ("cuda.cudart", FakeRuntime(), "cuda-python"),
        ("pycuda.driver", FakePyCuda(), "pycuda"),
    ],
)
def test_whichever_is_installed_is_opened(
    monkeypatch: pytest.MonkeyPatch, installed: str, library: Any, expected: str
) -> None:
    def find(name: str) -> Any:
        if name == installed:
            return library
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", find)
    assert open_driver().library == expected

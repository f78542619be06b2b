"""Stores the kernels that TensorRT for RTX compiled on this machine, in ``kernels/`` of the user's cache.

    NAME.kernels    what the runtime cache of a plan serialized, after its digest

A plan for RTX does not hold the kernels of a GPU: each process compiles them when it opens the plan and first runs a
batch. With a runtime cache a later process finds them. NAME is the digest of the plan, the library's version and the
GPU; the library itself checks the driver. Kernels are native code, so a file is used only from a folder that no other
user can write, and only if its contents match their digest. A cache that cannot be used is reported, and never fails a
run.
"""

from __future__ import annotations

import hashlib
from typing import Any

from misgnet_runtime.engines.cuda import Device
from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.limits import COMPILED_KERNELS_BYTES, COMPILED_KERNELS_TOTAL_BYTES
from misgnet_runtime.log import current
from misgnet_runtime.storage.private import NoFolderError, PrivateFolder

_SUFFIX = ".kernels"


class KernelCache:
    """The kernels of one plan on one GPU."""

    def __init__(self, plan: bytes, version: str, device: Device) -> None:
        """``version``: of TensorRT for RTX."""
        parts = (hashlib.sha256(plan).hexdigest(), version, device.name, device.compute_capability)
        self._name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32] + _SUFFIX
        self._cache: Any = None
        self._size = 0

    def attach(self, config: Any) -> None:
        """Gives the kept kernels to the runtime configuration of an engine; new ones are collected there.

        Does nothing if the library has no runtime cache. CUDA must be current in this thread.
        """
        if not hasattr(config, "create_runtime_cache"):
            return
        cache, data = config.create_runtime_cache(), self._read()
        if data is not None:
            if cache.deserialize(data):
                self._size = len(data)
            else:
                current().info("kernels are compiled again: those in the cache are for another driver")
        if config.set_runtime_cache(cache):
            self._cache = cache

    def save(self) -> None:
        """Writes the kernels if some were compiled since ``attach``. CUDA must be current in this thread."""
        data = b"" if self._cache is None else bytes(self._cache.serialize() or b"")
        if self._size < len(data) <= COMPILED_KERNELS_BYTES:
            self._write(data)

    def _read(self) -> bytes | None:
        try:
            return _folder().read_sealed(self._name, COMPILED_KERNELS_BYTES)
        except NoFolderError:
            return None
        except (InputError, OSError) as error:
            current().warning(f"kernels are compiled again: those in the cache are not used: {error}")
            return None

    def _write(self, data: bytes) -> None:
        """Writes the file, and removes the oldest ones if all take too much room. Logs a failure."""
        try:
            _folder().write_within(COMPILED_KERNELS_TOTAL_BYTES, self._name, data, "stores compiled kernels")
        except NoFolderError:
            return
        except (InputError, StorageError, OSError) as error:
            current().info(f"the compiled kernels are not kept for the next run: {error}")


def _folder() -> PrivateFolder:
    return PrivateFolder.of("kernels")

"""The timing cache: kernel timings that make builds quick and repeatable. It never breaks a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from misgnet_runtime.engines.tensorrt.logger import VendorLog
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.atomic import write_file


class CacheFile(Protocol):
    """Where a timing cache is kept."""

    name: str

    def read(self) -> bytes:
        """FileNotFoundError where there is none, OSError or InputError where it cannot be read."""

    def write(self, data: bytes) -> None:
        """Whole or not at all; OSError or InputError where that fails."""


class PlainFile:
    """A CacheFile that the user named."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path

    def read(self) -> bytes:
        return self._path.read_bytes()

    def write(self, data: bytes) -> None:
        write_file(self._path, data)


def load_timing_cache(config: Any, file: CacheFile, log: VendorLog) -> str | None:
    """Give ``config`` the cache of the file, or an empty one; returns a note where the file was no use."""
    try:
        data = file.read()
    except FileNotFoundError:
        data, note = b"", None
    except (OSError, InputError) as error:
        data, note = b"", f"timing cache not read: {error}"
    else:
        if data and _adopt(config, data, log):
            return None
        note = f"timing cache ignored: {file.name} is damaged or of another version or device"
    if not _adopt(config, b"", log):
        note = f"timing cache unused: {log.last_errors()}"
    return note


def _adopt(config: Any, data: bytes, log: VendorLog) -> bool:
    """Whether the vendor took the cache. It may take a damaged one as empty, saying so only in its log."""
    said = log.count()
    cache = config.create_timing_cache(data)
    if cache is None or (data and log.count() > said):
        return False
    return bool(config.set_timing_cache(cache, False))  # False: refuse timings of another device


def save_timing_cache(config: Any, file: CacheFile) -> str | None:
    """Write the cache whole or not at all; returns a note where that failed."""
    cache = config.get_timing_cache()
    if cache is None:
        return "timing cache not written: the builder kept none"
    try:
        file.write(bytes(cache.serialize()))
    except (OSError, InputError) as error:
        return f"timing cache not written: {error}"
    return None

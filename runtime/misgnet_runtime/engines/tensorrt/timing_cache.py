"""Reads and writes the timing cache: kernel timings that make builds fast and repeatable. It never fails a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from misgnet_runtime.engines.tensorrt.logger import VendorLog
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.atomic import write_file


class CacheFile(Protocol):
    """A file that holds a timing cache."""

    name: str

    def read(self) -> bytes:
        """Reads the file; raises FileNotFoundError if it does not exist, OSError or InputError if it is unreadable."""

    def write(self, data: bytes) -> None:
        """Writes the file atomically; raises OSError or InputError on failure."""


class PlainFile:
    """A CacheFile at a path that the user gave."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path

    def read(self) -> bytes:
        return self._path.read_bytes()

    def write(self, data: bytes) -> None:
        write_file(self._path, data)


def load_timing_cache(config: Any, file: CacheFile, log: VendorLog) -> str | None:
    """Sets the cache of ``file``, or an empty one, in ``config``; returns a note if the file could not be used."""
    try:
        data = file.read()
    except FileNotFoundError:
        data, note = b"", None
    except (OSError, InputError) as error:
        data, note = b"", f"timing cache not read: {error}"
    else:
        if data and _adopt(config, data, log):
            return None
        note = f"timing cache ignored: {file.name} is damaged, or was made by another version or device"
    if not _adopt(config, b"", log):
        note = f"timing cache unused: {log.last_errors()}"
    return note


def _adopt(config: Any, data: bytes, log: VendorLog) -> bool:
    """Returns whether TensorRT accepted the cache. It may treat a damaged one as empty, which only its log shows."""
    messages = log.count()
    cache = config.create_timing_cache(data)
    if cache is None or (data and log.count() > messages):
        return False
    return bool(config.set_timing_cache(cache, False))  # False: reject timings of another device


def save_timing_cache(config: Any, file: CacheFile) -> str | None:
    """Writes the cache atomically; returns a note if that failed."""
    cache = config.get_timing_cache()
    if cache is None:
        return "timing cache not written: the builder has none"
    try:
        file.write(bytes(cache.serialize()))
    except (OSError, InputError) as error:
        return f"timing cache not written: {error}"
    return None

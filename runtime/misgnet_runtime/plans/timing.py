"""The timing cache: kernel timings that make builds quick and repeatable. It never breaks a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.outputs import replace_file
from misgnet_runtime.plans.log import VendorLog


def load_timing_cache(config: Any, path: Path, log: VendorLog) -> str | None:
    """Give ``config`` the cache of the file, or an empty one; returns a note where the file was no use."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data, note = b"", None
    except OSError as error:
        data, note = b"", f"timing cache not read: {error}"
    else:
        if data and _adopt(config, data, log):
            return None
        note = f"timing cache ignored: {path.name} is damaged or of another version or device"
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


def save_timing_cache(config: Any, path: Path) -> str | None:
    """Write the cache whole or not at all; returns a note where that failed."""
    cache = config.get_timing_cache()
    if cache is None:
        return "timing cache not written: the builder kept none"
    try:
        with replace_file(path) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    except (OSError, InputError) as error:
        return f"timing cache not written: {error}"
    return None

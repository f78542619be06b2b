"""Runs MISGNet bundles: no torch, no onnx. The ground floor; it imports none of the other packages.

    from misgnet_runtime import open_bundle

    with open_bundle("bundle") as bundle:
        change = bundle.predict(before, after)  # uint8 (H, W, 3) of both dates
        change.mask, change.probability  # (H, W)

The names in ``__all__`` are the public API: opening a bundle, what comes of it, every error that is raised on purpose
(see :mod:`misgnet_runtime.errors`), and the version. All else in this package, its modules included, is internal and
may change with any version.

Importing the package loads no library; the first use of ``open_bundle`` does. It does set the environment so that ONNX
Runtime sends no telemetry; ``ORT_DISABLE_TELEMETRY=0``, set before, allows it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from misgnet_runtime.errors import (
    EngineError,
    GateFailed,
    InputError,
    LockTimeoutError,
    MisgnetError,
    ScenesFailed,
    StorageError,
    UnavailableError,
    UnreadableError,
    UsageError,
)

if TYPE_CHECKING:
    from misgnet_runtime.api import BundleSession, ChangeMap, open_bundle

    __version__: str

__all__ = [
    "BundleSession",
    "ChangeMap",
    "EngineError",
    "GateFailed",
    "InputError",
    "LockTimeoutError",
    "MisgnetError",
    "ScenesFailed",
    "StorageError",
    "UnavailableError",
    "UnreadableError",
    "UsageError",
    "__version__",
    "open_bundle",
]
_OF_API = ("BundleSession", "ChangeMap", "open_bundle")  # what they import takes a second: at the first use only

# From 1.29 on ONNX Runtime's official builds report the device and its models to their maker. They read this only once,
# when they are first imported. Processes that are started from here inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name in _OF_API:
        from misgnet_runtime import api

        return getattr(api, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("misgnet-export")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

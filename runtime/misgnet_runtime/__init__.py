"""Runs bundles of change-detection networks without torch or onnx. It imports none of this project's other packages.

    from misgnet_runtime import open_bundle

    with open_bundle("bundle") as bundle:
        change = bundle.predict(before, after)  # arrays, each uint8 (H, W, 3), Pillow images or paths
        change.mask, change.probability  # (H, W)
        scene = bundle.predict_scene("before.tif", "after.tif")  # GeoTIFFs of any size
        scene.mask, scene.polygons, scene.save("change.tif")

The names in ``__all__`` are the public API: ``open_bundle`` and the classes that it returns, every error that is raised
on purpose (see :mod:`misgnet_runtime.errors`), and the version. All other names and modules of this package are
internal and may change in any version.

Importing the package loads no library; the first use of ``open_bundle`` does. The import sets an environment variable
so that ONNX Runtime sends no telemetry; set ``ORT_DISABLE_TELEMETRY=0`` before the import to allow it.
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
    NetworkError,
    ScenesFailed,
    StorageError,
    UnavailableError,
    UnreadableError,
    UsageError,
)

if TYPE_CHECKING:
    from misgnet_runtime.api import BundleSession, ChangeMap, SceneResult, open_bundle

    __version__: str

__all__ = [
    "BundleSession",
    "ChangeMap",
    "EngineError",
    "GateFailed",
    "InputError",
    "LockTimeoutError",
    "MisgnetError",
    "NetworkError",
    "SceneResult",
    "ScenesFailed",
    "StorageError",
    "UnavailableError",
    "UnreadableError",
    "UsageError",
    "__version__",
    "open_bundle",
]
_OF_API = (
    "BundleSession",
    "ChangeMap",
    "SceneResult",
    "open_bundle",
)  # imported at first use: their imports take a second

# Since version 1.29, official builds of ONNX Runtime send device and model information to their vendor. They read this
# variable only once, when they are first imported. Child processes inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name in _OF_API:
        from misgnet_runtime import api

        return getattr(api, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("misgnet-export")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Runs MISGNet bundles: no torch, no onnx. The ground floor; it imports none of the other packages.

    from misgnet_runtime import open_bundle

    with open_bundle("bundle") as bundle:
        change = bundle.predict(before, after)  # uint8 (H, W, 3) of both dates
        change.mask, change.probability  # (H, W)

Importing the package imports nothing else; the first use of a name does. It does tell ONNX Runtime, by the environment,
to send no telemetry; ``ORT_DISABLE_TELEMETRY=0``, set before, lets it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from misgnet_runtime.api import BundleSession, ChangeMap, open_bundle

__all__ = ["BundleSession", "ChangeMap", "open_bundle"]

# From 1.29 on ONNX Runtime's official builds report the device and its models to their maker. They read this only once,
# when they are first imported. Processes that are started from here inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from misgnet_runtime import api as session

    return getattr(session, name)

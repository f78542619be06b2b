"""Runs a scene for a session and returns its result."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from misgnet_runtime.api.keywords import options_of
from misgnet_runtime.api.rasters import DateSource, source_of
from misgnet_runtime.api.result import SceneResult
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import UsageError
from misgnet_runtime.inference.selection import Opened
from misgnet_runtime.jobs.scene.predict import predict_opened
from misgnet_runtime.log import current

__all__ = ["DateSource", "predict_scene"]


def predict_scene(
    bundle: Bundle,
    opened: Opened,
    before: DateSource,
    after: DateSource,
    *,
    output: str | os.PathLike[str] | None,
    given: Mapping[str, Any],
    progress: Progress | None,
) -> SceneResult:
    """Does the work of :meth:`BundleSession.predict_scene`; ``given``: the options, by keyword."""
    log = current().remembering()
    with ExitStack() as kept, ExitStack() as copies:
        folder = None if output is not None else kept.enter_context(tempfile.TemporaryDirectory(prefix="misgnet-"))
        change = Path(folder, "change.tif") if folder else Path(os.fspath(output or ""))
        if change.suffix.lower() not in (".tif", ".tiff"):
            raise UsageError(f"output {change} is a change raster; choose a name that ends in .tif")
        products = _beside(change) | ({"report": Path(folder, "change.html")} if folder else {})
        options = options_of({**products, **given})
        options.check(change)
        first, second = source_of(before, "before", copies), source_of(after, "after", copies)
        report = predict_opened(
            bundle, lambda: nullcontext(opened), first, second, change, options=options, log=log, progress=progress
        )
        return SceneResult(
            files=options.outputs(change), report=report, warnings=log.warnings or (), resources=kept.pop_all()
        )  # fmt: skip


def _beside(change: Path) -> dict[str, Path]:
    """Returns the products that are written unless the caller names other files, or None."""
    stem = change.stem
    return {
        "probability": change.with_name(f"{stem}_probability.tif"), "vector": change.with_name(f"{stem}.gpkg"),
        "quicklook": change.with_name(f"{stem}_quicklook.png"),
    }  # fmt: skip

"""Defines the operations that write results: their initial state, the work, and how results are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import of_bundles
import of_runs
from looking import State, files


@dataclass(frozen=True)
class Operation:
    """An operation that writes results."""

    # Makes inputs and old results in a folder.
    prepare: Callable[[Path], object]
    # Does the work; it can be repeated.
    run: Callable[[Path], object]
    # Reads all existing results. Each must be the old one or the new one after any fault.
    results: Callable[[Path], State]
    # Modules imported once before the runs.
    modules: tuple[str, ...] = ()


_ENGINE = ("onnxruntime", "misgnet_runtime.jobs.image", "misgnet_runtime.jobs.folder")
_SCENE = (
    *_ENGINE, "rasterio", "pyogrio", "shapely", "misgnet_runtime.jobs.series.series", "misgnet_runtime.raster.polygons",
    "misgnet_runtime.jobs.batch.run", "misgnet_runtime.jobs.watch.service",
)  # fmt: skip
_TRUST = ("cryptography.x509.verification", "misgnet_runtime.bundle.signing.verify")
_SIGN = (*_TRUST, "model_signing.signing", "misgnet_export.integrations.signing")
_COMPILE = ("misgnet_runtime.jobs.compile.run", "onnxruntime")
OPERATIONS = {
    "build": Operation(
        of_bundles.build, of_bundles.run_build, of_bundles.read_bundle, ("misgnet_export.pipeline.build",)
    ),
    "image": Operation(of_runs.image, of_runs.run_image, files("out/*"), _ENGINE),
    "folders": Operation(of_runs.folders, of_runs.run_folders, files("out/*.png"), _ENGINE),
    "scene": Operation(of_runs.scene, of_runs.run_scene, files("out/*"), _SCENE),
    "series": Operation(of_runs.series, of_runs.run_series, files("out/*.tif"), _SCENE),
    "batch": Operation(of_runs.batch, of_runs.run_batch, of_runs.read_batch, _SCENE),
    "watch": Operation(of_runs.watch, of_runs.run_watch, files("out/*.tif"), _SCENE),
    "sign": Operation(of_bundles.sign, of_bundles.run_sign, of_bundles.read_sign, _SIGN),
    "compile": Operation(of_bundles.compile_plans, of_bundles.run_compile, of_bundles.read_compiled, _COMPILE),
    "accept": Operation(of_bundles.accept, of_bundles.run_accept, of_bundles.read_accepted, _TRUST),
}

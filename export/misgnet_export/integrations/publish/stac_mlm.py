"""Writes a STAC Item that describes a bundle by the Machine Learning Model extension, one asset for each engine.

STAC 1.1; the extensions MLM 1.4 (github.com/stac-extensions/mlm), raster 1.1 and file 2.1. MLM requires a description
of the bands that the inputs name; STAC's own ``bands`` are not allowed where MLM looks for them, so ``raster:bands``
describes them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from misgnet_export.integrations.publish.bundle_copy import COPIED, COPY, copy_bundle, identifier_of, title_of
from misgnet_runtime.bundle import MANIFEST, Bundle, EngineEntry, Manifest, TensorEntry
from misgnet_runtime.bundle.results import EngineResult, engine_results
from misgnet_runtime.engines import is_on_cpu

ITEM = "item.json"
_EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in (("mlm", "1.4.0"), ("raster", "1.1.0"), ("file", "2.1.0"))
]
_TASKS = ["semantic-segmentation"]  # of the extension's tasks, the one that change detection by pixels is
_AXES = {"N": "batch", "C": "channel", "H": "height", "W": "width"}
_ONNX, _PLAN = "application/octet-stream; application=onnx", "application/octet-stream; application=tensorrt"
_FRAMEWORKS = {
    "onnxruntime": "ONNX Runtime", "onnxruntime-cuda": "ONNX Runtime", "openvino": "OpenVINO",
    "rtx": "TensorRT for RTX", "tensorrt": "TensorRT",
}  # fmt: skip
_MULTIHASH = "1220"  # prefix of a SHA-256 of 32 bytes in hexadecimal
_SPDX = re.compile(r"[\w.+-]+")  # what STAC allows as a license: an identifier, without spaces
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def write_stac_mlm(bundle: Bundle, folder: Path) -> list[str]:
    """Writes ``item.json`` and a copy of the bundle to ``folder``; returns lines about what was written.

    Raises:
        InputError: The accuracy of the engines cannot be read, or a file changed since the bundle was checked.
    """
    text = json.dumps(mlm_item(bundle), indent=2, ensure_ascii=False, allow_nan=False)
    copy_bundle(bundle, folder)
    (folder / ITEM).write_text(text + "\n", encoding="utf-8")
    count = len(bundle.manifest.engines)
    return [f"{ITEM}: STAC Item with {count} engines as assets", COPIED]


def mlm_item(bundle: Bundle) -> dict[str, Any]:
    """Returns the item. Its place is unknown, so it has no geometry; its time is that of the build."""
    manifest, results = bundle.manifest, engine_results(bundle)
    assets = {entry.name: _asset(manifest, entry, results.get(entry.name)) for entry in manifest.engines}
    return {
        "type": "Feature", "stac_version": "1.1.0", "stac_extensions": _EXTENSIONS,
        "id": f"{identifier_of(bundle)}-{manifest.bundle_version}", "geometry": None,
        "properties": _properties(bundle), "links": [],
        "assets": assets | {
            "manifest": {
                "href": f"./{COPY}/{MANIFEST}", "type": "application/json", "roles": ["metadata"],
                "title": "Manifest of the bundle",
            }
        },
    }  # fmt: skip


def _properties(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    model, licence = manifest.model, manifest.licence
    source = "misgnet" if model is None else model.source
    optional = {
        "gsd": manifest.resolution,
        "license": None if licence == "not stated" else licence if _SPDX.fullmatch(licence) else "other",
        "mlm:framework": None if source == "onnx" else "PyTorch",
        "mlm:total_parameters": None if model is None else model.parameters,
    }
    return {
        "datetime": manifest.created.replace("+00:00", "Z"),
        "title": title_of(bundle),
        "description": "Change detection between two co-registered images; runs with `misgnet-run`",
        "mlm:name": identifier_of(bundle),
        "mlm:architecture": "MISGNet" if source == "misgnet" else "unknown",
        "mlm:tasks": _TASKS,
        "mlm:input": [_input(manifest, entry) for entry in manifest.inputs],
        "mlm:output": [_output(manifest, entry) for entry in manifest.outputs],
        "mlm:hyperparameters": {
            "threshold": manifest.threshold, "tile": manifest.tile, "overlap": manifest.scene_overlap
        },
        "misgnet:bundle_version": manifest.bundle_version,
        "misgnet:bundle_sha256": bundle.digest(),
        "misgnet:source_weights_sha256": manifest.source_weights_sha256,
        "misgnet:licence": licence,
    } | {name: value for name, value in optional.items() if value is not None}  # fmt: skip


def _input(manifest: Manifest, entry: TensorEntry) -> dict[str, Any]:
    how = manifest.preprocessing
    described: dict[str, Any] = {
        "name": entry.name, "bands": how.bands, "input": _structure(entry),
        "description": f"Image {entry.name.upper()}; pixels without data: {how.nodata}",
        "resize_type": None, "pre_processing_function": None,
    }  # fmt: skip
    if manifest.interface.raw:
        described["description"] += ". Raw values: the graph normalises them"
        return described
    scaling = [
        {"type": "z-score", "mean": mean / how.scale, "stddev": std / how.scale}
        for mean, std in zip(how.mean, how.std, strict=True)
    ]
    return described | {"value_scaling": scaling}


def _output(manifest: Manifest, entry: TensorEntry) -> dict[str, Any]:
    names = dict(enumerate(manifest.class_names))
    unchanged, changed = names.get(0, "unchanged"), names.get(1, "changed")
    about = {
        "probability": f"Probability of the class {changed}; pixels above {manifest.threshold:g} count as {changed}",
        "logits": f"Logits of the classes {unchanged} and {changed}",
        "mask": f"0 {unchanged}, 1 {changed}",
    }
    return {
        "name": entry.name, "tasks": _TASKS, "result": _structure(entry),
        "description": about[manifest.interface.output], "post_processing_function": None,
    }  # fmt: skip


def _structure(entry: TensorEntry) -> dict[str, Any]:
    axes = [_AXES[letter] for letter in entry.layout]
    return {"shape": entry.shape, "dim_order": axes, "data_type": entry.dtype}


def _asset(manifest: Manifest, entry: EngineEntry, result: EngineResult | None) -> dict[str, Any]:
    form = manifest.interface
    file = next(one for one in manifest.files if one.path == entry.file)
    is_plan = entry.kind in ("rtx", "tensorrt") and not entry.on_device
    where = ", to be compiled on the device" if entry.on_device else ""
    title = f"Engine {entry.name}, {entry.precision}, for {_FRAMEWORKS[entry.kind]}{where}"
    optional: dict[str, Any] = {
        "mlm:framework_version": entry.vendor_version if _VERSION.fullmatch(entry.vendor_version) else None,
        "mlm:accelerator_summary": ", ".join([*entry.compute_capabilities, *entry.needs]) or None,
        "mlm:compile_method": "aot" if is_plan else None,
        "misgnet:f1": result.f1 if result else None,
    }
    return {
        "href": f"./{COPY}/{entry.file}", "title": title, "type": _PLAN if is_plan else _ONNX, "roles": ["mlm:model"],
        "file:size": file.size, "file:checksum": _MULTIHASH + file.sha256,
        "mlm:artifact_type": "tensorrt.plan" if is_plan else "onnx",
        "mlm:framework": _FRAMEWORKS[entry.kind],
        "mlm:accelerator": None if is_on_cpu(entry) else "cuda",
        "mlm:accelerator_constrained": not is_on_cpu(entry),
        "raster:bands": [{"name": name, "data_type": form.samples} for name in manifest.preprocessing.bands],
        "misgnet:precision": entry.precision,
    } | {name: value for name, value in optional.items() if value is not None}  # fmt: skip

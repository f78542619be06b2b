"""Writes a bundle's graph for Deepness, a plugin that runs networks in QGIS.

The format is that of the plugin's documentation (qgis-plugin-deepness.readthedocs.io, "Model classes and requirements"
and "Adding metadata to ONNX model") and of its reader, ``src/deepness/processing/models/model_base.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from misgnet_export.integrations.publish.bundle_copy import title_of
from misgnet_runtime.bundle import Bundle, EngineEntry, Interface, Manifest
from misgnet_runtime.bundle.golden import GoldenTiles, golden_of
from misgnet_runtime.engines.base import Engine
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import GateFailed, UnavailableError, UsageError
from misgnet_runtime.formatting import format_percent, printable
from misgnet_runtime.inference.detector import ChangeDetector

if TYPE_CHECKING:
    from misgnet_runtime.callables import Image, Mask

GRAPH, README = "change.onnx", "README.md"
_DIVIDED_BY = 255  # the plugin divides all images by it, also 16-bit ones
_KINDS = ("onnxruntime", "onnxruntime-cuda")  # what the plugin runs
_AGREEMENT = 0.999  # share of pixels; the same graph in the same library


def write_deepness(bundle: Bundle, folder: Path, engine: str | None = None) -> list[str]:
    """Writes the graph of an engine and a README to ``folder``; returns lines about what was written.

    Args:
        bundle: An opened bundle.
        folder: An empty folder.
        engine: Name of the engine; None: ``cpu``, or else the first engine that the plugin can run.

    Raises:
        UsageError: The engine is unknown, or the plugin cannot run it.
        UnavailableError: onnx is missing.
        GateFailed: The written graph does not reproduce the masks of the bundle's engine.
    """
    entry = _chosen(bundle, engine)
    try:
        import onnx
    except ImportError as error:
        raise UnavailableError(
            "`misgnet-export publish --as deepness` requires onnx: pip install 'misgnet-export[export]'"
        ) from error
    from misgnet_export.integrations.publish.stacked_graph import stacked_graph

    manifest, data = bundle.manifest, bundle.read(entry.file)
    source = onnx.load_model_from_string(data)
    model = stacked_graph(source, manifest.interface, _DIVIDED_BY)
    own = {prop.key: prop.value for prop in source.metadata_props if prop.key.startswith("misgnet_")}
    onnx.helper.set_model_props(model, own | deepness_metadata(manifest))
    written: bytes = model.SerializeToString()
    agreement = _check(manifest, data, written, golden_of(bundle))
    (folder / GRAPH).write_bytes(written)
    (folder / README).write_text(_readme(bundle, entry), encoding="utf-8")
    return [
        f"{GRAPH}: engine {entry.name} ({entry.precision}) for Deepness; {agreement} of the golden tiles' pixels agree",
        f"{README}: how to stack both dates and run the plugin",
    ]  # fmt: skip


def deepness_metadata(manifest: Manifest) -> dict[str, str]:
    """Returns the plugin's parameters; all values are JSON.

    The graph normalises the images itself, so the plugin's own standardization changes nothing. The documentation names
    ``tiles_size``; the plugin reads ``tile_size``.
    """
    channels = 2 * manifest.interface.bands
    values: dict[str, object] = {
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(manifest.class_names)},
        "tiles_size": manifest.tile,
        "tile_size": manifest.tile,
        "tiles_overlap": math.ceil(100 * manifest.scene_overlap / manifest.tile),
        "standardization_mean": [0.0] * channels,
        "standardization_std": [1.0] * channels,
        "seg_thresh": _least_above(manifest.threshold),
        "seg_small_segment": 0,
    }
    if manifest.resolution is not None:
        values["resolution"] = 100 * manifest.resolution  # cm
    return {name: json.dumps(value) for name, value in values.items()}


def _least_above(threshold: float) -> float:
    """Returns the float32 after ``threshold``: for the plugin, a value at its threshold counts, too."""
    return float(np.nextafter(np.float32(threshold), np.float32(1)))


def _chosen(bundle: Bundle, name: str | None) -> EngineEntry:
    fitting = {entry.name: entry for entry in bundle.manifest.engines if entry.kind in _KINDS}
    listed = ", ".join(fitting) or "none"
    if name is None:
        if not fitting:
            raise UsageError(
                f"Deepness runs ONNX Runtime, and bundle {bundle.name} has no engine for it; build it with --target cpu"
            )
        return fitting.get("cpu") or next(iter(fitting.values()))
    if (entry := bundle.engine_entry(name)).name not in fitting:
        raise UsageError(
            f"--engine {name} is of kind '{entry.kind}', but Deepness runs ONNX Runtime; engines that it runs: {listed}"
        )
    return entry


def _check(manifest: Manifest, source: bytes, written: bytes, golden: GoldenTiles) -> str:
    """Returns the share of pixels with equal masks, as text; raises GateFailed if it is too small."""
    interface = manifest.interface
    expected, found = [], []
    with (
        ChangeDetector(OnnxRuntimeEngine(source, interface.max_batch), interface) as detector,
        OnnxRuntimeEngine(written, interface.max_batch) as engine,
    ):
        for before, after in zip(golden.before, golden.after, strict=True):
            expected.append(detector.sound_probability(before[None], after[None])[0] > manifest.threshold)
            found.append(_as_the_plugin(engine, np.concatenate([before, after], -1), manifest.threshold))
    agreement = float(np.mean(np.array(expected) == np.array(found)))
    if agreement < _AGREEMENT:
        raise GateFailed(
            f"the graph for Deepness agrees with the engine in only {format_percent(agreement)} of the golden tiles' "
            f"pixels (at least {format_percent(_AGREEMENT)} required)"
        )
    return format_percent(agreement)


def _as_the_plugin(engine: Engine, tile: Image, threshold: float) -> Mask:
    """Returns the mask, bool (T, T), that the plugin computes of a tile (T, T, 2C) of both dates."""
    images = (tile / _DIVIDED_BY).astype(np.float32).transpose(2, 0, 1)[None]
    (probability,) = engine.infer({engine.inputs[0].name: images}).values()
    return np.asarray(probability[0, 0] > threshold)


def _readme(bundle: Bundle, entry: EngineEntry) -> str:
    manifest = bundle.manifest
    interface, bands = manifest.interface, ", ".join(manifest.preprocessing.bands)
    resolution = (
        "not stated by the bundle: enter that of the images that the network was trained on"
        if manifest.resolution is None
        else f"{100 * manifest.resolution:g} cm per pixel; the plugin resamples other images to it"
    )
    needs = f"; made for processors with {' or '.join(entry.needs)}" if entry.needs else ""
    return _README.format(
        title=printable(title_of(bundle)), graph=GRAPH, bands=printable(bands), both=2 * interface.bands,
        tile=manifest.tile, threshold=f"{manifest.threshold:g}", resolution=resolution,
        engine=f"{entry.name} ({entry.precision}){needs}", licence=printable(manifest.licence),
        samples=_samples(interface), version=manifest.bundle_version, digest=bundle.digest(),
    )  # fmt: skip


def _samples(interface: Interface) -> str:
    if interface.samples == "uint8":
        return "8-bit values"
    return "16-bit values. The plugin's documentation names only 8-bit images; the graph was checked with 16-bit ones"


_README = """\
# {title}: change detection in QGIS with Deepness

`{graph}` is a model for the QGIS plugin Deepness: both dates stacked in, the probability of change out.

## Stack both dates

The plugin reads one raster. Both images must have the same grid (size, resolution and coordinate system). With GDAL
3.8 or later, as in QGIS 3.34 and later:

```sh
gdalbuildvrt -separate pair.vrt before.tif after.tif
```

With older versions, which take only the first band of each file:

```sh
gdal_merge.py -separate -o pair.tif before.tif after.tif
```

The result has {both} bands: {bands} of BEFORE, then those of AFTER. If your images have other bands, choose these
first with `gdal_translate -b`.

## Run the plugin

1. Add `pair.vrt` to QGIS, choose it as the input layer of Deepness, and `{graph}` as the model file.
2. Load the default parameters, which are those of the bundle: tile {tile} px, threshold {threshold}, no removal of
   small areas. Resolution: {resolution}.
3. Map the bands of the layer to the channels of the model in their order.

| | value |
|---|---|
| input | `images`, float32 (B, {both}, {tile}, {tile}): {samples}, divided by 255 |
| output | `change`, float32 (B, 1, {tile}, {tile}): probability of change |
| engine | {engine} |
| licence of the weights | {licence} |
| bundle | version {version}, SHA-256 of its manifest {digest} |

Deepness fills tiles at the edges with zeros and predicts areas without data, too; `misgnet-run predict` masks them.
"""

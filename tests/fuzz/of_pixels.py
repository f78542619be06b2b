"""Prepares the targets that read weights, images, rasters and features."""

from __future__ import annotations

import io
import json
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from readers import Prepared, written

from misgnet_runtime.raster.tiling import Span
from support.bundles import FORMATS
from support.bundles import images as make_images


def checkpoint(folder: Path) -> Prepared:
    import torch

    from misgnet.checkpoint import load_checkpoint, read_state, read_tensors
    from misgnet_runtime.errors import MisgnetError
    from support.published import light_state, save_network, snapshot

    whole = light_state(stage_4=False)
    small = {key: whole[key] for key in list(whole)[:4]}
    torch.save(small, folder / "state.pt")
    torch.save(snapshot(small), folder / "snapshot.pt")
    save_network(folder / "network.pt", small)
    path = folder / "weights.pt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(MisgnetError):  # as for a network of another kind
            for tensor in read_state(path)[0].values():
                tensor.read()
        try:
            load_checkpoint(path)
        except MisgnetError:
            read_tensors(path)

    return read, [(folder / f"{name}.pt").read_bytes() for name in ("state", "snapshot", "network")]


def safetensors(folder: Path) -> Prepared:
    import torch
    from safetensors.torch import save

    from misgnet.checkpoint import read_tensors

    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
    tensors = {str(kind): torch.ones((2, 3)).to(kind) for kind in kinds}
    seeds = [save({"a": torch.ones(2, 3), "b": torch.zeros(4)}, {"format": "pt"}), save(tensors)]
    path = folder / "weights.safetensors"
    return written(path, read_tensors), seeds


def onnx_file(folder: Path) -> Prepared:
    import numpy as np
    from onnx import helper, numpy_helper, parser

    from misgnet_export.sources.onnx_file import inspect
    from misgnet_export.sources.onnx_reader import read_model
    from misgnet_export.sources.options import ModelOptions

    body = """(float[1,6,32,32] images) => (float[1,2,32,32] logits) {
        weight = Constant <value = float {0.5}> ()
        scaled = Mul (images, weight)
        turned = Transpose <perm = [0, 1, 3, 2]> (scaled)
        sizes = Constant <value = int64[3] {2, 2, 2}> ()
        first, rest, others = Split <axis = 1> (turned, sizes)
        sum = Add (rest, others)
        logits = Conv <kernel_shape = [1, 1]> (sum, kernel)
    }"""
    plain = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> g {body}')
    plain.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "kernel"))
    called = helper.make_function(
        "own", "f", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [helper.make_opsetid("", 13)]
    )
    outside = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13, "own" : 1]> g {body}')
    outside.functions.append(called)
    outside.graph.node[1].CopyFrom(helper.make_node("f", ["images"], ["scaled"], domain="own"))
    kernel = outside.graph.initializer.add(name="kernel", data_type=1, dims=[2, 2, 1, 1], data_location=1)
    kernel.external_data.add(key="location", value="weights.bin")
    (folder / "weights.bin").write_bytes(bytes(16))
    path = folder / "net.onnx"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        inspect(read_model(path).model, ModelOptions(), "net.onnx")

    return read, [plain.SerializeToString(), outside.SerializeToString()]


def images(folder: Path) -> Prepared:
    from misgnet_runtime.errors import MisgnetError
    from misgnet_runtime.raster.images import image_size, read_image, read_label
    from support.scenes import random_bands, write_raster

    path = folder / "tile.png"  # for all formats, because the name does not matter

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(MisgnetError):
            image_size(path)
            read_label(path)
        for form in FORMATS:
            with suppress(MisgnetError):
                image_size(path, form)
                read_image(path, form)
        read_image(path)

    bands = write_raster(folder / "bands.tif", random_bands(FORMATS[1], 24, 20), crs=None, transform=None)
    return read, [*(_encoded(*form) for form in _FORMS), bands.read_bytes()]


_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}), ("PNG", {"mode": "P"}), ("PNG", {"mode": "1"}), ("JPEG", {}), ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"}), ("TIFF", {"compression": "jpeg"}),
]  # fmt: skip
# Other formats that Pillow or GDAL would recognise by their first bytes.
_TOKENS = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touch pwned) system\n", b"GIF89a", b"BM", b"<VRTDataset>",
    b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x97JB2\r\n\x1a\n",
]  # fmt: skip


def _encoded(form: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(make_images(24, 20)[0])
    image = image.convert(options["mode"]) if "mode" in options else image
    image.save(out, form, **{name: value for name, value in options.items() if name != "mode"})
    return out.getvalue()


def geotiff(folder: Path) -> Prepared:
    from misgnet_runtime.errors import MisgnetError
    from misgnet_runtime.jobs.scene.options import SceneOptions
    from misgnet_runtime.raster.declared import Declared
    from support.scenes import scene, write_raster

    before, after = scene(96, 80)
    good = write_raster(folder / "before.tif", before)
    mask, wide = np.full((96, 80), 255, np.uint8), after.astype(np.uint16)
    forms: list[dict[str, Any]] = [{}, {"compress": "lzw"}, {"compress": "jpeg"}, {"tiled": False}, {"nodata": 0},
                                   {"BIGTIFF": "YES"}, {"mask": mask}]  # fmt: skip
    seeds = [write_raster(folder / f"{n}.tif", after, **form).read_bytes() for n, form in enumerate(forms)]
    seeds.append(write_raster(folder / "wide.tif", wide).read_bytes())
    path = folder / "after.tif"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        errors: list[MisgnetError] = []
        for align, declared in ((False, Declared()), (False, Declared(stretch=(2, 98))), (True, Declared())):
            try:
                _inspect(good, path, SceneOptions(after=declared, align=align))
            except MisgnetError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return read, seeds


def _inspect(before: Path, after: Path, options: Any) -> None:
    from misgnet_runtime.jobs.scene.inputs import inspected
    from misgnet_runtime.raster.reader import open_pair

    with open_pair(before, after, align=options.align) as given, inspected(given, options) as (pair, inputs):
        pair.read(inputs.scalings, Span(0, 64), Span(16, 80))


def area(folder: Path) -> Prepared:
    import pyogrio
    import shapely
    from rasterio.crs import CRS
    from rasterio.transform import from_origin

    from misgnet_runtime.raster.area.area_file import read_area
    from misgnet_runtime.raster.area.placement import place_area
    from misgnet_runtime.raster.grid import Grid

    grid = Grid(200, 200, CRS.from_epsg(32633), from_origin(500_000, 5_000_000, 50, 50))
    ring = [[15, 45.1], [15.1, 45.1], [15.1, 45.15], [15, 45.1]]
    feature = {"type": "Feature", "properties": {"a": 1}, "geometry": {"type": "Polygon", "coordinates": [ring, ring]}}
    several = {
        "type": "MultiPolygon",
        "coordinates": [[ring]],
        "crs": {"type": "name", "properties": {"name": "EPSG:4326"}},
    }
    seeds = [json.dumps(found).encode() for found in ({"type": "FeatureCollection", "features": [feature]}, several)]
    outlines = np.array(shapely.to_wkb([shapely.Polygon(ring), shapely.Polygon(ring)]), object)
    pyogrio.raw.write(folder / "good.gpkg", outlines, [], [], crs="EPSG:4326", geometry_type="Polygon")
    seeds.append((folder / "good.gpkg").read_bytes())
    tempfile.tempdir = str(folder)  # a GeoPackage is read from a copy, which the guard must allow
    return written(folder / "area", lambda path: place_area(read_area(path), grid)), seeds


def features(folder: Path) -> Prepared:
    from misgnet_runtime.bundle.manifest import TensorEntry
    from misgnet_runtime.jobs.series.features import (
        Footer,
        footer_bytes,
        open_features,
        pack,
        record_type,
        valid_pixels,
    )

    features = [TensorEntry("feature1", "float32", [-1, 2, 4, 4], "NCHW")]
    record = record_type(features, 8)
    records = pack(record, [np.ones((4, 2, 4, 4), np.float32)], np.ones((4, 8, 8), np.bool_))
    sums = [zlib.crc32(records[n : n + 1].view(np.uint8).data) for n in range(4)]
    footer = Footer(1, {"the engine": "cpu"}, 8, [0, 6], [0, 6], features, [(0, 0, 4, 4)], sums)
    path = folder / "date.features"

    def read(path: Path) -> None:
        found = open_features(path)
        found.misfit(footer)
        for tile in range(min(len(found.footer.crc32), 8)):
            valid_pixels(found.read(range(tile, tile + 1)), found.footer.tile)

    return written(path, read), [records.tobytes() + footer_bytes(footer)]

"""Lists the targets of the fuzzer: code that reads files from outside, and the strategy that damages good files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import damage
import of_bundles
import of_devices
import of_families
import of_pixels
import of_records
from damage import Files, any_of
from readers import Prepared


@dataclass(frozen=True)
class Target:
    """A target of the fuzzer.

    The limits are for small files. They are lower than misgnet_runtime.limits allows for the largest files, but much
    higher than any of these files needs on a busy machine.
    """

    prepare: Callable[[Path], Prepared]  # called with an empty folder
    files: Callable[[Sequence[bytes]], Files]  # strategy that damages good files
    megabytes: int = 256  # memory limit
    seconds: float = 5  # limit of processor time


# Other formats that Pillow or GDAL would recognise by their first bytes.
_TOKENS = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touch pwned) system\n", b"GIF89a", b"BM", b"<VRTDataset>",
    b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x97JB2\r\n\x1a\n",
]  # fmt: skip
_PICKLE = [
    b"c", b"R", b"b", b"\x81", b"\x93", b"s", b"t", b"u", b"e", b"(", b")", b"}", b"]", b"\x94", b"h\x00", b"Q",
    b"K\x00",
    b"j\x00\x00\x00\x00", b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
]  # fmt: skip
_CSV = [
    b"\0", b'"', b",", b"\n", b"\r", b"../", b"/", b"\xff", b"nan", b"-1", b"1e999", b"9" * 5000, b"x" * 140_000, b"s1",
    b"no", b"\xc2\x85",
]  # fmt: skip
_bytes, _json = damage.damaged_bytes, damage.damaged_json
_csv, _pickle = partial(damage.damaged_bytes, tokens=_CSV), partial(damage.damaged_zip, tokens=_PICKLE)


def _any_image(seeds: Sequence[bytes]) -> Files:
    of = {start: [seed for seed in seeds if seed.startswith(start)] for start in (b"\x89PNG", b"II*\0")}
    formats = [damage.damaged_png(of[b"\x89PNG"]), damage.damaged_tiff(of[b"II*\0"])]
    return damage.damaged_bytes(seeds, _TOKENS) | formats[0] | formats[1]


def _any_geotiff(seeds: Sequence[bytes]) -> Files:
    classic = [seed for seed in seeds if seed.startswith(b"II*\0")]
    return damage.damaged_bytes(seeds, _TOKENS) | damage.damaged_tiff(classic) | damage.damaged_tiff(classic)


def _any_area(seeds: Sequence[bytes]) -> Files:
    return damage.damaged_bytes(seeds) | damage.damaged_json([seed for seed in seeds if seed.startswith(b"{")])


TARGETS = {
    "manifest": Target(of_bundles.manifest, any_of(_json, _json, _bytes), 768),
    "signature": Target(of_bundles.signature, any_of(_json, _bytes)),
    "statement": Target(of_bundles.statement, _json),
    "signed-manifest": Target(of_bundles.signed_manifest, _json),
    "accepted": Target(of_bundles.accepted, any_of(_json, _bytes)),
    "key": Target(of_bundles.key, _bytes),
    "checkpoint": Target(of_pixels.checkpoint, any_of(_pickle, _pickle, _bytes)),
    "safetensors": Target(of_pixels.safetensors, any_of(damage.damaged_safetensors, _bytes)),
    "onnx": Target(of_pixels.onnx_file, any_of(damage.damaged_onnx, damage.damaged_onnx, _bytes)),
    "images": Target(of_pixels.images, _any_image, 1024, seconds=20),
    "geotiff": Target(of_pixels.geotiff, _any_geotiff, 1536, seconds=20),
    "area": Target(of_pixels.area, _any_area, 768, seconds=20),
    "scene-journal": Target(of_records.scene_journal, any_of(damage.damaged_lines, _bytes)),
    "folder-record": Target(of_records.folder_record, any_of(damage.damaged_lines, _bytes)),
    "watch-journal": Target(of_records.watch_journal, any_of(damage.damaged_lines, _bytes)),
    "batch-record": Target(of_records.batch_record, any_of(damage.damaged_lines, _bytes)),
    "dataset-record": Target(of_records.dataset_record, any_of(damage.damaged_lines, _bytes)),
    "features": Target(of_pixels.features, any_of(damage.damaged_features, _bytes)),
    "golden": Target(of_bundles.golden, any_of(damage.damaged_zip, _bytes), 640),
    "evaluation": Target(of_devices.evaluation, any_of(damage.damaged_zip, _bytes), 640),
    "observations": Target(of_devices.observations, any_of(damage.damaged_zip, _bytes), 640),
    "plans": Target(of_devices.plans, any_of(_json, _bytes)),
    "tuning": Target(of_bundles.tuning, any_of(_json, _bytes)),
    "table": Target(of_records.table, any_of(damage.damaged_table, damage.damaged_table, _csv)),
    "stac-item": Target(of_records.stac_item, any_of(_json, _json, _bytes)),
    "manifest-names": Target(of_families.manifest_names, of_families.renamed, 768),
    "geotiff-families": Target(of_families.geotiff, of_families.rasters, 1536, seconds=20),
    "table-families": Target(of_families.table, of_families.tables, seconds=20),
}

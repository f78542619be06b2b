"""What a bundle holds, for a person."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.choice import ranked
from misgnet_runtime.engines import open_engine_file
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.manifest import EngineEntry


def print_info(path: Path, console: Console) -> None:
    """Print engines, quantization, files and whether each engine opens here; digests are checked first."""
    bundle = read_bundle(path)
    m = bundle.manifest
    console.print(f"bundle {path}, version {m.bundle_version}, made {m.created}, licence: {m.licence}", soft_wrap=True, markup=False)
    console.print(f"tile {m.tile} px, threshold {m.threshold:g}, classes {', '.join(m.class_names)}, weights {m.source_weights_sha256[:16]}", soft_wrap=True)
    console.print(_engines(bundle))
    console.print(_quantization(bundle))
    console.print(_files(bundle))


def _engines(bundle: Bundle) -> Table:
    table = Table("engine", "precision", "F1", "drop (points)", "on this machine", title="Engines, fastest kind first")
    results = {e["engine"]: e for e in bundle.manifest.metrics.get("engines", [])}
    for entry in ranked(bundle.manifest.engines):
        result = results.get(entry.name, {})
        table.add_row(
            entry.name, entry.precision, _number(result.get("scores", {}).get("f1"), 4),
            _number(result.get("f1_drop_points"), 3), Text(_here(bundle, entry)),
        )  # fmt: skip
    return table


def _here(bundle: Bundle, entry: EngineEntry) -> str:
    try:
        with open_engine_file(entry, bundle.path, bundle.manifest.interface.max_batch) as engine:
            return f"runs on {engine.device}"
    except UnavailableError as error:
        return f"does not run: {error}"


def _quantization(bundle: Bundle) -> Table:
    table = Table("graph", "INT8 operators", "share of multiply-adds", "weight bits", "kept float32", title="Quantization")
    for q in bundle.manifest.quantization:
        share = f"{100 * q.int8_share_of_multiply_adds:.1f} %"
        table.add_row(q.graph, str(q.quantized_nodes), share, str(q.weight_bits), str(len(q.float32_nodes)))
    return table


def _files(bundle: Bundle) -> Table:
    table = Table("file", "role", "precision", "MB", "SHA-256", title="Files")
    for entry in bundle.manifest.files:
        table.add_row(entry.path, entry.role, entry.precision or "", f"{entry.size / 1e6:.2f}", entry.sha256[:12])
    return table


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"

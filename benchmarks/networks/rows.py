"""Reads a bundle's manifest and evidence into a row of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from msgspec import structs

from benchmarks.contest.share import costs_of
from benchmarks.networks.report import Comparison, Row, doubts
from misgnet_runtime.bundle import Manifest, read_bundle

FLOAT_GRAPH = "graphs/float.onnx"
HERE = ("onnxruntime", "openvino")  # kinds of engines that are compared with the network


def engines_here(manifest: Manifest) -> dict[str, str]:
    """Returns the precision of each engine that runs on the CPU, by name."""
    return {entry.name: entry.precision for entry in manifest.engines if entry.kind in HERE}


def completed(row: Row, bundle: Path, compared: dict[str, Any], rtx: str) -> Row:
    """Returns ``row`` with the figures of a bundle.

    Args:
        row: What is known of the network.
        bundle: Folder of the bundle.
        compared: The reply of ``guests/compare.py`` for the engines of the bundle that run here.
        rtx: Why plans for RTX GPUs are missing; empty if the build was asked for them.
    """
    manifest = read_bundle(bundle).manifest
    precisions = engines_here(manifest)
    graph = onnx.load(bundle / FLOAT_GRAPH, load_external_data=False)
    timings, parity = (_evidence(bundle, name) for name in ("throughput", "parity"))
    stated = manifest.model.parameters if manifest.model else None
    found = structs.replace(
        row, parameters=stated or row.parameters, threshold=manifest.threshold, f1=compared["network"]["f1"],
        changed=compared["network"]["changed"], nodes=len(graph.graph.node), macs=sum(costs_of(graph).values()),
        int8_share={one.recipe: one.shares()["int8"] for one in manifest.quantization if one.weight_bits <= 8},
        engines={name: Comparison(precisions[name], **figures) for name, figures in compared["engines"].items()},
        pairs_per_second=_speeds(timings["timings"], precisions), rtx=_rtx(manifest, rtx),
        notes=[*row.notes, *map(_left_out, parity.get("left_out", [])), *_emptied(manifest)],
    )  # fmt: skip
    return structs.replace(found, wrong=doubts(found))


def _speeds(timings: list[dict[str, Any]], precisions: dict[str, str]) -> dict[str, float]:
    """Returns pairs/s by engine: single pairs, one stream. A float graph that stands in for an INT8 one is left out."""
    return {
        one["engine"]: one["pairs_per_second"]
        for one in reversed(timings)  # the first of several is the one that the table of the build shows
        if one["batch"] == 1 and one["streams"] == 1
        and not (one["engine"] == "cpu" and precisions.get("cpu") == "float32")
    }  # fmt: skip


def _rtx(manifest: Manifest, reason: str) -> str:
    if reason:
        return f"no: {reason}"
    plans = sorted(entry.precision for entry in manifest.engines if entry.kind == "rtx")
    return f"yes: {', '.join(plans)}" if plans else "no: left out"


def _emptied(manifest: Manifest) -> list[str]:
    """Returns a note about each INT8 graph without an operator in INT8: accuracy control returned all to float."""
    return [
        f"nothing is left in INT8 in the graph for {one.recipe}: accuracy control returned all of it to float"
        for one in manifest.quantization
        if one.weight_bits <= 8 and not one.quantized_nodes
    ]


def _left_out(engine: dict[str, Any]) -> str:
    return f"{engine['engine']} in {engine['precision']} was left out: {engine['verdict']['reason']}"


def _evidence(bundle: Path, name: str) -> Any:
    return json.loads((bundle / "evidence" / f"{name}.json").read_bytes())

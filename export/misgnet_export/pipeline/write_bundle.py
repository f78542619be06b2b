"""Writes a bundle's manifest and evidence, or a rejected build's evidence alone."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from misgnet_calibration.statistics.tile_selection import Selection
from misgnet_export.evidence import decode_plan_record
from misgnet_export.pipeline.config import write_config
from misgnet_export.pipeline.request import BuildRequest
from misgnet_export.pipeline.result import FLOAT_GRAPH, Draft, GraphFile, lowest
from misgnet_export.pipeline.ship_tiles import EVALUATION, GOLDEN
from misgnet_export.report import ReportData, render
from misgnet_export.report.control import draw_control
from misgnet_export.report.html import short_path
from misgnet_runtime.accuracy.evaluation_tiles import ROLE
from misgnet_runtime.accuracy.parity import ParityReport
from misgnet_runtime.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Calibration,
    Manifest,
    SplitEntry,
    describe_files,
)
from misgnet_runtime.formatting import plural, timestamp
from misgnet_runtime.machine import describe_machine, installed_versions
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.schema import encode

_TOOLS = (
    "misgnet-export", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu", "numpy", "openvino",
    "tensorrt-rtx", "tensorrt",
)  # fmt: skip


def write_bundle(root: Path, request: BuildRequest, draft: Draft, stages: list[tuple[str, float, str]]) -> None:
    """Writes the evidence and, last, the manifest of all files below ``root``."""
    _write_evidence(root / "evidence", request, draft, stages)
    manifest = _manifest(root, request, draft)
    (root / MANIFEST).write_bytes(encode(manifest))


def write_rejected(root: Path, request: BuildRequest, draft: Draft, stages: list[tuple[str, float, str]]) -> None:
    """Writes the evidence of a build that failed the gate; no graphs, engines or manifest."""
    _write_evidence(root, request, draft, stages)


def _write_evidence(folder: Path, request: BuildRequest, draft: Draft, stages: list[tuple[str, float, str]]) -> None:
    folder.mkdir(exist_ok=True)
    machine = describe_machine()
    (folder / "parity.json").write_bytes(encode(draft.evidence.parity))
    throughput = {"machine": machine, "timings": draft.evidence.timings}
    (folder / "throughput.json").write_bytes(encode(throughput))
    if draft.sets.selection is not None:
        (folder / "selection.json").write_bytes(encode(_selection(draft.sets.selection, draft.sets.chosen)))
    for graph in _all_graphs(draft):
        if graph.control is not None:
            (folder / f"control_{graph.name}.json").write_bytes(encode(graph.control))
            draw_control(graph.control, folder, f"control_{graph.name}")
    build = {"stages": [{"name": n, "seconds": round(s, 2), "finding": f} for n, s, f in stages], "machine": machine}
    (folder / "build.json").write_bytes(encode(build))
    plans = [decode_plan_record(path.name, path.read_bytes()) for path in sorted(folder.glob("plan_*.json"))]
    report = replace(_report_data(request, draft, stages, machine), plans=plans)
    (folder / "report.html").write_text(render(report), encoding="utf-8")


def _selection(found: Selection, how: str) -> dict[str, Any]:
    """Returns the selected calibration tiles and the reasons, as JSON."""
    return {
        "how": how,
        "strata": [asdict(stratum) for stratum in found.strata],
        "tiles": [asdict(tile) for tile in found.picked],
    }


def _report_data(
    request: BuildRequest, draft: Draft, stages: list[tuple[str, float, str]], machine: dict[str, Any]
) -> ReportData:
    calib, side = draft.sets.calib, draft.interface.tile
    return ReportData(
        title=f"Bundle “{request.output.name}”",
        created=timestamp(),
        passed=draft.evidence.parity.passed,
        summary=[
            ("Network", f"{draft.source.entry.name}, SHA-256 {draft.source.sha256[:16]}"),
            ("Network's form", "; ".join(draft.source.findings)),
            ("Tile", f"{side} x {side} px, {_tile_from(request, draft)}, batch 1 to {draft.interface.max_batch}"),
            ("Targets", ", ".join(t.name for t in request.targets)),
            *([] if request.float_graph else [("Float graph", "left out of the bundle after it was evaluated")]),
            (
                "Calibration",
                f"{plural(len(calib), 'tile')} of {plural(len(calib.sources), 'image')} from "
                f"{short_path(str(request.calib))}, "
                f"seed {request.seed}",
            ),
            (
                "Decisions",
                f"made on {short_path(str(request.val))}" if request.val else "defaults: no validation set was given",
            ),
            *([("Overlap", f"{draft.overlap.overlap} px, {draft.overlap.reason}")] if draft.overlap else []),
            ("Threshold", f"{draft.evidence.parity.threshold:g}, {_threshold_from(draft)}"),
        ],
        parity=draft.evidence.parity,
        warnings=draft.evidence.warnings,
        timings=draft.evidence.timings,
        machine=machine,
        stages=stages,
        files=[(g.file, g.size) for g in draft.graphs],
        pictures=dict(draft.evidence.pictures),
        repairs={
            g.name: g.quantization.repairs for g in _all_graphs(draft) if g.quantization and g.quantization.repairs
        },
        controls={g.name: g.control for g in _all_graphs(draft) if g.control},
        sizes=draft.tile.measured if draft.tile else [],
        overlaps=draft.overlap.measured if draft.overlap else [],
        overlap=draft.overlap.overlap if draft.overlap else 0,
    )


def _all_graphs(draft: Draft) -> list[GraphFile]:
    """Returns all graphs that were made, also those of engines that were left out."""
    return [*draft.graphs, *draft.dropped]


def _tile_from(request: BuildRequest, draft: Draft) -> str:
    if draft.tile is not None:
        return draft.tile.reason
    if request.tile is not None:
        return "given"
    return "the default" if draft.source.fixed_tile is None else "the only size that the network accepts"


def _threshold_from(draft: Draft) -> str:
    return f"tuned: {draft.tuned}" if draft.tuned else "given"


def _manifest(root: Path, request: BuildRequest, draft: Draft) -> Manifest:
    interface, overlap = draft.interface, draft.overlap
    assert overlap is not None, "the gate passed"
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_version=request.bundle_version,
        created=timestamp(),
        tile=interface.tile,
        tile_from=_tile_from(request, draft),
        tiles=draft.tile.measured if draft.tile else [],
        overlap=overlap.overlap,
        overlap_from=overlap.reason,
        overlaps=overlap.measured,
        threshold=draft.evidence.parity.threshold,
        threshold_from=_threshold_from(draft),
        class_names=["unchanged", "changed"],
        interface=interface,
        inputs=interface.inputs(),
        outputs=interface.outputs(),
        preprocessing=interface.preprocessing(),
        source_weights_sha256=draft.source.sha256,
        model=draft.source.entry,
        config=write_config(replace(request, tile=interface.tile, max_batch=interface.max_batch), comments=False),
        calibration=_calibration(request, draft),
        quantization=[g.quantization for g in draft.graphs if g.quantization],
        engines=draft.engines,
        files=describe_files(root, _roles(root, draft)),
        max_f1_drop=draft.evidence.parity.max_f1_drop,
        min_f1_ratio=draft.evidence.parity.min_f1_ratio,
        gate=draft.evidence.parity.gate,
        features=draft.graphs[0].features,
        metrics=parity_summary(draft.evidence.parity),
        latency={"timings": msgspec.to_builtins(draft.evidence.timings)},
        tool_versions=tool_versions(),
        machine=describe_machine(),
        licence=request.licence,
        float_graph=request.float_graph,
    )


def parity_summary(parity: ParityReport) -> dict[str, Any]:
    """Returns the manifest's copy of the evidence: all scores, but not those of single tiles."""
    found: dict[str, Any] = msgspec.to_builtins(parity)
    for name in ("engines", "left_out"):
        found[name] = [{k: v for k, v in e.items() if k not in ("tiles", "worst_tiles")} for e in found[name]]
    return found


def tool_versions() -> dict[str, str]:
    """Returns the versions of the installed tools that take part in a build."""
    return {"python": platform.python_version(), **installed_versions(_TOOLS)}


def _calibration(request: BuildRequest, draft: Draft) -> Calibration:
    decision = draft.sets.decision
    return Calibration(
        tiles=len(draft.sets.calib),
        tiles_sha256=draft.sets.calib.digest(),
        seed=request.seed,
        decided_on=_decided_on(request, decision),
        selection=draft.sets.chosen,
    )


def _decided_on(request: BuildRequest, decision: TileSet | None) -> str:
    if request.observer != "auto":
        return f"no tiles: --observer {request.observer} was given"
    return plural(len(decision), "validation tile") if decision else "no tiles: the default calibrator"


def _roles(root: Path, draft: Draft) -> dict[str, tuple[str, str | None]]:
    roles: dict[str, tuple[str, str | None]] = {
        g.file: ("float graph" if g.file == FLOAT_GRAPH else f"{lowest(g.precision)} graph for {g.name}", g.precision)
        for g in draft.graphs
    }
    for graph in draft.graphs:
        roles |= _part_roles(graph.split, f"graph for {graph.name}", graph.precision)
    for engine in draft.engines:
        found = {engine.file: ("engine", engine.precision)}
        roles = found | _part_roles(engine.split, f"of {engine.name}", engine.precision) | roles
    roles[GOLDEN] = ("golden tiles", None)
    for folder, role in (("evidence", "evidence"), (EVALUATION, ROLE)):
        roles |= {path.relative_to(root).as_posix(): (role, None) for path in (root / folder).glob("*")}
    return roles


def _part_roles(split: SplitEntry | None, of: str, precision: str) -> dict[str, tuple[str, str | None]]:
    return {split.encoder: (f"encoder {of}", precision), split.head: (f"head {of}", precision)} if split else {}

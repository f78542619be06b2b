"""Evaluates an existing bundle against its own float graph, in CI or on the user's own images; needs no torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from misgnet_export.pipeline.evaluate import evaluate_engines, evaluate_reference, open_for_evaluation
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import AccuracyPolicy
from misgnet_export.pipeline.tiles import open_tiles
from misgnet_export.report import junit_xml
from misgnet_runtime.accuracy.limit import F1Limit, limit_of
from misgnet_runtime.accuracy.parity import ParityReport
from misgnet_runtime.bundle import GateRule, read_bundle
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.detector import ChangeDetector, tile_per_stream
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.schema import encode


def reparity(
    path: Path, evaluation: Path, limit: F1Limit | None, gate: GateRule | None, console: Console
) -> ParityReport:
    """Evaluates every engine of the bundle on ``evaluation``.

    Args:
        path: The bundle.
        evaluation: Folder of the evaluation set.
        limit: Allowed F1 drop, or required F1 ratio; None: as recorded in the bundle.
        gate: Gate rule; None: as recorded in the bundle.
        console: Console for progress.

    Raises:
        InputError: The bundle's files do not match its manifest, which is checked before any engine is opened, or it
            has no float graph.
    """
    log = StageLog(console)
    with log.stage("check the bundle's digests"):
        bundle = read_bundle(path)
    floats = [e for e in bundle.manifest.engines if e.precision == "float32"]
    if not floats:
        raise InputError(
            f"bundle {path} has no float graph, which `misgnet-export parity` compares engines with; build the bundle "
            "without --no-float-graph"
        )
    interface = bundle.manifest.interface
    tiles = open_tiles(evaluation, interface)
    others = [e for e in bundle.manifest.engines if e is not floats[0]]
    manifest = bundle.manifest
    policy = AccuracyPolicy(threshold=manifest.threshold, limit=limit or limit_of(manifest), gate=gate or manifest.gate)
    with (
        ChangeDetector(open_for_evaluation(floats[0], bundle.files, interface), interface) as detector,
        tile_per_stream(detector) as predict,
    ):
        reference = evaluate_reference("the bundle's float graph", predict, tiles, policy, log)
    return evaluate_engines(
        others, tiles, reference, files=bundle.files, interface=interface, policy=policy, log=log
    )[0]  # fmt: skip


def write_results(
    report: ParityReport, json_file: Path | None, junit_file: Path | None, *, accept_proxy: bool, force: bool
) -> None:
    """Writes the evidence files; with ``accept_proxy``, an engine that passes by proxy counts as passed in JUnit."""
    for path, data in ((json_file, encode(report)), (junit_file, junit_xml(report, accept_proxy=accept_proxy))):
        if path is not None:
            write_file(path, data, force=force)

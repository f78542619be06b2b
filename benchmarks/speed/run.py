"""Runs the speed benchmark from a bundle and its weights, and returns the report."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from benchmarks.contest import kept
from benchmarks.contest.contenders import PEERS, Contender
from benchmarks.contest.environments import interpreters
from benchmarks.contest.guest import ContenderFailed
from benchmarks.contest.handover import hand_over
from benchmarks.contest.ours import Sets, open_sets
from benchmarks.contest.peers import Source, quantized, step
from benchmarks.contest.start import open_start, straight_graph
from benchmarks.speed.entrants import (
    COMPILED,
    EAGER,
    Context,
    Entrant,
    bundle_engines,
    networks,
    quantized_peers,
    straight_exports,
)
from benchmarks.speed.peaks import measure_peaks, multipliers
from benchmarks.speed.predictions import Exam, examine
from benchmarks.speed.race import Course, race
from benchmarks.speed.ratios import timed_rows
from benchmarks.speed.report import Absent, Report
from benchmarks.speed.scene import commands, make_pair, measure_scene
from benchmarks.speed.targets import targets_of
from benchmarks.speed.work import work_of
from misgnet_export.pipeline.targets import PRODUCTS
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.machine import describe_machine, fits_processor
from misgnet_runtime.storage.snapshot import Snapshot

QUANTIZERS = tuple(peer for peer in PEERS if peer.key in ("quantize_static", "nncf", "nncf-transformer", "nncf-guide"))
SCENE = "scene"
SKIPPABLE = (EAGER, COMPILED, *(peer.key for peer in QUANTIZERS), SCENE)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    start: Path
    weights: Path | None
    calib: Path
    val: Path | None
    evaluation: Path
    cache: Path
    threads: int
    rounds: int
    seconds: float
    # Minutes per step.
    limit: float
    # Number of evaluation tiles (default: all).
    eval_tiles: int | None = None
    # Side of the scene in pixels, and its rounds.
    scene_side: int = 4096
    scene_rounds: int = 3
    # Keys of :data:`SKIPPABLE`.
    skip: tuple[str, ...] = ()

    def build_options(self) -> list[str]:
        """Returns the options of a build from WEIGHTS for all CPU targets that run on this processor."""
        sets = ["--calib", str(self.calib), "--eval", str(self.evaluation)]
        sets += ["--val", str(self.val)] if self.val else []
        return [*sets, *(word for target in targets_here() for word in ("--target", target))]


def targets_here() -> list[str]:
    """Returns the CPU targets that run on this processor."""
    on_cpu = {name: product for name, product in PRODUCTS.items() if product.engine in ("onnxruntime", "openvino")}
    return [name for name, product in on_cpu.items() if fits_processor(product.needs)]


def run(options: Options, work: Path) -> Report:
    """Prepares, scores and times all contenders, and measures whole paths on a scene.

    ``work``: folder for graphs, tiles, predictions and logs.
    """
    load_before = os.getloadavg()[0]
    limit_s = 60 * options.limit
    bundle, weights = open_start(options.start, options.weights, options.build_options(), work)
    interface = bundle.manifest.interface
    sets = _some(open_sets(bundle, options.calib, options.evaluation), options.eval_tiles)
    snapshot = Snapshot([weights])
    weights_sha256 = snapshot.sha256(weights)
    straight = straight_graph(weights, interface, work)
    with step("writing the tiles"):
        calibration = hand_over(sets.calibration, interface, work / "calibration")
        evaluation = hand_over(sets.evaluation, interface, work / "evaluation")
        pair = None
        if SCENE not in options.skip:
            pair = make_pair(options.evaluation, options.scene_side, kept.emptied(work / "scene"))
    python_of = interpreters(options.cache, limit_s)
    context = Context(
        bundle=bundle,
        weights=weights,
        straight=straight,
        python_of=python_of,
        threads=options.threads,
        work=work,
    )
    source = Source(
        graph=straight,
        calibration=sets.calibration,
        handed=calibration,
        work=work,
        python_of=python_of,
        limit_s=limit_s,
    )
    entrants, absent = line_up(context, source, options.skip)
    exam = Exam(
        tiles=sets.evaluation,
        handed=evaluation,
        interface=interface,
        threshold=bundle.manifest.threshold,
        threads=options.threads,
        work=work,
        limit_s=limit_s,
    )
    examined, duplicates = examine(exam, entrants)
    course = Course(
        tiles=evaluation,
        threads=options.threads,
        rounds=options.rounds,
        seconds=options.seconds,
        work=work,
        limit_s=limit_s,
    )
    times, product = race(course, [entrant for row, entrant in examined if not row.failed])
    peaks = measure_peaks(course, multipliers(python_of, options.threads))
    work_of_pair = work_of(onnx.load(straight))
    rows = timed_rows([row for row, _ in examined], times, work_of_pair, peaks)
    scene = measure_scene(replace(course, rounds=options.scene_rounds), pair, commands(context, pair)) if pair else None
    snapshot.check()  # each entrant read the weights itself
    machine = describe_machine()
    return Report(
        timestamp(), machine,
        {name: getattr(options, name) for name in ("threads", "rounds", "seconds", "scene_rounds")}, sets.summary(),
        bundle.digest(), weights_sha256, work_of_pair, rows, [*absent, *duplicates], product, peaks, scene,
        targets_of(rows, scene, machine["features"]), load_before, os.getloadavg()[0],
    )  # fmt: skip


def line_up(context: Context, source: Source, skipped: Collection[str] = ()) -> tuple[list[Entrant], list[Absent]]:
    """Returns all entrants, the straight export in ONNX Runtime first, and those without a row. ``skipped``: keys."""
    wanted = [network for network in networks(context) if network.key not in skipped]
    entrants = [*straight_exports(context), *wanted]
    for peer in QUANTIZERS:
        if peer.key not in skipped:
            entrants += quantized_peers(context, peer, *_quantized(source, peer))
    ours, absent = bundle_engines(context)
    return [*entrants, *ours], [*(Absent(f"`{key}`", "skipped by --skip") for key in skipped), *absent]


def _quantized(source: Source, peer: Contender) -> tuple[Path | ContenderFailed, dict[str, str]]:
    """Returns the peer's graph, or why it failed, and the versions of its tools."""
    with step(f"{peer.title}: quantizing"):
        try:
            graph, reply = quantized(source, peer)
        except ContenderFailed as error:
            return error, {}
    return graph, reply["versions"]


def _some(sets: Sets, count: int | None) -> Sets:
    if count is None or count >= len(sets.evaluation):
        return sets
    return Sets(sets.calibration, sets.chosen, sets.evaluation.subset(range(count)))

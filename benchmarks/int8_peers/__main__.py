"""Compares INT8 quantizers with this project's: same weights, calibration tiles and test set.

    python -m benchmarks.int8_peers BUNDLE --weights WEIGHTS --calib DATA/train --eval DATA/test [--json FILE]
    python -m benchmarks.int8_peers WEIGHTS --calib DATA/train --val DATA/val --eval DATA/test [--json FILE]

Run it from the root of the checkout. BUNDLE must have been built from WEIGHTS by ``misgnet-export build`` with a CPU
target; if only WEIGHTS are given, a bundle is built first. Contenders: onnxruntime's quantize_static, NVIDIA
Model-Optimizer, and NNCF with OpenVINO and both of its presets, all of them starting from the straight export of the
weights, and that export in float. Each contender has its own virtual environment, installed in --cache on first use
(several gigabytes from PyPI), and its own processes. A contender that fails has a row with the reason. The table goes
to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.commands import add_contest_options, new_parser, report_errors
from benchmarks.contest import kept
from benchmarks.contest.contenders import FLOAT, ONNX_RUNTIME, OURS, PEERS
from benchmarks.contest.environments import interpreters
from benchmarks.contest.ours import Recorded, Sets, open_sets, recorded
from benchmarks.contest.start import open_start, straight_graph
from benchmarks.int8_peers.comparison import compare
from benchmarks.int8_peers.graphs import Task
from benchmarks.int8_peers.report import Made, Report, Row, table
from misgnet_runtime.bundle import Bundle
from misgnet_runtime.errors import UsageError
from misgnet_runtime.machine import describe_machine
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.schema import encode

_INT8 = "int8 graph for cpu"  # role of the INT8 graph in the manifest
_SAME = ((FLOAT, "cpu-float32"), (OURS, "cpu"))  # contenders, and the bundle's engines with the same graph


def main() -> None:
    options = _parser().parse_args()
    with report_errors():
        with kept.work_folder(options.keep) as work:
            report = run(options, work)
        if options.json:
            write_file(options.json, encode(report))
    print(table(report))


def run(options: argparse.Namespace, work: Path) -> Report:
    """Builds or opens the bundle, compares, and checks the baseline against the bundle's own evidence."""
    if options.start.is_dir() and options.calib_tiles:
        raise UsageError("--calib-tiles requires WEIGHTS; a BUNDLE is compared on the tiles it was calibrated with")
    bundle, weights = open_start(options.start, options.weights, _build_options(options), work)
    float_graph = straight_graph(weights, bundle.manifest.interface, work)
    own_graph = bundle.file(bundle.manifest.file(_INT8).path)
    sets = open_sets(bundle, options.calib, options.evaluation)
    known = recorded(bundle)
    task = Task(
        float_graph=float_graph, own_graph=own_graph, own=_own_made(own_graph, known, bundle),
        own_notes=_own_notes(known), interface=bundle.manifest.interface, threshold=bundle.manifest.threshold,
        calibration=sets.calibration, evaluation=sets.evaluation, work=work,
        python_of=interpreters(options.cache, 60 * options.limit), threads=options.threads, rounds=options.rounds,
        seconds=options.seconds, limit_s=60 * options.limit,
        peers=tuple(peer for peer in PEERS if not options.only or peer.key in options.only),
    )  # fmt: skip
    settings = {name: getattr(options, name) for name in ("threads", "rounds", "seconds")}
    settings["load_before"] = round(os.getloadavg()[0], 1)  # other use of the cores
    rows = compare(task)
    return Report(describe_machine(), settings, sets.summary(), check(rows, known, sets), rows)


def check(rows: list[Row], known: Recorded, sets: Sets) -> str:
    """Compares the F1 of this run with the bundle's own evidence, and returns a sentence for the report."""
    if known.evaluation_sha256 != sets.evaluation.digest():
        return "The bundle was evaluated on another set, so its F1 cannot be compared with these."
    found = {row.contender: row.f1 for row in rows if row.engine == ONNX_RUNTIME.name and row.f1 is not None}
    pairs = [(found[ours], known.f1[theirs]) for ours, theirs in _SAME if ours in found and theirs in known.f1]
    if not pairs:
        return "There is no F1 to compare with the bundle's own evidence."
    values = "; ".join(f"{here:.4f} here, {there:.4f} there" for here, there in pairs)
    close = all(abs(here - there) < 5e-5 for here, there in pairs)
    return (
        f"F1 of the float graph and of this project's {'equals' if close else 'DIFFERS FROM'} the bundle's: {values}."
    )


def _own_made(graph: Path, known: Recorded, bundle: Bundle) -> Made:
    tools = bundle.manifest.tool_versions
    return Made(graph.stat().st_size / 1e6, known.seconds, None, tools)


def _own_notes(known: Recorded) -> tuple[str, ...]:
    stages = ", ".join(known.stages)
    return (f"seconds are those of the build stages ({stages}); their memory is not measured separately",)


def _build_options(options: argparse.Namespace) -> list[str]:
    sets = ["--calib", str(options.calib), "--eval", str(options.evaluation)]
    sets += ["--val", str(options.val)] if options.val else []
    sets += ["--calib-tiles", str(options.calib_tiles)] if options.calib_tiles else []
    return [*sets, "--target", "cpu"]


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("int8_peers", __doc__)
    add_contest_options(parser, seconds=1.0)
    add = parser.add_argument
    add("--calib-tiles", type=int, help="Calibration tiles of a build from WEIGHTS (default: 128).")
    add("--only", nargs="+", choices=[peer.key for peer in PEERS],
        help="Only these contenders, beside float and this project (default: all).")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()

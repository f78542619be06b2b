"""Profiles the operators of a graph in the CPU engines.

    python -m benchmarks.operators BUNDLE [--graph FILE.onnx ...] [--calls 20] [--json FILE]

Run it from the root of the checkout, on an idle machine. It profiles the bundle's graphs for ONNX Runtime and OpenVINO,
its float graph in both, and the graphs of ``--graph`` in both, such as a straight export kept by
``benchmarks.speed --keep``. The inputs are the golden tiles of the bundle, one pair at a time. Times are measured by
the engines themselves, which adds some overhead; they are summed over nodes, and the median over the calls is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import field

from benchmarks.commands import new_parser, report_errors
from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.bundle.golden import read_golden
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.detector import arrays_for
from misgnet_runtime.machine import describe_machine, installed_versions, machine_line
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.schema import Struct, encode

Feed = dict[str, np.ndarray]
# Runs a graph on one pair after the other; returns operator, kernel and milliseconds of each node of each call.
Profiler = Callable[[Path, list[Feed]], list[list[tuple[str, str, float]]]]

WARM_UP = 3
SHOWN = 12


class Operator(Struct, frozen=True):
    """All nodes with the same operator and kernel."""

    operator: str
    kernel: str
    # Number of nodes.
    nodes: int
    # Milliseconds per call.
    ms: float
    # Share of the time of all operators.
    share: float


class Profile(Struct, frozen=True):
    """The profile of one graph in one engine."""

    graph: str
    engine: str
    ms: float = 0.0
    operators: list[Operator] = field(default_factory=list)
    # Why the graph could not be profiled.
    failed: str = ""


class Report(Struct, frozen=True):
    """All profiles, and the conditions of the measurement."""

    machine: dict[str, Any]
    versions: dict[str, str]
    load_before: float
    calls: int
    profiles: list[Profile]


def in_onnxruntime(graph: Path, feeds: list[Feed]) -> list[list[tuple[str, str, float]]]:
    """Profiles ``graph`` in ONNX Runtime, opened as in the runtime; the nodes are those of the optimised graph."""
    import onnxruntime

    from misgnet_runtime.engines.onnxruntime import DISABLED_OPTIMIZERS, session_options

    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
        )
        for feed in feeds:
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _of_events(events)


def _of_events(events: Iterable[dict[str, Any]]) -> list[list[tuple[str, str, float]]]:
    """Groups node events by call: each call ends with a ``model_run`` event. Durations are in microseconds."""
    calls: list[list[tuple[str, str, float]]] = [[]]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            calls[-1].append((operator, "", event["dur"] / 1000))
        elif event["name"] == "model_run":
            calls.append([])
    return [call for call in calls if call]


def in_openvino(graph: Path, feeds: list[Feed]) -> list[list[tuple[str, str, float]]]:
    """Profiles ``graph`` with OpenVINO's performance counters, compiled for one pair as in the runtime."""
    from misgnet_runtime.engines.openvino import compile_options, fix_batch, load_openvino

    openvino = load_openvino()
    core = openvino.Core()
    model = core.read_model(graph)
    fix_batch(openvino, model)
    call = core.compile_model(model, "CPU", {**compile_options("f32"), "PERF_COUNT": True}).create_infer_request()
    found = []
    for feed in feeds:
        call.infer(feed)
        found.append([(i.node_type, i.exec_type, i.real_time.total_seconds() * 1000) for i in call.profiling_info])
    return found


PROFILERS: dict[str, tuple[str, Profiler]] = {
    "onnxruntime": ("ONNX Runtime", in_onnxruntime),
    "openvino": ("OpenVINO", in_openvino),
}


def profile(name: str, kind: str, graph: Path, feeds: list[Feed]) -> Profile:
    """Profiles ``graph`` on all ``feeds``; the first :data:`WARM_UP` ones are not counted."""
    title, profiler = PROFILERS[kind]
    print(f"{name} in {title}", file=sys.stderr, flush=True)
    try:
        calls = profiler(graph, feeds)[WARM_UP:]
    except UnavailableError as error:
        return Profile(name, title, failed=str(error))
    operators = summed(calls)
    return Profile(name, title, sum(o.ms for o in operators), operators)


def summed(calls: list[list[tuple[str, str, float]]]) -> list[Operator]:
    """Returns the median time over the calls for each operator and kernel, the longest first."""
    kinds: dict[tuple[str, str], list[list[float]]] = defaultdict(lambda: [[] for _ in calls])
    for index, call in enumerate(calls):
        for operator, kernel, ms in call:
            kinds[operator, kernel][index].append(ms)
    medians = {kind: statistics.median(map(sum, times)) for kind, times in kinds.items()}
    total = sum(medians.values()) or 1.0
    found = [Operator(*kind, max(map(len, kinds[kind])), ms, ms / total) for kind, ms in medians.items()]
    return sorted(found, key=lambda o: -o.ms)


def graphs_of(bundle: Bundle, others: list[Path]) -> list[tuple[str, str, Path]]:
    """Returns (name, kind of engine, graph): the float graph and ``others`` for every kind, then the INT8 graphs."""
    manifest = bundle.manifest
    every = [("float graph", bundle.file(manifest.file("float graph").path)), *((path.name, path) for path in others)]
    found = [(name, kind, path) for name, path in every for kind in PROFILERS]
    return found + [
        (entry.name, entry.kind, bundle.file(entry.graph))
        for entry in manifest.engines
        if entry.kind in PROFILERS and "int8" in entry.precision
    ]


def feeds_of(bundle: Bundle, calls: int) -> list[Feed]:
    """Returns inputs for the warm-up and ``calls`` calls, cycling through the golden pairs."""
    golden = read_golden(bundle.file(bundle.manifest.file("golden tiles").path))
    chosen = [index % len(golden.before) for index in range(WARM_UP + calls)]
    return [
        arrays_for(bundle.manifest.interface, golden.before[i : i + 1], golden.after[i : i + 1]) for i in chosen
    ]  # fmt: skip


def lines(report: Report) -> list[str]:
    """Formats the report as Markdown, with a table per profile."""
    load = f"load average before: {report.load_before}"
    found = [f"{machine_line(report.machine)}; {load}; {plural(report.calls, 'call')}"]
    for entry in report.profiles:
        head = entry.failed or f"{entry.ms:.1f} ms in operators"
        found += ["", f"**{entry.graph}** in {entry.engine}: {head}", ""]
        if entry.operators:
            found += ["| operator | kernel | nodes | ms | share |", "|---|---|---|---|---|"]
            found += [f"| {o.operator} | {o.kernel} | {o.nodes} | {o.ms:.2f} | {o.share:.1%} |"
                      for o in entry.operators[:SHOWN]]  # fmt: skip
    return found


def main() -> None:
    options = _parser().parse_args()
    with report_errors():
        bundle = read_bundle(options.bundle)
        load = round(os.getloadavg()[0], 1)
        feeds = feeds_of(bundle, options.calls)
        profiles = [profile(*graph, feeds) for graph in graphs_of(bundle, options.graph)]
        versions = installed_versions(("onnxruntime", "openvino", "numpy"))
        report = Report(describe_machine(), versions, load, options.calls, profiles)
        if options.json:
            write_file(options.json, encode(report))
    print("\n".join(lines(report)))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("operators", __doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="Bundle folder.")
    parser.add_argument("--graph", type=Path, nargs="+", default=[], metavar="FILE.onnx", help="Also profile these.")
    parser.add_argument("--calls", type=int, default=20, help="Calls after the warm-up (default: 20).")
    return parser


if __name__ == "__main__":
    main()

"""Profiles the operators of a graph in the CPU engines, and measures each rewrite of the float graph.

    python -m benchmarks.operators BUNDLE [--weights WEIGHTS] [--graph FILE.onnx ...] [--calls 20] [--json FILE]

Run it from the root of the checkout. It profiles the bundle's INT8 graphs in their engines, and its float graph and
those of ``--graph`` in all. With the ``--weights`` of the bundle it also profiles their straight export, which is the
graph before all rewrites, and measures every rewrite: nodes, and processor time in each engine, with one more rewrite
in each row (some four minutes).

The inputs are the golden tiles of the bundle, one pair at a time, on one thread. Operators are timed by the engines
themselves, which adds some overhead; each operator's shortest time over the calls is shown, since what another process
takes from it only adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from msgspec import field

from benchmarks.commands import new_parser, report_errors
from benchmarks.contest.start import open_start
from benchmarks.rewrites import ONE_THREAD, Feed, Stage, graphs, measure
from benchmarks.rewrites import lines as rewrite_lines
from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.bundle.golden import read_golden
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.detector import arrays_for
from misgnet_runtime.machine import describe_machine, installed_versions, machine_line
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.schema import Struct, encode

# Name, operator, kernel and milliseconds of each node of one call.
Call = list[tuple[str, str, str, float]]
# Runs a graph on one pair after the other.
Profiler = Callable[[Path, list[Feed]], list[Call]]

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
    # Empty without the weights.
    rewrites: list[Stage] = field(default_factory=list)


def in_onnxruntime(graph: Path, feeds: list[Feed]) -> list[Call]:
    """Profiles ``graph`` in ONNX Runtime, opened as in the runtime; the nodes are those of the optimised graph."""
    import onnxruntime

    from misgnet_runtime.engines.onnxruntime import DISABLED_OPTIMIZERS, session_options

    with tempfile.TemporaryDirectory() as folder:
        options = session_options(ONE_THREAD)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
        )
        for feed in feeds:
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _of_events(events)


def _of_events(events: Iterable[dict[str, Any]]) -> list[Call]:
    """Groups node events by call: each call ends with a ``model_run`` event. Durations are in microseconds."""
    calls: list[Call] = [[]]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            calls[-1].append((event["name"], operator, "", event["dur"] / 1000))
        elif event["name"] == "model_run":
            calls.append([])
    return [call for call in calls if call]


def in_openvino(graph: Path, feeds: list[Feed], precision: str = "f32") -> list[Call]:
    """Profiles ``graph`` with OpenVINO's performance counters, compiled for one pair as in the runtime."""
    from misgnet_runtime.engines.openvino import compile_options, computes_bf16, fix_batch, load_openvino

    openvino = load_openvino()
    core = openvino.Core()
    if precision == "bf16" and not computes_bf16(core):
        raise UnavailableError("OpenVINO does not compute in BF16 on this processor")
    model = core.read_model(graph)
    fix_batch(openvino, model)
    options = {**compile_options(precision, ONE_THREAD), "PERF_COUNT": True}
    call = core.compile_model(model, "CPU", options).create_infer_request()
    found = []
    for feed in feeds:
        call.infer(feed)
        executed = [i for i in call.profiling_info if i.status.name == "EXECUTED"]
        found.append([(i.node_name, i.node_type, i.exec_type, i.real_time.total_seconds() * 1000) for i in executed])
    return found


PROFILERS: dict[str, tuple[str, Profiler]] = {
    "onnxruntime": ("ONNX Runtime", in_onnxruntime),
    "openvino": ("OpenVINO", in_openvino),
    "openvino bf16": ("OpenVINO, BF16", partial(in_openvino, precision="bf16")),
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


def summed(calls: list[Call]) -> list[Operator]:
    """Returns the sum over nodes for each operator and kernel, the longest first; a node's time is its shortest."""
    shortest: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for call in calls:
        for name, operator, kernel, ms in call:
            nodes = shortest[operator, kernel]
            nodes[name] = min(ms, nodes.get(name, ms))
    total = sum(ms for nodes in shortest.values() for ms in nodes.values()) or 1.0
    found = [
        Operator(*kind, len(nodes), sum(nodes.values()), sum(nodes.values()) / total)
        for kind, nodes in shortest.items()
    ]
    return sorted(found, key=lambda o: -o.ms)


def graphs_of(bundle: Bundle, others: list[tuple[str, Path]]) -> list[tuple[str, str, Path]]:
    """Returns (name, profiler, graph): ``others`` and the float graph for every profiler, then the INT8 graphs."""
    manifest = bundle.manifest
    every = [*others, ("float graph", bundle.file(manifest.file("float graph").path))]
    found = [(name, kind, path) for name, path in every for kind in PROFILERS]
    return found + [
        (entry.name, f"{entry.kind} bf16" if "bf16" in entry.precision else entry.kind, bundle.file(entry.graph))
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
    found = [f"{machine_line(report.machine)}, one thread; {load}; {plural(report.calls, 'call')}"]
    if report.rewrites:
        found += ["", *rewrite_lines(report.rewrites)]
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
    with report_errors(), tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(options.bundle)
        load = round(os.getloadavg()[0], 1)
        feeds = feeds_of(bundle, options.calls)
        stages, others = [], [(path.name, path) for path in options.graph]
        if options.weights:
            open_start(options.bundle, options.weights, [], Path(folder))  # the bundle's weights, or an error
            found = list(graphs(options.weights, bundle.manifest.interface))
            stages = measure(found, feeds, options.calls)
            others.insert(0, (found[0][0], Path(folder) / "straight.onnx"))
            onnx.save(found[0][1], others[0][1])
        profiles = [profile(*graph, feeds) for graph in graphs_of(bundle, others)]
        versions = installed_versions(("onnxruntime", "openvino", "numpy", "torch"))
        report = Report(describe_machine(), versions, load, options.calls, profiles, stages)
        if options.json:
            write_file(options.json, encode(report))
    print("\n".join(lines(report)))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("operators", __doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="Bundle folder.")
    parser.add_argument("--weights", type=Path, help="The bundle's weights: also measure each rewrite.")
    parser.add_argument("--graph", type=Path, nargs="+", default=[], metavar="FILE.onnx", help="Also profile these.")
    parser.add_argument("--calls", type=int, default=20, help="Calls after the warm-up (default: 20).")
    return parser


if __name__ == "__main__":
    main()

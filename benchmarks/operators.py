"""Where the time of a graph goes, operator by operator, in each engine for a CPU.

    python -m benchmarks.operators BUNDLE [--graph FILE.onnx ...] [--calls 20] [--json FILE]

Run it from the checkout's root, on a quiet machine. Profiled are the bundle's graphs for ONNX Runtime and OpenVINO, its
float graph in both, and the graphs of ``--graph`` in both, as a straight export that ``benchmarks.speed --keep`` left.
The golden tiles of the bundle go in, one pair at a time. Times are the engines' own, summed over their threads'
operators; medians over the calls. Engines measure while they run, which costs some time of its own.
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

from benchmarks.commands import new_parser, told_errors
from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.bundle.golden import read_golden
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.inference.detector import arrays_for
from misgnet_runtime.machine import describe_machine, installed_versions, machine_line
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.schema import Struct, encode

Feed = dict[str, np.ndarray]
# A graph and one pair after the other to what each call took: (operator, kernel) and milliseconds of each node.
Profiler = Callable[[Path, list[Feed]], list[list[tuple[str, str, float]]]]

WARM_UP = 3
SHOWN = 12


class Operator(Struct, frozen=True):
    """All nodes of one kind: how many, their milliseconds in a call, and that as a share of all operators'."""

    operator: str
    kernel: str
    nodes: int
    ms: float
    share: float


class Profile(Struct, frozen=True):
    """One graph in one engine; ``failed``: why there is none."""

    graph: str
    engine: str
    ms: float = 0.0
    operators: list[Operator] = field(default_factory=list)
    failed: str = ""


class Report(Struct, frozen=True):
    machine: dict[str, Any]
    versions: dict[str, str]
    load_before: float
    calls: int
    profiles: list[Profile]


def in_onnxruntime(graph: Path, feeds: list[Feed]) -> list[list[tuple[str, str, float]]]:
    """ONNX Runtime's profile, opened as the runtime does; its nodes are those that it has made of ``graph``'s."""
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
    """Each call ends with an event of its own; before it come those of its nodes, in microseconds."""
    calls: list[list[tuple[str, str, float]]] = [[]]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            calls[-1].append((operator, "", event["dur"] / 1000))
        elif event["name"] == "model_run":
            calls.append([])
    return [call for call in calls if call]


def in_openvino(graph: Path, feeds: list[Feed]) -> list[list[tuple[str, str, float]]]:
    """OpenVINO's performance counters, of the nodes that it runs; compiled for one pair as the runtime does."""
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
    """Run ``graph`` on all ``feeds``, of which the first few warm up."""
    title, profiler = PROFILERS[kind]
    print(f"{name} in {title}", file=sys.stderr, flush=True)
    try:
        calls = profiler(graph, feeds)[WARM_UP:]
    except UnavailableError as error:
        return Profile(name, title, failed=str(error))
    operators = summed(calls)
    return Profile(name, title, sum(o.ms for o in operators), operators)


def summed(calls: list[list[tuple[str, str, float]]]) -> list[Operator]:
    """By kind of node the median over the calls of its nodes' time, the longest first."""
    kinds: dict[tuple[str, str], list[list[float]]] = defaultdict(lambda: [[] for _ in calls])
    for index, call in enumerate(calls):
        for operator, kernel, ms in call:
            kinds[operator, kernel][index].append(ms)
    medians = {kind: statistics.median(map(sum, times)) for kind, times in kinds.items()}
    total = sum(medians.values()) or 1.0
    found = [Operator(*kind, max(map(len, kinds[kind])), ms, ms / total) for kind, ms in medians.items()]
    return sorted(found, key=lambda o: -o.ms)


def graphs_of(bundle: Bundle, others: list[Path]) -> list[tuple[str, str, Path]]:
    """(name, kind of engine, graph), the float graph and the others in every kind."""
    manifest = bundle.manifest
    every = [("float graph", bundle.file(manifest.file("float graph").path)), *((path.name, path) for path in others)]
    found = [(name, kind, path) for name, path in every for kind in PROFILERS]
    return found + [
        (entry.name, entry.kind, bundle.file(entry.graph))
        for entry in manifest.engines
        if entry.kind in PROFILERS and "int8" in entry.precision
    ]


def feeds_of(bundle: Bundle, calls: int) -> list[Feed]:
    """``calls`` golden pairs in turn, and those that warm up before them."""
    golden = read_golden(bundle.file(bundle.manifest.file("golden tiles").path))
    chosen = [index % len(golden.before) for index in range(WARM_UP + calls)]
    return [
        arrays_for(bundle.manifest.interface, golden.before[i : i + 1], golden.after[i : i + 1]) for i in chosen
    ]  # fmt: skip


def lines(report: Report) -> list[str]:
    """Markdown: a table for each profile."""
    found = [f"{machine_line(report.machine)}; load before: {report.load_before}; {report.calls} calls"]
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
    with told_errors():
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
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--graph", type=Path, nargs="+", default=[], metavar="FILE.onnx", help="profile these, too")
    parser.add_argument("--calls", type=int, default=20, help="calls that are counted, after the warm-up [20]")
    return parser


if __name__ == "__main__":
    main()

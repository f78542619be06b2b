"""Measures each rewrite of the float graph: its nodes, and the processor time of an image pair in each CPU engine."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
from msgspec import field

from misgnet.checkpoint import load_network
from misgnet_export.graph.algebra import REWRITES
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph, with_shapes
from misgnet_runtime.bundle import Interface
from misgnet_runtime.engines.base import Engine
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.engines.openvino import OpenVinoEngine
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.storage.schema import Struct

Feed = dict[str, np.ndarray]
# With one thread there is no waiting for another, so the processor time is the time of a pair on an idle machine, and
# other processes disturb it little.
ONE_THREAD = ExecutionOptions(threads=1, streams=1)
OPENERS: dict[str, Callable[[bytes], Engine]] = {
    "ONNX Runtime": lambda graph: OnnxRuntimeEngine(graph, 1, ONE_THREAD),
    "OpenVINO f32": lambda graph: OpenVinoEngine(graph, 1, ONE_THREAD),
    "OpenVINO BF16": lambda graph: OpenVinoEngine(graph, 1, ONE_THREAD, precision="bf16"),
}


class Stage(Struct, frozen=True):
    """The graph with one more rewrite than the stage before; the first is the straight export."""

    name: str
    # Number of nodes.
    nodes: int
    # Processor time of a pair by engine, milliseconds.
    ms: dict[str, float] = field(default_factory=dict)
    # The same relative to the stage before, by engine: median over the rounds, which run all stages.
    ratio: dict[str, float] = field(default_factory=dict)


def graphs(weights: Path, interface: Interface) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yields the name and graph of each stage: the straight export, the stacked guidance, then each rewrite."""
    network = load_network(weights)
    yield "straight export", simplify_graph(export_graph(network, interface, stacked=False))
    model = simplify_graph(export_graph(network, interface))
    yield "stacked guidance", model
    for step in REWRITES:
        model = with_shapes(step(model))
        yield step.__name__.replace("_", " "), model


def measure(found: list[tuple[str, onnx.ModelProto]], feeds: list[Feed], rounds: int) -> list[Stage]:
    """Runs all graphs in turn, in random order; an engine that is missing here is left out with a message."""
    stages = [Stage(name, len(model.graph.node)) for name, model in found]
    for title, opener in OPENERS.items():
        print(f"{len(found)} graphs in {title}", file=sys.stderr, flush=True)
        try:
            times = _times(opener, [model.SerializeToString() for _, model in found], feeds, rounds)
        except UnavailableError as error:
            print(f"not measured in {title}: {error}", file=sys.stderr)
            continue
        for index, stage in enumerate(stages):
            stage.ms[title] = statistics.median(times[index])
            pairs = zip(times[index], times[max(0, index - 1)], strict=True)
            stage.ratio[title] = statistics.median(after / before for after, before in pairs)
    return stages


def _times(opener: Callable[[bytes], Engine], models: list[bytes], feeds: list[Feed], rounds: int) -> list[list[float]]:
    """Returns the milliseconds of each round by graph."""
    with ExitStack() as stack:
        engines = [stack.enter_context(opener(model)) for model in models]
        times: list[list[float]] = [[] for _ in engines]
        order = list(range(len(engines)))
        generator = random.Random(0)
        for turn in range(rounds + 1):
            generator.shuffle(order)
            for index in order:
                feed = feeds[turn % len(feeds)]
                engines[index].infer(feed)  # another engine's data is in the caches
                start = time.process_time()
                engines[index].infer(feed)
                times[index].append(1000 * (time.process_time() - start))
    return [found[1:] for found in times]  # the first round warms up


def lines(stages: list[Stage]) -> list[str]:
    """Formats the stages as a Markdown table."""
    titles = [title for title in OPENERS if any(title in stage.ms for stage in stages)]
    found = [
        f"| graph with | nodes | {' | '.join(f'{title}, ms' for title in titles)} |",
        "|---" * (2 + len(titles)) + "|",
    ]
    for index, stage in enumerate(stages):
        cells = [f"{stage.ms[title]:.1f}" + f" ({stage.ratio[title]:.3f})" * (index > 0) for title in titles]
        found.append(f"| {'' if index < 1 else '+ '}{stage.name} | {stage.nodes} | {' | '.join(cells)} |")
    return found

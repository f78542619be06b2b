"""Part 3: times the network in PyTorch, original against stacked guidance, whole and by part; runs in its own process.

Weights and activations are float16 on a GPU and bfloat16 on a CPU that computes in it, else float32. The guidance is
float32 without TF32.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpu.record import Agreement, Form, Mode, NetworkRuns, NetworkTime, Outcome, Scope, Step
from misgnet import load_network
from misgnet.synthetic import make_pair
from misgnet.tensors import normalise, unit_range
from misgnet_export.graph.half_network import HalfNetwork
from misgnet_export.graph.stacked_guidance import with_stacked_guidance
from misgnet_runtime.machine import cpu_flags
from misgnet_runtime.storage.atomic import replace_file
from misgnet_runtime.storage.schema import encode

DIFFERENT = 8  # tiles that are drawn; larger batches repeat them
ROUND_SECONDS = 0.05
MODES: tuple[Mode, ...] = ("eager", "graph", "compile")  # of steps; a GPU also captures what it compiled
Call = Callable[[], Any]
Images = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the measurement needs to know of a device."""

    name: str  # PyTorch's name
    dtype: torch.dtype
    tile: int  # side of the images, pixels
    rounds: int
    batches: tuple[int, ...]
    modes: tuple[Mode, ...]

    def time(self, call: Call, count: int) -> float:
        """Returns the seconds that ``count`` calls take, one after the other."""
        if self.name == "cpu":
            start = time.perf_counter()
            for _ in range(count):
                call()
            return time.perf_counter() - start
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000


def this_device(cpu: bool) -> Device:
    """Returns the GPU, or with ``cpu`` the processor."""
    if not cpu:
        return Device(name="cuda", dtype=torch.float16, tile=256, rounds=5, batches=(1, 4, 16, 64), modes=MODES)
    bf16 = not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})
    dtype = torch.bfloat16 if bf16 else torch.float32
    return Device(name="cpu", dtype=dtype, tile=128, rounds=3, batches=(1, 2), modes=("eager", "compile"))


def scopes(half: HalfNetwork, images: Images) -> dict[Scope, Call]:
    """Returns calls of the whole network and of its parts, each part on inputs that the part before it computed."""
    network: Any = half.network
    levels = (network.MGLNet0, network.MGLNet1, network.MGLNet2)
    both = torch.cat([date.to(half.dtype) for date in images])
    maps = network.backbone(both)
    differences = [level(x) for level, x in zip(levels, maps, strict=True)]
    return {
        "whole": lambda: half(*images),
        "backbone": lambda: network.backbone(both),
        "guidance": lambda: [level(x) for level, x in zip(levels, maps, strict=True)],
        "decoder": lambda: network.decode(*differences),
    }


def captured(call: Call) -> tuple[Call, Any]:
    """Captures a call as a CUDA graph; returns a call that launches the graph, and the output that it writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries allocate and choose kernels at first
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph.replay, output


def timed(calls: Mapping[Any, Call], device: Device) -> dict[Any, tuple[float, float]]:
    """Times calls in alternating rounds; returns the median in µs and the spread (slowest / fastest round) of each."""
    counts = {}
    for key, call in calls.items():
        device.time(call, 1)  # warm-up
        counts[key] = max(1, round(ROUND_SECONDS / max(device.time(call, 2) / 2, 1e-6)))
    found: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(device.rounds):
        for key, call in calls.items():
            found[key].append(1e6 * device.time(call, counts[key]) / counts[key])
    return {key: (median(times), max(times) / min(times)) for key, times in found.items()}


def agreement(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Returns the share of pixels with the same mask, and the largest absolute difference of logits."""
    equal = (found[:, 1] > found[:, 0]) == (expected[:, 1] > expected[:, 0])
    return equal.float().mean().item(), (found - expected).abs().max().item()


@dataclass
class Measurement:
    """Measures all modes and batches until the time is up, and writes the results after each.

    Args:
        network: The float32 network, in evaluation mode.
        device: Where it runs.
        end: Time of ``time.monotonic`` after which no further step starts.
        output: The JSON file.
    """

    network: nn.Module
    device: Device
    end: float
    output: Path
    runs: NetworkRuns = field(init=False)

    def __post_init__(self) -> None:
        network = self.network.to(self.device.name)
        self.forms: dict[Form, HalfNetwork] = {
            "original": HalfNetwork(network, self.device.dtype),
            "stacked": HalfNetwork(with_stacked_guidance(network), self.device.dtype),
        }
        precision = str(self.device.dtype).removeprefix("torch.")
        self.runs = NetworkRuns(precision=precision, tile=self.device.tile)

    def run(self) -> NetworkRuns:
        """Measures in the order of modes, then batches: the modes that need no compiler come first."""
        for mode, batch in itertools.product(self.device.modes, self.device.batches):
            start = time.monotonic()
            if start > self.end:
                self._note(mode, batch, "out of time", "earlier steps took the time of this part")
                continue
            try:
                self._measure(mode, batch)
            except Exception as error:  # out of memory, no compiler: other steps may still work
                self._note(mode, batch, "failed", f"{type(error).__name__}: {first_line(error)}", start)
            else:
                self._note(mode, batch, "passed", "", start)
            if self.device.name == "cuda":
                torch.cuda.empty_cache()
        return self.runs

    def _measure(self, mode: Mode, batch: int) -> None:
        torch.compiler.reset()  # PyTorch stops compiling a function after some shapes
        images = demo_images(batch, self.device)
        expected = self.network(*images)
        calls: dict[tuple[Form, Mode, Scope], Call] = {}
        agreements = []
        for form, half in self.forms.items():
            for scope, eager in scopes(half, images).items():
                if scope != "whole" and mode == "compile":
                    continue  # compiling each part, too, would take most of the time of this part
                for variant, call, output in self._prepared(mode, eager, half, images):
                    calls[form, variant, scope] = call
                    if scope == "whole":
                        found = call()
                        equal, largest = agreement(found if output is None else output, expected)
                        agreements.append(
                            Agreement(
                                form=form, mode=variant, batch=batch, equal_pixels=equal, largest_difference=largest
                            )
                        )
        times = timed(calls, self.device)
        self.runs.agreements.extend(agreements)
        self.runs.times.extend(
            NetworkTime(form=form, mode=variant, scope=scope, batch=batch, microseconds=micro, spread=spread)
            for (form, variant, scope), (micro, spread) in times.items()
        )

    def _prepared(
        self, mode: Mode, eager: Call, half: HalfNetwork, images: Images
    ) -> Iterator[tuple[Mode, Call, Tensor | None]]:
        """Yields the calls of a step, and the output that each writes to; None: the call returns its output."""
        if mode == "eager":
            yield mode, eager, None
        elif mode == "graph":
            yield mode, *captured(eager)
        else:
            compiled = partial(torch.compile(half, dynamic=False, fullgraph=True), *images)
            yield mode, compiled, None
            if self.device.name == "cuda":
                yield "compile and graph", *captured(compiled)

    def _note(self, mode: Mode, batch: int, outcome: Outcome, reason: str, start: float | None = None) -> None:
        seconds = 0.0 if start is None else time.monotonic() - start
        name = f"{mode}, batch {batch}"
        self.runs.steps.append(Step(part="network", name=name, outcome=outcome, reason=reason, seconds=seconds))
        with replace_file(self.output) as temporary:
            temporary.write_bytes(encode(self.runs))


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def demo_images(batch: int, device: Device) -> Images:
    """Returns generated tiles of both dates, normalised float32 (batch, 3, tile, tile)."""
    pairs = [make_pair(seed, device.tile) for seed in range(min(batch, DIFFERENT))]
    chosen = list(itertools.islice(itertools.cycle(pairs), batch))

    def date(arrays: Iterable[Any]) -> Tensor:
        return normalise(unit_range(np.stack(list(arrays)))).to(device.name)

    return date(pair.before for pair in chosen), date(pair.after for pair in chosen)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m gpu.network_runs", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path, help="JSON file")
    parser.add_argument("--seconds", type=float, required=True, help="no step starts after this time")
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.seconds
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    with torch.no_grad():
        Measurement(load_network(given.weights).eval(), this_device(given.cpu), end, given.output).run()


if __name__ == "__main__":
    main()

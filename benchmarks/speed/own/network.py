"""The published network in PyTorch on the CPU, float32: eager, or through torch.compile at its defaults."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.contest.guests.exchange import Inputs, Opened, serve_engine, versions
from misgnet.checkpoint import load_network
from misgnet_export.graph.deployed import Deployed
from misgnet_runtime.bundle import Interface


def open_engine(request: dict[str, Any]) -> Opened:
    """``weights``: the checkpoint; ``interface``: what the bundle's graphs take and give, so does this."""
    torch.set_num_threads(request["threads"])
    interface = msgspec.convert(request["interface"], Interface)
    network = _network(Path(request["weights"]), interface, request["compiled"])

    def predict(inputs: Inputs) -> np.ndarray:
        with torch.inference_mode():
            found: torch.Tensor = network(*(torch.from_numpy(inputs[entry.name]) for entry in interface.inputs()))
        return found.numpy()

    return Opened(predict, {"precision": "", "versions": versions("torch", "numpy")})


@cache
def _network(weights: Path, interface: Interface, compiled: bool) -> Any:
    """Kept, as it is compiled anew only for a batch of another size."""
    network = Deployed(load_network(weights), interface).eval()
    return torch.compile(network) if compiled else network


if __name__ == "__main__":
    serve_engine(open_engine)

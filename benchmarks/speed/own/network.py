"""Runs the network in PyTorch on the CPU in float32: eager, or with torch.compile at its defaults."""

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
    """Opens the checkpoint ``weights`` with the inputs and outputs of the bundle's graphs (``interface``)."""
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
    """Returns the network, cached, so that it is recompiled only for another batch size."""
    network = Deployed(load_network(weights), interface).eval()
    return torch.compile(network) if compiled else network


if __name__ == "__main__":
    serve_engine(open_engine)

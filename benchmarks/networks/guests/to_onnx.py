"""Exports a network to ONNX as its users would. Runs in the benchmark's environment, as a script."""

from __future__ import annotations

import json

import forward
import onnx
import torch
from torch import nn


def main() -> None:
    asked = forward.request()
    network = forward.load(asked, asked["onnx_factory"])
    # torch.export keeps a batch of 1 fixed, whatever dynamic_shapes says, and some networks fix any.
    for pairs in (2, 1) if asked["dynamic"] else (1,):
        batch = export(network, asked, pairs)
        if batch in (None, 1):
            break
    model = onnx.load(asked["onnx"], load_external_data=False)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    print(json.dumps({"opset": opset, "batch": batch}))


def export(network: nn.Module, asked: forward.Request, pairs: int) -> int | None:
    """Writes the ONNX file, from an example of so many pairs, and returns its batch; None: any."""
    images = torch.rand(pairs, 2, len(asked["mean"]), asked["side"], asked["side"])
    inputs = forward.inputs_of(images, asked["onnx_io"])
    names = ["before", "after"] if len(inputs) == 2 else ["images"]
    settings = {"input_names": names, "output_names": asked["outputs"], "opset_version": asked["opset"]}
    if asked["exporter"] == "dynamo":
        batch = torch.export.Dim("batch", min=1, max=64)
        settings["dynamic_shapes"] = tuple({0: batch} for _ in inputs) if asked["dynamic"] else None
        settings |= {"dynamo": True}
    else:
        dynamic = {name: {0: "batch"} for name in (*names, *asked["outputs"])}
        settings |= {"dynamo": False, "dynamic_axes": dynamic if asked["dynamic"] else None}
    torch.onnx.export(network, inputs, asked["onnx"], **settings)
    dim = onnx.load(asked["onnx"], load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0]
    return dim.dim_value if dim.HasField("dim_value") else None


if __name__ == "__main__":
    main()

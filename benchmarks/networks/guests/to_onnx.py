"""Exports a network to ONNX as its users would. Runs in the benchmark's environment, as a script."""

from __future__ import annotations

import json

import forward
import onnx
import torch


def main() -> None:
    asked = forward.request()
    network = forward.load(asked, asked["onnx_factory"])
    # torch.export keeps a batch of 1 fixed, whatever dynamic_shapes says.
    images = torch.rand(2 if asked["dynamic"] else 1, 2, len(asked["mean"]), asked["side"], asked["side"])
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
    model = onnx.load(asked["onnx"])
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    print(json.dumps({"opset": opset, "batch": batch.dim_value if batch.HasField("dim_value") else None}))


if __name__ == "__main__":
    main()

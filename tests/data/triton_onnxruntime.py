"""Replaces Triton's ONNX Runtime backend in tests: see ``support/triton_server.py``."""

import json
import sys
from pathlib import Path

sys.path += Path(__file__).with_name("path.txt").read_text().splitlines()  # the backend's Python has its own path

import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        graph = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        """Runs all requests that the server queued together as one batch, and returns a response for each."""
        parts = [[array(utils.get_input_tensor_by_name(r, name)) for r in requests] for name in self.inputs]
        ends = np.cumsum([len(part) for part in parts[0]])[:-1]
        feeds = {name: np.concatenate(part) for name, part in zip(self.inputs, parts, strict=True)}
        outputs = [np.split(found, ends) for found in self.session.run(self.outputs, feeds)]
        return [utils.InferenceResponse(list(map(tensor, self.outputs, row))) for row in zip(*outputs, strict=True)]


# Tensors pass by DLPack: a backend compiled for NumPy 1 reads an item size of 0 from arrays of NumPy 2.


def array(tensor):
    return np.from_dlpack(tensor)


def tensor(name, array):
    return utils.Tensor.from_dlpack(name, array)

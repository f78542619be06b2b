"""Queries ONNX graphs, infers shapes for one image pair, and edits graphs."""

from misgnet_calibration.onnx_graph.edits import drop_unused, put_in_order
from misgnet_calibration.onnx_graph.graph import INTERPOLATION, Graph, attribute, opset_of, scope
from misgnet_calibration.onnx_graph.shapes import copied

__all__ = ["INTERPOLATION", "Graph", "attribute", "copied", "drop_unused", "opset_of", "put_in_order", "scope"]

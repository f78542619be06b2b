"""Converts the PyTorch network to a simplified float ONNX graph."""

"""Writes a bundle as a model repository for the Triton Inference Server; needs the [triton] extra, no torch or onnx."""

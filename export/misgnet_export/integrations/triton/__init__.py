"""A bundle as a model repository for the Triton Inference Server. Needs the [triton] extra; no torch, no onnx."""

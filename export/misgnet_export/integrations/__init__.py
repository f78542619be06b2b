"""Integrations with other tools: signing, Triton, Torch-TensorRT and offline installation."""

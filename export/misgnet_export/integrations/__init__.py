"""Where a bundle or the compiler meets another tool: signing, Triton, Torch-TensorRT, offline installation."""

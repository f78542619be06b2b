"""Compiles TensorRT plans on the device from a bundle's graphs, verifies them, and keeps them outside the bundle."""
